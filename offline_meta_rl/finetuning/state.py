"""The state of a fine-tuning that is not done: saved whole, and continued by the same command."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offline_meta_rl.common.checkpoints import read_tensors
from offline_meta_rl.common.files import replacing


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Return one string that identifies a method's weights, those of its ``state_dict``."""
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write a state that is replaced only when complete.

    Args:
        state: ``identity``, ``compared`` and ``run``, as tensors and plain types.
        path: The file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:  # an interruption leaves the last state whole
        torch.save(dict(state), file)


def load_state(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return an interrupted fine-tuning's state; None if there is none.

    Args:
        path: The file.
        identity: Settings, weights and data, which must match to resume.

    Raises:
        ValueError: The state is of another fine-tuning, or cannot be read.
    """
    if not path.is_file():
        return None
    state = read_tensors(path)
    found: dict[str, Any] = state["identity"]
    different = sorted(key for key in {*identity, *found} if identity.get(key) != found.get(key))
    if different:
        shown = ", ".join(f"{k} {found.get(k)} (now {identity.get(k)})" for k in different)
        raise ValueError(
            f"{path} holds an interrupted fine-tuning with other settings: {shown}. Repeat its "
            "command to go on, pass --finetune.fresh=true to start again in its place, or another "
            "--trainer.default_root_dir."
        )
    return state
