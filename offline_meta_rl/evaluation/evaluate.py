"""Measure returns before and after adaptation, under a protocol that is kept with every result.

All tasks, all episodes and all numbers of inner steps run as one batch of environments, with the
adapted weights generated once. Shapes: V numbers of inner steps (0 is "before adaptation"), T
tasks, E episodes, B transitions of context, P numbers that describe a task, O/A observation/action
size.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict

from offline_meta_rl.envs.base import Array, TaskFamily
from offline_meta_rl.evaluation.contracts import AdaptTasks, NoisyPolicy, Policy
from offline_meta_rl.evaluation.protocol import EvaluationResult, Protocol, normalised_return
from offline_meta_rl.evaluation.rollout import Act, run_episodes

__all__ = ["AdaptTasks", "EvaluationResult", "Policy", "Protocol", "evaluate", "normalised_return"]


def evaluate(
    adapt_tasks: AdaptTasks,
    contexts: TensorDict,
    family: TaskFamily,
    parameters: Array,
    references: Mapping[str, Array],
    protocol: Protocol,
    *,
    tasks: Sequence[int] | None = None,
    num_threads: int | None = None,
) -> EvaluationResult:
    """Adapt to every task and roll out before and after, all as one batch of environments.

    Args:
        adapt_tasks: The method's adaptation.
        contexts: Contexts of the T tasks, [T, B], on the device that the policies run on.
        family: Makes the environments.
        parameters: Parameters of the T tasks, [T, P].
        references: Mean returns of reference policies on the T tasks, each [T].
        protocol: How to measure.
        tasks: Indices of the T tasks, for the result; 0 to T - 1 if None.
        num_threads: Threads of the simulator; None for one per core.

    Returns:
        Returns per task and episode. The same arguments give the same result; the global random
        state is neither used nor changed.

    Raises:
        ValueError: One task only and ``context_source`` ``other``; numbers of tasks that differ.
        FloatingPointError: An adapted policy that gives actions that are not finite.
    """
    num_tasks = len(parameters)
    if contexts.batch_size[0] != num_tasks:
        raise ValueError(f"Expected contexts of {num_tasks} tasks, found {contexts.batch_size[0]}.")
    steps = [0, *protocol.adaptation_steps]
    shape = (len(steps), num_tasks, protocol.episodes)
    device = next(iter(contexts.values())).device
    # Validation may run without gradients, and adapting may draw random numbers.
    with fixed_seed(protocol.seed, device), torch.enable_grad():
        given = _contexts_given(contexts, protocol.context_source)
        policies = [adapt_tasks(given, num_steps) for num_steps in steps]
    # Every number of steps and every task in environments side by side, [V, T, E].
    rows = np.tile(np.repeat(parameters, protocol.episodes, axis=0), (len(steps), 1))
    engine = family.make_engine(rows, seed=protocol.seed, num_threads=num_threads)
    try:
        act = _act(policies, shape, device, protocol)
        episodes = run_episodes(engine, act, family.horizon)
    finally:
        engine.close()
    returns, diverged = episodes.returns.reshape(shape), episodes.diverged.reshape(shape)
    return EvaluationResult(
        tasks=list(range(num_tasks)) if tasks is None else [int(task) for task in tasks],
        returns=dict(zip(steps, returns, strict=True)),
        diverged=dict(zip(steps, diverged, strict=True)),
        references={name: np.asarray(values) for name, values in references.items()},
        protocol=protocol,
    )


def _contexts_given(contexts: TensorDict, source: str) -> TensorDict:
    """Return the contexts [T, B] that the T tasks adapt on: each its own, or the next task's."""
    num_tasks = contexts.batch_size[0]
    if source == "own":
        return contexts
    if num_tasks < 2:
        raise ValueError(
            "context_source 'other' needs at least 2 evaluated tasks, found 1. Evaluate more tasks."
        )
    # Task t adapts to the context of task t + 1: a method that does as well with it does not use
    # its context.
    return contexts[torch.arange(num_tasks).roll(-1)]


def _act(
    policies: Sequence[Policy],
    shape: tuple[int, int, int],
    device: torch.device,
    protocol: Protocol,
) -> Act:
    """Join V policies of T tasks into one function of all V T E environments."""
    generator = torch.Generator().manual_seed(protocol.seed)
    # On the CPU, from a generator of its own: the same noise on every device.
    sigma = torch.tensor(_sigmas(policies)) if protocol.stochastic else None

    @torch.no_grad()
    def act(observation: NDArray[np.float32]) -> NDArray[np.float32]:
        inputs = torch.from_numpy(observation).reshape(*shape, -1).to(device)
        action = torch.stack(
            [policy(rows) for policy, rows in zip(policies, inputs, strict=True)]
        ).to("cpu", torch.float32)
        if sigma is not None:
            noise = torch.randn(action.shape, generator=generator)
            action = action + sigma[:, None, None, None] * noise
        if not torch.isfinite(action).all():
            raise FloatingPointError(
                "An adapted policy gives actions that are not finite. Check the context and the "
                "inner step sizes."
            )
        return np.asarray(action.flatten(0, 2).numpy())

    return act


def _sigmas(policies: Sequence[Policy]) -> list[float]:
    """Return the standard deviations of the policies' noise, [V]."""
    sigmas = [float(policy.sigma) for policy in policies if isinstance(policy, NoisyPolicy)]
    if len(sigmas) < len(policies):
        raise TypeError(
            "Sampled actions need policies with an attribute sigma, found one without. Set "
            "stochastic to false."
        )
    return sigmas


@contextmanager
def fixed_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators for a block, and put back their states after it."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
