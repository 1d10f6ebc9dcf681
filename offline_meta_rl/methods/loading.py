"""Load a trained method from its checkpoint; no simulator is imported.

import offline_meta_rl

method = offline_meta_rl.load("checkpoint.ckpt")
policy = method.adapt(context)              # an nn.Sequential of ordinary layers
"""

import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from offline_meta_rl.common.checkpoints import Checkpoint
from offline_meta_rl.common.settings import arguments_of, check_class

if TYPE_CHECKING:
    from offline_meta_rl.methods.base import MetaModule


def load(
    checkpoint_path: str | Path, *, method: str | None = None, device: str | torch.device = "cpu"
) -> "MetaModule":
    """Build the method of a checkpoint, with its trained parameters, ready to adapt.

    Only the method's own module is imported. A method of your own must be importable, for example
    from the working directory.

    Args:
        checkpoint_path: a ``.ckpt`` file written by ``lightning fit``.
        method: Class name, or full class path, that the checkpoint must be of; None for any.
        device: Where the parameters go.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a checkpoint of this library, or one of another method.
        ImportError: The method's class cannot be imported.
    """
    checkpoint = Checkpoint.read(checkpoint_path)
    checkpoint.check_complete()
    class_path = str(checkpoint.method)
    if method is not None and method not in (class_path, class_path.rpartition(".")[2]):
        raise ValueError(
            f"Expected a checkpoint of {method}, found one of {class_path}: {checkpoint_path}."
        )
    check_class(class_path, str(checkpoint_path))
    method_class = _import_method(class_path)
    arguments = arguments_of(method_class, checkpoint.hyper_parameters)
    module: MetaModule = method_class(**arguments)
    try:
        module.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        raise ValueError(
            f"The parameters in {checkpoint_path} do not fit {class_path} as it is now. Load it "
            f"with the version of the code that wrote it. {error}"
        ) from error
    return module.to(device).eval()


def _import_method(class_path: str) -> type["MetaModule"]:
    module_name, _, class_name = class_path.rpartition(".")
    try:
        method_class = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImportError(
            f"The checkpoint's method {class_path} cannot be imported: {error}. Install its "
            "package or run from the folder that holds its module."
        ) from error
    if not (inspect.isclass(method_class) and hasattr(method_class, "adapt_tasks")):
        raise ValueError(
            f"The checkpoint's method {class_path} does not adapt to a context; expected a "
            "subclass of MetaModule. Pass a checkpoint of a meta-learning method."
        )
    return cast("type[MetaModule]", method_class)
