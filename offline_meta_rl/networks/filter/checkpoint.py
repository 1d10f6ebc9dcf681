"""Take over the trained filter of another run."""

from pathlib import Path

from torch import nn

from offline_meta_rl.common.checkpoints import Checkpoint

PREFIX = "explorer.filter."


def load_filter(target: nn.Module, path: Path) -> None:
    """Load the filter in a checkpoint of a Reflective Explorer.

    Args:
        target: a filter of the same sizes.
        path: of the checkpoint.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a checkpoint without a filter, of another size, or with one that is still
            being trained.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"filter_from: no checkpoint at {path}. Train that run first, or pass the path of its "
            "last.ckpt with --model.init_args.filter_from."
        )
    checkpoint = Checkpoint.read(path)
    state = {
        name.removeprefix(PREFIX): value
        for name, value in checkpoint.weights.items()
        if name.startswith(PREFIX)
    }
    if not state:
        raise ValueError(
            f"filter_from: expected a checkpoint of a Reflective Explorer, found none of its "
            f"filter in {path}."
        )
    options = checkpoint.hyper_parameters
    needed = 0 if options["filter_from"] else options["filter_steps"]
    if checkpoint.global_step < needed:
        raise ValueError(
            f"filter_from: the filter in {path} has had {checkpoint.global_step} of {needed} "
            "updates. Let that run finish its first stage."
        )
    own = {name: tuple(value.shape) for name, value in target.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if own != found:
        name = next(n for n in sorted({*own, *found}) if own.get(n) != found.get(n))
        raise ValueError(
            f"filter_from: the filter in {path} has other sizes: {name} is {found.get(name)}, "
            f"expected {own.get(name)}. Give both runs the same settings of the filter."
        )
    target.load_state_dict(state)
