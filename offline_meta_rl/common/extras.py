"""What is optional: packages of the extras, and a login for Weights & Biases."""

import importlib
import os
from netrc import NetrcParseError, netrc
from types import ModuleType
from urllib.parse import urlparse


def require(module: str, extra: str = "convert") -> ModuleType:
    """Import a package of an extra.

    Args:
        module: Name of the package, or of a module in it.
        extra: Extra of this project that it belongs to.

    Raises:
        ImportError: It is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"This needs {module.partition('.')[0]} ({error}). Install it with "
            f'`pip install "offline_meta_rl[{extra}]"`.'
        ) from error


def logged_in() -> bool:
    """Whether there is an API key, in the environment or in the user's netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False
