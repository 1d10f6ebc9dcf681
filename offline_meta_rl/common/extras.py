"""Optional packages, imported when a tool needs them."""

import importlib
from types import ModuleType


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
