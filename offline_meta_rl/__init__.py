"""Offline meta-reinforcement learning on PyTorch Lightning."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from offline_meta_rl.methods.loading import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> object:
    """Import ``load`` when it is first asked for, so that importing the package stays fast."""
    if name == "load":
        from offline_meta_rl.methods.loading import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
