"""Take over a trained filter from the checkpoint of its run, or of a policy that acts on it."""

from pathlib import Path

from torch import nn

from offline_meta_rl.common.checkpoints import Checkpoint

PREFIXES = ("filter.", "explorer.filter.")
"""Of the filter's parameters in a checkpoint; the second one in those of earlier versions."""


def load_filter(target: nn.Module, path: Path) -> None:
    """Load the filter in a checkpoint of a BeliefFilter or a ReflectiveExplorer.

    Args:
        target: A filter of the same sizes.
        path: Path of the checkpoint.

    Raises:
        FileNotFoundError: There is none.
        ValueError: A checkpoint without a filter, of another size, or with one that is still
            being trained.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected a trained filter, found no checkpoint at {path}. Train the filter first, "
            "which `lightning fit` does without --ckpt_path, or pass the checkpoint of another run "
            "with --model.filter_from."
        )
    checkpoint = Checkpoint.read(path)
    state = {
        name.removeprefix(prefix): value
        for prefix in PREFIXES
        for name, value in checkpoint.weights.items()
        # A policy's checkpoint holds actor and critics too.
        if name.startswith(prefix)
    }
    if not state:
        raise ValueError(
            f"filter_from: expected a checkpoint of a BeliefFilter or a ReflectiveExplorer, found "
            f"no filter in {path}."
        )
    # The policy's stage keeps the filter as it is: half a filter would stay half.
    left = updates_left(checkpoint)
    if left:
        done = checkpoint.global_step
        raise ValueError(
            f"filter_from: the filter in {path} has had {done} of {done + left} updates. Let that "
            "run finish first."
        )
    # Compared here, because load_state_dict's own message lists every tensor and no setting.
    own = {name: tuple(value.shape) for name, value in target.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if own != found:
        name = next(n for n in sorted({*own, *found}) if own.get(n) != found.get(n))
        raise ValueError(
            f"filter_from: the filter in {path} has other sizes: {name} is {found.get(name)}, "
            f"expected {own.get(name)}. Give both runs the same --model.filter."
        )
    target.load_state_dict(state)


def updates_left(checkpoint: Checkpoint) -> int:
    """Return how many updates a filter still needs; 0 for one that a policy acts on already."""
    settings = checkpoint.hyper_parameters
    if "filter_learning_rate" in settings:  # both stages were one module, which counted its steps
        planned = 0 if settings["filter_from"] else int(settings["filter_steps"])
    else:
        planned = checkpoint.planned_steps
    return max(0, planned - checkpoint.global_step)
