"""Drawers in the plane: open the one that is rewarded, seen in small images; no simulator.

A hand moves in front of a cabinet with two or more drawers, seen from above. To open a drawer the
hand goes to its handle and pulls it outwards; the drawer stays where it is left. The reward is 1 on
every step after which the *target* drawer is open, and the target is nowhere in the image. The
horizon is too short to open two drawers, so which one to try is the only hard decision.

The two-drawer problem of Rafailov et al., "The Reflective Explorer" (2021), section 4, reduced to
two dimensions. Shapes: N environments, D drawers. Lengths are in half widths of the image.
"""

from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray

from offline_meta_rl.envs.base import (
    Actions,
    Array,
    Bools,
    EngineState,
    StepResult,
    generator_from,
)
from offline_meta_rl.envs.drawers.image import FRONT, draw_scene
from offline_meta_rl.envs.scripted import ScriptedFamily

STEP = 0.2
"""That an action of 1 moves the hand along an axis."""
REACH = 0.15
"""A handle is held by a hand at most so far from it along each axis."""
OPEN = 0.65
"""A drawer is open when it is pulled at least so far."""
FARTHEST = 0.8
"""A drawer cannot be pulled farther."""
BORDER = 0.875
"""The hand stays within so much of the centre, and below the cabinet's front."""
PULL = 0.6
"""The script pulls when its hand is within this share of the reach. At the whole reach a policy
that stops a little earlier than the data would miss the handle."""
START_NOISE = 0.05
"""Of each coordinate of the hand's start, uniform."""
IMAGE_SIZE = 16


class DrawersLite(ScriptedFamily):
    """Drawers side by side; the tasks are their indices, from left to right.

    Args:
        name: Short name.
        env_id: Gymnasium id.
        drawers: x of each drawer's middle, from left to right.
        start: x of the hand's start, and its distance from the cabinet's front.
        horizon: Steps of an episode.

    Raises:
        ValueError: Fewer than two drawers, drawers that are not on the image or too close to each
            other, or a horizon in which two drawers can be opened.
    """

    action_size = 2
    observation_shape = (3, IMAGE_SIZE, IMAGE_SIZE)
    observation_size = 3 * IMAGE_SIZE**2
    observation_dtype = "uint8"
    script_version = 2
    script_noise = 0.25
    batch_size = 250
    drawers: tuple[float, ...]
    start: tuple[float, float]

    def __init__(
        self,
        name: str = "drawers_lite",
        env_id: str = "",
        *,
        drawers: tuple[float, ...],
        start: tuple[float, float],
        horizon: int = 12,
    ) -> None:
        gaps = np.diff(drawers)
        if len(drawers) < 2 or (gaps <= 2 * REACH).any() or np.abs(drawers).max() > BORDER:
            raise ValueError(
                f"drawers: expected at least two places from {-BORDER} to {BORDER}, from left to "
                f"right and more than {2 * REACH} apart, found {drawers}."
            )
        everything = tuple(range(len(drawers)))
        # These are class variables of most families; here each instance has its own.
        vars(self).update(
            name=name,
            env_id=env_id,
            num_tasks=len(drawers),
            horizon=horizon,
            splits={"default": (everything, everything)},
            drawers=tuple(drawers),
            start=tuple(start),
        )
        if self.fewest_steps_for_two() <= horizon:
            raise ValueError(
                f"horizon: expected less than {self.fewest_steps_for_two()}, the steps in which "
                f"two drawers can be opened, found {horizon}: one episode would be enough to try "
                "both. Shorten it, or move the drawers apart."
            )

    @property
    def nearest(self) -> int:
        """Index of the drawer that is opened fastest."""
        return int(np.argmin([self.fewest_steps(drawer) for drawer in range(self.num_tasks)]))

    def fewest_steps(self, drawer: int) -> int:
        """Return a lower bound of the steps until a drawer is open, whatever the policy."""
        aside = abs(self.drawers[drawer] - self.start[0])
        # The axes move together, so the longer way counts; the noise may start the hand nearer.
        way = max(aside, self.start[1]) - REACH - START_NOISE
        return _steps(way) + _steps(OPEN)

    def fewest_steps_for_two(self) -> int:
        """Return a lower bound of the steps until any two drawers are open, whatever the policy.

        Both drawers must be pulled, for which the hand holds one handle only, and in between it
        must come from within reach of one to within reach of the other.
        """
        pairs = [(i, j) for i in range(self.num_tasks) for j in range(self.num_tasks) if i != j]
        return min(
            self.fewest_steps(i)
            + _steps(abs(self.drawers[i] - self.drawers[j]) - 2 * REACH)
            + _steps(OPEN)
            for i, j in pairs
        )

    def task_parameters(self, seed: int) -> Array:
        """Index of the target drawer, [D, 1], whatever the seed."""
        return np.arange(self.num_tasks, dtype=np.float64)[:, None]

    def task_features(self, parameters: Array) -> NDArray[np.float32]:
        """The target drawer as a one-hot vector, [N, D]."""
        return np.eye(self.num_tasks, dtype=np.float32)[parameters[:, 0].astype(np.int64)]

    def make_engine(
        self, parameters: Array, *, seed: int, num_threads: int | None = None
    ) -> "DrawersLiteEngine":
        """Return the vectorised engine; it needs no threads."""
        return DrawersLiteEngine(self, parameters, seed=seed)

    def script(self, state: NDArray[np.float32], parameters: Array) -> Array:
        """Go to the target's handle, pull it out, then stay; [N, 2]."""
        target = parameters[:, 0].astype(np.int64)
        rows = np.arange(len(target))
        hand, opening = state[:, :2].astype(np.float64), state[rows, 2 + target]
        handle = np.stack([np.asarray(self.drawers)[target], FRONT - opening], axis=1)
        way = (handle - hand) / STEP
        held = (np.abs(handle - hand) <= PULL * REACH).all(axis=1)
        # The handle moves along with the hand, so the distance to it does not say how far to pull.
        way[held, 1] = -1.0
        way[opening >= 0.5 * (OPEN + FARTHEST)] = 0.0
        return np.clip(way, -1.0, 1.0)


class DrawersLiteEngine:
    """N hands and cabinets, one per row of ``parameters`` [N, 1].

    Attributes:
        hand: [N, 2], x to the right and y towards the cabinet.
        opening: [N, D], how far each drawer is pulled out.
    """

    def __init__(self, family: DrawersLite, parameters: Array, *, seed: int) -> None:
        self.family = family
        self.num_envs = len(parameters)
        self.target = np.asarray(parameters)[:, 0].astype(np.int64)
        self.drawers: Array = np.asarray(family.drawers, dtype=np.float64)
        self.hand: Array = np.zeros((self.num_envs, 2))
        self.opening: Array = np.zeros((self.num_envs, len(self.drawers)))
        self.elapsed: NDArray[np.int64] = np.zeros(self.num_envs, dtype=np.int64)
        self._generator = generator_from(seed)

    @property
    def opened(self) -> Bools:
        """Whether each drawer is open, [N, D]."""
        return self.opening >= OPEN

    def state(self) -> NDArray[np.float32]:
        """Hand and openings, [N, 2 + D]."""
        return np.concatenate([self.hand, self.opening], axis=1).astype(np.float32)

    def images(self, size: int = IMAGE_SIZE) -> NDArray[np.uint8]:
        """Return images [N, 3, size, size]; agents see them with ``IMAGE_SIZE`` pixels a side."""
        return draw_scene(self.hand, self.drawers, self.opening, size)

    def reset(self, mask: Bools | None = None) -> NDArray[np.uint8]:
        """Close the drawers of ``mask`` (all if None), put the hands at their start.

        Returns:
            Images of all environments, [N, 3, 16, 16].
        """
        if mask is None:
            mask = np.ones(self.num_envs, dtype=bool)
        noise = torch.rand(int(mask.sum()), 2, generator=self._generator, dtype=torch.float64)
        x, distance = self.family.start
        self.hand[mask] = np.array([x, FRONT - distance]) + START_NOISE * (2 * noise.numpy() - 1)
        self.opening[mask] = 0.0
        self.elapsed[mask] = 0
        return self.images()

    def step(self, action: Actions) -> StepResult:
        """Move every hand by its action [N, 2], clipped to [-1, 1], times 0.2.

        A handle that is within reach before and after the step is pulled along.
        """
        before = self.hand
        after = before + STEP * np.clip(action, -1.0, 1.0)
        after = np.clip(after, -BORDER, [BORDER, FRONT])
        # Before and after: a hand that slides off sideways lets go of the handle.
        beside = np.abs(np.stack([before, after])[:, :, :1] - self.drawers).max(axis=0) <= REACH
        level = np.abs(before[:, 1:] - (FRONT - self.opening)) <= REACH
        # Outwards only: drawers stay where they are left.
        pull = np.maximum(before[:, 1:] - after[:, 1:], 0.0)
        self.opening = np.minimum(self.opening + pull * (beside & level), FARTHEST)
        self.hand = after
        self.elapsed += 1
        reward = self.opened[np.arange(self.num_envs), self.target].astype(np.float64)
        never = np.zeros(self.num_envs, dtype=bool)
        return StepResult(
            observation=self.images(),
            reward=reward,
            terminated=never,
            truncated=self.elapsed >= self.family.horizon,
            diverged=never,
            reward_terms={"task": reward},
        )

    def state_dict(self) -> EngineState:
        """Hands, drawers, clocks and the generator of initial positions, as tensors."""
        return {
            "hand": torch.from_numpy(self.hand.copy()),
            "opening": torch.from_numpy(self.opening.copy()),
            "elapsed": torch.from_numpy(self.elapsed.copy()),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: EngineState) -> None:
        """Continue where ``state_dict`` was taken."""
        self.hand = state["hand"].numpy().copy()
        self.opening = state["opening"].numpy().copy()
        self.elapsed = state["elapsed"].numpy().copy()
        self._generator.set_state(state["generator"])

    def close(self) -> None:
        """Nothing to release."""


def _steps(way: float) -> int:
    """Return the steps that a way takes at least."""
    return max(0, ceil(way / STEP - 1e-9))


TWO_DRAWER_LITE = DrawersLite(
    "two_drawer_lite",
    "offline_meta_rl/TwoDrawerLite-v0",
    drawers=(-0.4375, 0.6875),
    start=(-0.1875, 0.3),
)
TWO_DRAWER_LITE_MIRRORED = DrawersLite(
    "two_drawer_lite_mirrored",
    "offline_meta_rl/TwoDrawerLiteMirrored-v0",
    drawers=(-0.6875, 0.4375),
    start=(0.1875, 0.3),
)
THREE_DRAWER_LITE = DrawersLite(
    "three_drawer_lite",
    "offline_meta_rl/ThreeDrawerLite-v0",
    drawers=(-0.6875, 0.0625, 0.8125),
    start=(-0.0625, 0.45),
)
