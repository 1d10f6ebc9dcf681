"""Evaluate a method on the tasks of a datamodule's dataset; shared by callbacks, no hooks here."""

from pathlib import Path
from typing import Any

import lightning
import numpy as np
from tensordict import TensorDict

from offline_meta_rl.common.provenance import code_commit, global_seed
from offline_meta_rl.common.settings import to_plain
from offline_meta_rl.evaluation.protocol import EvaluationResult, Protocol
from offline_meta_rl.evaluation.result_files import Origin


def datamodule_of(trainer: lightning.Trainer) -> Any:
    """Return the trainer's datamodule; None if it has none."""
    return getattr(trainer, "datamodule", None)


def check_datamodule(datamodule: Any) -> None:
    """Check that a datamodule has what an evaluation needs.

    Raises:
        TypeError: a datamodule that has no task dataset.
    """
    if not all(hasattr(datamodule, name) for name in ("dataset", "family", "context")):
        raise TypeError(
            "The Evaluate callback needs a datamodule with dataset, family and context, such as "
            f"TaskBuffers; found {type(datamodule).__name__}. Remove the callback or pass another "
            "datamodule."
        )


def evaluated_tasks(datamodule: Any, protocol: Protocol) -> list[int]:
    """Return the tasks of the datamodule's dataset that the protocol names."""
    manifest = datamodule.dataset.manifest
    return protocol.task_indices(manifest.splits, len(manifest.task_parameters))


def contexts_of(datamodule: Any, protocol: Protocol) -> TensorDict:
    """Return the contexts [T, B] of the evaluated tasks."""
    contexts: TensorDict = datamodule.context(
        evaluated_tasks(datamodule, protocol),
        protocol.context_size,
        seed=protocol.seed,
        slice=protocol.context_slice,
    )
    return contexts


def measure(
    method: Any, datamodule: Any, protocol: Protocol, *, num_threads: int | None = None
) -> EvaluationResult:
    """Measure returns of a method on the tasks that a protocol names.

    Args:
        method: a MetaModule.
        datamodule: has ``dataset``, ``family`` and ``context``, as TaskBuffers.
        protocol: how to measure.
        num_threads: threads of the simulator; None for one per core.
    """
    from offline_meta_rl.evaluation.evaluate import evaluate  # imports the simulators

    manifest, tasks = datamodule.dataset.manifest, evaluated_tasks(datamodule, protocol)
    references = {
        name: np.asarray(returns, dtype=np.float64)[tasks]
        for name, returns in manifest.reference_returns.items()
        if name != "stages"
    }
    training = method.training
    method.eval()
    try:
        return evaluate(
            method.adapt_tasks,
            contexts_of(datamodule, protocol).to(method.device),
            datamodule.family,
            np.asarray(manifest.task_parameters, dtype=np.float64)[tasks],
            references,
            protocol,
            tasks=tasks,
            num_threads=num_threads,
        )
    finally:
        method.train(training)


def film_first_task(method: Any, datamodule: Any, protocol: Protocol, path: Path) -> None:
    """Film the first evaluated task before and after adaptation, side by side."""
    from offline_meta_rl.evaluation.films import film_adaptation  # imports the simulators

    film_adaptation(
        method.adapt_tasks,
        contexts_of(datamodule, protocol)[:1].to(method.device),
        datamodule.family,
        evaluated_tasks(datamodule, protocol)[0],
        path,
        num_steps=protocol.adaptation_steps[0],
        task_seed=datamodule.dataset.manifest.task_seed,
        seed=protocol.seed,
    )


def describe_run(method: Any, datamodule: Any, step: int) -> Origin:
    """Return where a result comes from: method, data, configuration, seed and code."""
    dataset = datamodule.dataset
    return {
        "global_step": int(step),
        "method": f"{type(method).__module__}.{type(method).__qualname__}",
        "environment": dataset.manifest.environment,
        "dataset_checksum": dataset.checksum,
        "seed": global_seed(),
        "commit": code_commit(),
        "config": to_plain({"model": dict(method.hparams), "data": dict(datamodule.hparams)}),
    }
