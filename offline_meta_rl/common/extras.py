"""Optional packages, imported when a tool needs them."""

import importlib
from typing import Any


def require(module: str) -> Any:
    """Import a package of the extra ``convert``.

    Raises:
        ImportError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"This needs {module.partition('.')[0]} ({error}). Install it with "
            '`pip install "offline_meta_rl[convert]"`.'
        ) from error
