"""Meta-episodes: an agent tries the same hidden task several times and keeps its belief throughout.

Section 4 of The Reflective Explorer (Rafailov et al., 2021): the task is drawn and not told, the
agent does K episodes one after another, its belief is carried across them and sees the true task's
reward. Shapes: M meta-episodes, K episodes of each, H steps of an episode, D drawers, Z belief
size, A action size, T tasks. Position h of an episode holds observation o_h, what was done and
received on the way to it, and the belief after it; there are H + 1 of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from offline_meta_rl.common.statistics import share_interval
from offline_meta_rl.envs.base import Array, Bools, Engine, TaskFamily
from offline_meta_rl.evaluation.contracts import Explorer, HasDrawers
from offline_meta_rl.evaluation.rollout import one_torch_thread

Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True)
class Exploration:
    """What happened in M meta-episodes; those in which the simulator diverged are left out.

    Attributes:
        target: Index of each meta-episode's task, [M].
        reward: Reward that arrived at each position, [M, K, H + 1].
        opened: Whether each drawer was open at each position, [M, K, H + 1, D]; D is 0 where the
            environment has no drawers.
        belief: Belief after each position, [M, K, H + 1, Z] float32.
        frames: Pictures of the first F meta-episodes, [F, K, H + 1, C, h, w] uint8.
    """

    target: NDArray[np.int64]
    reward: NDArray[np.float32]
    opened: Bools
    belief: NDArray[np.float32]
    frames: NDArray[np.uint8]

    @property
    def success(self) -> Bools:
        """Whether an episode saw a reward, [M, K]: the target was reached at some step."""
        return np.asarray((self.reward > 0).any(axis=-1))

    @property
    def first_opened(self) -> NDArray[np.int64]:
        """The drawer that was open first in each episode, [M, K]; -1 where none was."""
        if not self.opened.shape[-1]:
            return np.full(self.reward.shape[:2], -1)
        when = np.where(
            self.opened.any(axis=2), self.opened.argmax(axis=2), self.reward.shape[2]
        )  # [M, K, D]
        return np.where(self.opened.any(axis=(2, 3)), when.argmin(axis=-1), -1)

    @classmethod
    def joined(cls, parts: Sequence["Exploration"]) -> "Exploration":
        """Return the meta-episodes of all parts, in order."""
        return cls(
            target=np.concatenate([part.target for part in parts]),
            reward=np.concatenate([part.reward for part in parts]),
            opened=np.concatenate([part.opened for part in parts]),
            belief=np.concatenate([part.belief for part in parts]),
            frames=np.concatenate([part.frames for part in parts]),
        )


class Share(TypedDict):
    """How often something happened.

    Attributes:
        share: Share of successes, 0 to 1; None where it was never tried.
        interval: Its 95 % interval, two numbers.
        count: How often it was tried.
    """

    share: float | None
    interval: list[float]
    count: int


class ExplorationPoint(TypedDict):
    """One episode of the meta-episodes, by the number of episodes done before it.

    Attributes:
        exploration_episodes: Episodes done before.
        success: Share of meta-episodes in which this episode reached the target.
        success_by_task: The same by the index of the target's task, as text.
        opened_any: Share of these episodes that opened a drawer, where there are drawers.
        nearest_of_opened: Share of those that opened the nearest one first.
    """

    exploration_episodes: int
    success: Share
    success_by_task: NotRequired[dict[str, Share]]
    opened_any: NotRequired[Share]
    nearest_of_opened: NotRequired[Share]


def explore(
    family: TaskFamily,
    explorer: Explorer,
    parameters: Array,
    *,
    meta_episodes: int,
    num_episodes: int,
    seed: int,
    sample_actions: bool = False,
    num_frames: int = 0,
    batch_size: int | None = None,
    num_threads: int | None = None,
) -> Exploration:
    """Run meta-episodes whose targets are balanced over the tasks.

    Args:
        family: Makes the environments; its episodes all have the horizon's length.
        explorer: Filter and policy.
        parameters: Parameters of the T tasks, [T, P].
        meta_episodes: M; at least T, and every task gets M / T of them, up to one.
        num_episodes: K.
        seed: Seed of initial states and of the noise of filter and actions. The same arguments
            give the same result; the global random state is neither used nor changed.
        sample_actions: Sample from the policy instead of taking its mean action.
        num_frames: F, meta-episodes to keep the observations of.
        batch_size: Meta-episodes that run together; None for all.
        num_threads: Threads of the simulator; None for one per core.

    Returns:
        At most M meta-episodes.

    Raises:
        ValueError: Fewer meta-episodes than tasks, or an episode that ends before the horizon.
        FloatingPointError: Actions that are not finite.
    """
    if meta_episodes < len(parameters) or num_episodes < 1:
        raise ValueError(
            f"Expected at least one meta-episode for each of {len(parameters)} tasks and one "
            f"episode, found {meta_episodes} meta-episodes of {num_episodes} episodes."
        )
    target = np.arange(meta_episodes) % len(parameters)
    size = batch_size or meta_episodes
    parts = []
    for number, first in enumerate(range(0, meta_episodes, size)):
        rows = target[first : first + size]
        # Streams by part: the meta-episodes of one do not depend on how many run in another.
        sources = np.random.SeedSequence([seed, number]).generate_state(2)
        engine = family.make_engine(parameters[rows], seed=int(sources[0]), num_threads=num_threads)
        try:
            parts.append(
                _meta_episodes(
                    engine,
                    explorer,
                    rows,
                    num_episodes=num_episodes,
                    horizon=family.horizon,
                    generator=torch.Generator().manual_seed(int(sources[1])),
                    sample_actions=sample_actions,
                    num_frames=max(0, num_frames - first),
                )
            )
        finally:
            engine.close()
    return Exploration.joined(parts)


@one_torch_thread()
@torch.no_grad()
def _meta_episodes(
    engine: Engine,
    explorer: Explorer,
    target: NDArray[np.int64],
    *,
    num_episodes: int,
    horizon: int,
    generator: torch.Generator,
    sample_actions: bool,
    num_frames: int,
) -> Exploration:
    """Run K episodes in every environment of an engine, side by side."""
    count, size = engine.num_envs, explorer.action_size
    # Once for all K episodes: section 3.6, "we do not reset the model states between episodes".
    state = explorer.begin(count)
    usable = np.ones(count, dtype=bool)
    rewards, opened, beliefs, frames = [], [], [], []
    for _ in range(num_episodes):
        observation = engine.reset()
        # As the filter was trained: nothing led to an episode's first observation.
        action, reward = np.zeros((count, size), np.float32), np.zeros(count, np.float32)
        for step in range(horizon + 1):
            # One position more than there are steps: the last observation is filtered too, so that
            # the next episode begins with all that this one told.
            noise = torch.randn(count, explorer.noise_size, generator=generator)
            image, done, received = map(torch.from_numpy, (observation, action, reward))
            state, belief = explorer.observe(state, image, done, received, noise)
            rewards.append(reward)
            opened.append(_opened(engine))
            beliefs.append(belief.float().cpu().numpy())
            frames.append(observation[:num_frames].astype(np.uint8))
            if step == horizon:
                break
            noise = torch.randn(count, size, generator=generator)
            action = explorer.act(belief, noise if sample_actions else None).float().cpu().numpy()
            _check_finite(action)
            result = engine.step(action)
            # The simulator reset itself, so the rest means nothing. Such a meta-episode is dropped
            # at the end, which keeps the others one batch.
            usable &= ~result.diverged
            if step < horizon - 1:
                ended = (result.terminated | result.truncated) & usable
                _check_length(ended, step, horizon)
            observation, reward = result.observation, result.reward.astype(np.float32)
    return Exploration(
        target=target[usable],
        reward=_by_episode(rewards, num_episodes)[usable],
        opened=_by_episode(opened, num_episodes)[usable],
        belief=_by_episode(beliefs, num_episodes)[usable],
        frames=_by_episode(frames, num_episodes)[usable[:num_frames]],
    )


def _by_episode(positions: list[NDArray[Number]], num_episodes: int) -> NDArray[Number]:
    """Stack the values of all positions, K (H + 1) times [N, ...], to [N, K, H + 1, ...]."""
    rows = np.stack(positions, axis=1)
    positions_each = len(positions) // num_episodes
    return rows.reshape(len(rows), num_episodes, positions_each, *rows.shape[2:])


def _opened(engine: Engine) -> Bools:
    """Return which drawers are open, [N, D]; [N, 0] where there are none."""
    if isinstance(engine, HasDrawers):
        return engine.opened.copy()
    return np.zeros((engine.num_envs, 0), dtype=bool)


def _check_finite(action: NDArray[np.float32]) -> None:
    if not np.isfinite(action).all():
        raise FloatingPointError(
            "The policy gives actions that are not finite. Check the training's losses and the "
            "beliefs it acts on."
        )


def _check_length(ended: Bools, step: int, horizon: int) -> None:
    if ended.any():
        raise ValueError(
            f"Expected episodes of {horizon} steps, found one that ended after {step + 1}. "
            "Meta-episodes run side by side and need one length."
        )


def share_of(hits: Bools) -> Share:
    """Return the share of true entries with its 95 % interval; None without entries."""
    low, high = share_interval(int(hits.sum()), hits.size)
    share = float(hits.mean()) if hits.size else None
    return {"share": share, "interval": [low, high], "count": int(hits.size)}


def summarise(
    exploration: Exploration, tasks: Sequence[int], nearest: int | None
) -> list[ExplorationPoint]:
    """Return how each of the K episodes of a meta-episode went.

    Args:
        exploration: What happened.
        tasks: Indices of the T tasks that ``target`` counts.
        nearest: The drawer that is opened fastest; None where there is none.
    """
    success, first = exploration.success, exploration.first_opened
    points = []
    for done in range(success.shape[1]):
        point: ExplorationPoint = {
            "exploration_episodes": done,
            "success": share_of(success[:, done]),
            "success_by_task": {
                str(task): share_of(success[exploration.target == index, done])
                for index, task in enumerate(tasks)
            },
        }
        if nearest is not None:
            opening = first[:, done]
            point["opened_any"] = share_of(opening >= 0)
            point["nearest_of_opened"] = share_of(opening[opening >= 0] == nearest)
        points.append(point)
    return points
