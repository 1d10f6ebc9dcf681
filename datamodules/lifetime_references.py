"""What the agents of LifetimeBuffers reach, beside random actions and standing still."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.lifetimes import Lives
from offline_meta_rl.behaviour.learning import ActsInEnvironments
from offline_meta_rl.behaviour.references import (
    EPISODES,
    mean_returns,
    random_returns,
    still_returns,
)
from offline_meta_rl.envs.base import Array
from offline_meta_rl.evaluation.rollout import Act


def mean_action_returns(lives: Lives, agents: ActsInEnvironments) -> list[float]:
    """Return the agents' mean returns with mean actions, over ten episodes in each task, [T]."""

    def act_for(_: Array) -> Act:
        def act(observation: NDArray[np.float32]) -> NDArray[np.float32]:
            rows = torch.from_numpy(observation).unflatten(0, (len(lives.tasks), EPISODES))
            action: NDArray[np.float32] = agents.act(rows).flatten(0, 1).numpy()
            return action

        return act

    returns: list[float] = mean_returns(lives.family, act_for, **lives.evaluation).tolist()
    return returns


def lifetime_references(
    lives: Lives, agents: ActsInEnvironments, stage_returns: Sequence[list[float]]
) -> dict[str, list[float] | dict[str, list[float]]]:
    """Return the reference returns of the dataset, once the lifetimes are over.

    Args:
        lives: The lifetimes.
        agents: The agents at the end of their lifetimes.
        stage_returns: ``mean_action_returns`` at the end of every stage but the last, [T] each.
    """
    final = mean_action_returns(lives, agents)
    return {
        "random": random_returns(lives.family, **lives.evaluation).tolist(),
        "standing_still": still_returns(lives.family, **lives.evaluation).tolist(),
        "best_behaviour": final,
        "stages": dict(zip(lives.stages, [*stage_returns, final], strict=True)),
    }
