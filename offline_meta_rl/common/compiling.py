"""Compile a function, or carry on without: a missing compiler must never end a training."""

import warnings
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class CompiledOrEager(Generic[P, R]):
    """Calls a compiled function; the first failure to compile switches to eager with a warning.

    Args:
        function: A pure function of tensors.
        mode: Mode of ``torch.compile``.
    """

    def __init__(self, function: Callable[P, R], mode: str) -> None:
        self.function = function
        self.call: Callable[P, R] = torch.compile(function, mode=mode)
        self.proven = False

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function; once a compiled call went through, errors are the caller's own."""
        if self.proven:
            return self.call(*args, **kwargs)
        try:
            result = self.call(*args, **kwargs)
        except Exception as error:
            # An error of the function itself is raised here, as without compiling.
            result = self.function(*args, **kwargs)
            warnings.warn(
                f"torch.compile failed ({type(error).__name__}: {str(error)[:200]}); going on "
                "without it, more slowly. A C++ compiler (g++) is needed; set compile: false to "
                "silence this.",
                stacklevel=2,
            )
            self.call = self.function
        self.proven = True
        return result
