"""What a fine-tuning needs of trainer, method, data and checkpoint, checked before it starts."""

import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offline_meta_rl.evaluation.measure import check_datamodule
from offline_meta_rl.finetuning.learner import cannot_be_fine_tuned
from offline_meta_rl.finetuning.settings import check_options
from offline_meta_rl.methods.base import MetaModule
from offline_meta_rl.methods.checks import check_same_data


def check_fine_tuning(trainer: Any, method: Any, learner: Mapping[str, Any]) -> None:
    """Check trainer, method and data.

    Raises:
        TypeError: a method that cannot be fine-tuned, or data without tasks.
        ValueError: several processes, a setting the method does not have, or a checkpoint that was
            trained on other data.
    """
    if trainer.world_size > 1:
        raise ValueError(
            f"Fine-tuning runs all tasks in one process, found {trainer.world_size}. Set "
            "--trainer.devices=1."
        )
    if getattr(type(method), "fine_tuner", None) in (None, MetaModule.fine_tuner):
        raise cannot_be_fine_tuned(type(method).__name__)
    check_datamodule(trainer.datamodule)
    parameters = inspect.signature(method.fine_tuner).parameters.values()
    known = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    check_options(learner, known, type(method).__name__)
    if trainer.ckpt_path:
        checkpoint = torch.load(trainer.ckpt_path, map_location="cpu", weights_only=True, mmap=True)
        check_same_data(checkpoint, trainer.datamodule)


def weights_digest(module: nn.Module) -> str:
    """Return one string that identifies a module's weights."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def load_state(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return an interrupted fine-tuning's state; None if there is none.

    Raises:
        ValueError: it is of another fine-tuning.
    """
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    found = state["identity"]
    different = sorted(key for key in {*identity, *found} if identity.get(key) != found.get(key))
    if different:
        shown = ", ".join(f"{k} {found.get(k)} (now {identity.get(k)})" for k in different)
        raise ValueError(
            f"{path} holds an interrupted fine-tuning with other settings: {shown}. Repeat its "
            "command to go on, pass --finetune.fresh=true to start again in its place, or another "
            "--trainer.default_root_dir."
        )
    return state
