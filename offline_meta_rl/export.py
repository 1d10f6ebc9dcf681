"""Load a trained method from its checkpoint, and save adapted policies; no simulator is imported.

    import offline_meta_rl

    method = offline_meta_rl.load("checkpoint.ckpt")
    policy = method.adapt(context)              # an nn.Sequential of ordinary layers
    save_policy(policy, "policies/task_7", observation_size=20)

``policy.pt`` holds the state dict and the layers' sizes, ``policy.pt2`` the exported program, which
runs with PyTorch alone.
"""

import importlib
import inspect
import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from offline_meta_rl.methods.base import MetaModule

STATE_FILE = "policy.pt"
PROGRAM_FILE = "policy.pt2"
_LAYERS: dict[str, type[nn.Module]] = {"Linear": nn.Linear, "ReLU": nn.ReLU, "Tanh": nn.Tanh}


def load(
    checkpoint_path: str | Path, *, method: str | None = None, device: str | torch.device = "cpu"
) -> "MetaModule":
    """Build the method of a checkpoint, with its trained parameters, ready to adapt.

    Only the method's own module is imported. A method of your own must be importable, for example
    from the working directory.

    Args:
        checkpoint_path: a ``.ckpt`` file written by ``lightning fit``.
        method: class name, or full class path, that the checkpoint must be of; None for any.
        device: where the parameters go.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of this library, or one of another method.
        ImportError: the method's class cannot be imported.
    """
    checkpoint = read_checkpoint(checkpoint_path)
    class_path: str = checkpoint["method"]
    if method is not None and method not in (class_path, class_path.rpartition(".")[2]):
        raise ValueError(
            f"Expected a checkpoint of {method}, found one of {class_path}: {checkpoint_path}."
        )
    method_class = _import_method(class_path)
    given = checkpoint.get("hyper_parameters", {})
    # Names with an underscore are Lightning's own, not arguments of the method.
    arguments = {name: value for name, value in given.items() if not name.startswith("_")}
    module: MetaModule = method_class(**arguments)
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ValueError(
            f"The parameters in {checkpoint_path} do not fit {class_path} as it is now. Load it "
            f"with the version of the code that wrote it. {error}"
        ) from error
    return module.to(device).eval()


def read_checkpoint(checkpoint_path: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint of this library, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of this library.
    """
    path = Path(checkpoint_path)
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint at {path}; expected a .ckpt file of a fit.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"{path} is not a readable checkpoint: expected a file of tensors and plain types as "
            f"`lightning fit` writes it. {error}"
        ) from error
    if not isinstance(checkpoint, dict) or not {"method", "state_dict"} <= set(checkpoint):
        found = sorted(checkpoint) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise ValueError(
            f"{path} is not a checkpoint of offline_meta_rl: expected the entries method and "
            f"state_dict, found {found}."
        )
    return checkpoint


def _import_method(class_path: str) -> Any:
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
    return method_class


def save_policy(policy: nn.Sequential, folder: str | Path, observation_size: int) -> None:
    """Write an adapted policy as state dict and as exported program.

    Args:
        policy: Linear, ReLU and Tanh layers, as ``adapt`` returns them.
        folder: is made; gets ``policy.pt`` and ``policy.pt2``.
        observation_size: O; the program takes observations [B, O] for any B >= 1.

    Raises:
        TypeError: other layers.
        ValueError: an observation size that does not fit the first layer.
    """
    layers = _describe(policy)
    if layers[0][1:2] != [observation_size]:
        raise ValueError(
            f"The policy takes observations of size {layers[0][1]}, found observation_size="
            f"{observation_size}. Pass the size of the dataset that it was adapted on."
        )
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    cpu = _build(layers)
    cpu.load_state_dict({name: value.cpu() for name, value in policy.state_dict().items()})
    torch.save({"layers": layers, "state_dict": cpu.state_dict()}, target / STATE_FILE)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(
        cpu.eval().requires_grad_(False),
        (torch.zeros(2, observation_size),),
        dynamic_shapes=({0: batch},),
    )
    torch.export.save(program, target / PROGRAM_FILE)


def load_policy(path: str | Path) -> nn.Sequential:
    """Rebuild the policy of a ``policy.pt`` as ordinary layers.

    Raises:
        ValueError: not such a file.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        policy = _build(saved["layers"])
        policy.load_state_dict(saved["state_dict"])
    except (pickle.UnpicklingError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{path} is not a saved policy: expected a {STATE_FILE} of save_policy. {error}"
        ) from error
    return policy.eval()


def _describe(policy: nn.Sequential) -> list[list[Any]]:
    """Return [name, input size, output size] of linear layers, [name] of others."""
    if not isinstance(policy, nn.Sequential) or not len(policy):
        raise TypeError(
            f"Expected an nn.Sequential as adapt returns, found {type(policy).__name__}."
        )
    layers: list[list[Any]] = []
    for module in policy:
        name = type(module).__name__
        if type(module) is not _LAYERS.get(name):
            raise TypeError(f"Expected layers of {sorted(_LAYERS)} in the policy, found {name}.")
        linear = isinstance(module, nn.Linear)
        layers.append([name, module.in_features, module.out_features] if linear else [name])
    return layers


def _build(layers: list[list[Any]]) -> nn.Sequential:
    return nn.Sequential(*(_LAYERS[name](*sizes) for name, *sizes in layers))
