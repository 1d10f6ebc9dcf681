"""The reward a behaviour agent sees, where it differs from the family's true reward.

An ant that is paid for being alive, or charged in full for its first clumsy moves, learns to stand
still. Replays keep the summands of the reward, so that all of a replay is weighed alike whenever
the weights change; what a dataset stores is always the true reward.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TERMS = ("task", "control", "alive", "height")
"""Summands of the reward that can be weighed, where a family has them."""


@dataclass(frozen=True)
class RewardShaping:
    """Weights of the reward's summands while an agent trains.

    Args:
        family: the task family, whose own weights are the defaults.
        alive_bonus: weight of ``alive``; None for the family's.
        control_cost: weight of ``control`` when annealing starts; None for the family's.
        anneal_steps: steps until the control cost is the family's own.
        fall_penalty: taken off where an episode terminates.
        height_weight: of ``height``, where there is such a term.
    """

    family: Any
    alive_bonus: float | None = None
    control_cost: float | None = None
    anneal_steps: int = 0
    fall_penalty: float = 0.0
    height_weight: float = 0.0

    @property
    def reweighs(self) -> bool:
        """Whether the summands of the reward are needed, the penalty for falling aside."""
        return not (
            self.alive_bonus is None and self.control_cost is None and self.height_weight == 0.0
        )

    def reward(self, terms: Mapping[str, Tensor], steps: int) -> Tensor:
        """Return the reward for stored summands, without the penalty for falling.

        Args:
            terms: name -> summand, [...]; families without ``control`` have ``task`` alone.
            steps: taken so far, for annealing.
        """
        if "control" not in terms.keys():
            return terms["task"]
        own_cost = self.family.control_cost
        cost = own_cost if self.control_cost is None else self.control_cost
        cost += (own_cost - cost) * min(1.0, steps / max(1, self.anneal_steps))
        bonus = self.family.alive_bonus if self.alive_bonus is None else self.alive_bonus
        reward = terms["task"] + cost * terms["control"] + bonus * terms["alive"]
        if "height" in terms.keys():
            reward = reward + self.height_weight * terms["height"]
        return reward

    def penalise_falls(self, reward: Tensor, terminated: Tensor) -> Tensor:
        """Return the reward less the penalty where an episode terminated."""
        return torch.where(terminated, reward - self.fall_penalty, reward)
