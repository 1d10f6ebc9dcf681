"""Lightning datamodules, each imported when it is first asked for: only some need a simulator."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datamodules.lifetime_buffers import LifetimeBuffers
    from datamodules.meta_trajectories import MetaTrajectories
    from datamodules.online_buffer import OnlineBuffer
    from datamodules.task_buffers import TaskBuffers

_MODULES = {
    "LifetimeBuffers": "datamodules.lifetime_buffers",
    "MetaTrajectories": "datamodules.meta_trajectories",
    "OnlineBuffer": "datamodules.online_buffer",
    "TaskBuffers": "datamodules.task_buffers",
}
__all__ = ["LifetimeBuffers", "MetaTrajectories", "OnlineBuffer", "TaskBuffers"]


def __getattr__(name: str) -> object:
    """Import the module of a datamodule."""
    if name in _MODULES:
        return vars(import_module(_MODULES[name]))[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
