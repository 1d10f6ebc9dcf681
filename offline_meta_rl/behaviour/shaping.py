"""The reward a behaviour agent sees, where it differs from the family's true reward.

An ant that is paid for being alive, or charged in full for its first clumsy moves, learns to stand
still. Replays keep the summands of the reward, so that all of a replay is weighed alike whenever
the weights change; what a dataset stores is always the true reward.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from offline_meta_rl.common.settings import check_at_least
from offline_meta_rl.envs.base import TaskFamily
from offline_meta_rl.envs.locomotion.family import LocomotionFamily

TERMS = ("task", "control", "alive", "height")
"""Summands of the reward that can be weighed, where a family has them."""


@dataclass(frozen=True)
class Shaping:
    """Weights of the reward's summands while an agent trains.

    Attributes:
        alive_bonus: Weight of ``alive``. None for the family's.
        control_cost: Weight of ``control`` when annealing starts. None for the family's.
        anneal_steps: Steps in all environments until the control cost is the family's own.
        fall_penalty: Taken off the reward where an episode terminates.
        height_weight: Weight of ``height``, which ants have: minus the metres above 0.8 m.

    Raises:
        ValueError: A negative number of steps.
    """

    alive_bonus: float | None = None
    control_cost: float | None = None
    anneal_steps: int = 0
    fall_penalty: float = 0.0
    height_weight: float = 0.0

    def __post_init__(self) -> None:
        """Check the number of steps."""
        check_at_least(self, 0, "anneal_steps")

    @property
    def reweighs(self) -> bool:
        """Whether the summands of the reward are needed, the penalty for falling aside."""
        return not (
            self.alive_bonus is None and self.control_cost is None and self.height_weight == 0.0
        )


class ShapedReward:
    """The reward that agents of a family see.

    Args:
        family: Its own weights hold where the settings have none.
        shaping: Settings.
    """

    def __init__(self, family: TaskFamily, shaping: Shaping) -> None:
        self.shaping = shaping
        self._own_cost = self._own_bonus = 0.0
        if isinstance(family, LocomotionFamily):
            self._own_cost, self._own_bonus = family.control_cost, family.alive_bonus

    def reward(self, terms: Mapping[str, Tensor], steps: int) -> Tensor:
        """Return the reward for stored summands, without the penalty for falling.

        Args:
            terms: Name -> summand, [...]; families without ``control`` have ``task`` alone.
            steps: Taken so far, for annealing.
        """
        if "control" not in terms.keys():
            return terms["task"]
        given = self.shaping
        cost = self._own_cost if given.control_cost is None else given.control_cost
        # Linearly from the given cost to the family's own. Without steps it is there at once.
        cost += (self._own_cost - cost) * min(1.0, steps / max(1, given.anneal_steps))
        bonus = self._own_bonus if given.alive_bonus is None else given.alive_bonus
        reward = terms["task"] + cost * terms["control"] + bonus * terms["alive"]
        if "height" in terms.keys():
            reward = reward + given.height_weight * terms["height"]
        return reward

    def penalise_falls(self, reward: Tensor, terminated: Tensor) -> Tensor:
        """Return the reward less the penalty where an episode terminated."""
        return torch.where(terminated, reward - self.shaping.fall_penalty, reward)
