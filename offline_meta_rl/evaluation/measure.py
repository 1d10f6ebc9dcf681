"""Evaluate a method on the tasks of a datamodule's dataset; shared by callbacks, no hooks here."""

from pathlib import Path
from typing import cast

import lightning
import numpy as np
from tensordict import TensorDict

from offline_meta_rl.common.provenance import code_commit, global_seed
from offline_meta_rl.common.settings import to_plain
from offline_meta_rl.data.contracts import attributes_of
from offline_meta_rl.data.description import policy_returns
from offline_meta_rl.evaluation.contracts import Adapts, Described, EvaluationData, HasHparams
from offline_meta_rl.evaluation.protocol import EvaluationResult, Protocol
from offline_meta_rl.evaluation.result_files import Origin, RunConfig


def datamodule_of(trainer: lightning.Trainer) -> object:
    """Return the trainer's datamodule; None if it has none."""
    return attributes_of(trainer).datamodule


def evaluation_data(trainer: lightning.Trainer) -> EvaluationData:
    """Return the trainer's datamodule; see ``check_datamodule``."""
    return check_datamodule(datamodule_of(trainer))


def check_datamodule(datamodule: object) -> EvaluationData:
    """Check that a datamodule can be evaluated on; return it, typed.

    Raises:
        TypeError: A datamodule that has no task dataset.
    """
    if not isinstance(datamodule, EvaluationData):
        raise TypeError(
            "The Evaluate callback needs a datamodule with dataset, family and context, such as "
            f"TaskBuffers; found {type(datamodule).__name__}. Remove the callback or pass another "
            "datamodule. EvaluationData in offline_meta_rl.evaluation.contracts lists all members."
        )
    return datamodule


def evaluated_method(module: object) -> Adapts:
    """Return a module as a method that adapts.

    Raises:
        TypeError: It does not adapt.
    """
    if not isinstance(module, Adapts):
        raise TypeError(
            "The Evaluate callback needs a method with adapt_tasks, such as Macaw; found "
            f"{type(module).__name__}. Remove the callback or train another method."
        )
    return module


def evaluated_tasks(datamodule: EvaluationData, protocol: Protocol) -> list[int]:
    """Return the tasks of the datamodule's dataset that the protocol names."""
    manifest = datamodule.dataset.manifest
    return protocol.of_split(datamodule.split).task_indices(manifest.splits, manifest.num_tasks)


def contexts_of(datamodule: EvaluationData, protocol: Protocol) -> TensorDict:
    """Return the contexts [T, B] of the evaluated tasks."""
    return datamodule.context(
        evaluated_tasks(datamodule, protocol),
        protocol.context_size,
        seed=protocol.seed,
        slice=protocol.context_slice,
    )


def measure(
    method: Adapts,
    datamodule: EvaluationData,
    protocol: Protocol,
    *,
    num_threads: int | None = None,
) -> EvaluationResult:
    """Measure returns of a method on the tasks that a protocol names.

    Args:
        method: The method, such as a MetaModule.
        datamodule: Has ``dataset``, ``family`` and ``context``, as TaskBuffers.
        protocol: How to measure.
        num_threads: Threads of the simulator; None for one per core.
    """
    from offline_meta_rl.evaluation.evaluate import evaluate  # imports the simulators

    manifest, tasks = datamodule.dataset.manifest, evaluated_tasks(datamodule, protocol)
    references = {
        name: np.asarray(returns, dtype=np.float64)[tasks]
        for name, returns in policy_returns(manifest.reference_returns).items()
    }
    # Evaluated in the middle of training, so the mode is put back.
    training = method.training
    method.eval()
    try:
        return evaluate(
            method.adapt_tasks,
            contexts_of(datamodule, protocol).to(method.device),
            datamodule.family,
            np.asarray(manifest.task_parameters, dtype=np.float64)[tasks],
            references,
            protocol.of_split(datamodule.split),
            tasks=tasks,
            num_threads=num_threads,
        )
    finally:
        method.train(training)


def film_first_task(
    method: Adapts, datamodule: EvaluationData, protocol: Protocol, path: Path
) -> None:
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


def describe_run(method: HasHparams, datamodule: Described, step: int) -> Origin:
    """Return where a result comes from: method, data, configuration, seed and code."""
    dataset = datamodule.dataset
    config = {"model": dict(method.hparams), "data": dict(datamodule.hparams)}
    return {
        "global_step": int(step),
        "method": f"{type(method).__module__}.{type(method).__qualname__}",
        "environment": dataset.manifest.environment,
        "dataset_checksum": dataset.checksum,
        "seed": global_seed(),
        "commit": code_commit(),
        "config": cast(RunConfig, to_plain(config)),
    }
