"""What the agents of LifetimeBuffers reach, beside random actions and standing still."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from offline_meta_rl.behaviour.references import (
    EPISODES,
    mean_returns,
    random_returns,
    still_returns,
)
from offline_meta_rl.envs.base import Array
from offline_meta_rl.evaluation.rollout import Act


def mean_action_returns(data: Any, module: Any) -> list[float]:
    """Return what the agents' mean actions reach now, over ten episodes in each task, [T].

    Args:
        data: a LifetimeBuffers.
        module: its agents.
    """

    def act_for(_: Array) -> Act:
        def act(observation: NDArray[np.float32]) -> NDArray[np.float32]:
            rows = torch.from_numpy(observation).unflatten(0, (data.num_tasks, EPISODES))
            action: NDArray[np.float32] = module.act(rows).flatten(0, 1).numpy()
            return action

        return act

    returns: list[float] = mean_returns(data.family, act_for, **data.evaluation).tolist()
    return returns


def lifetime_references(data: Any, module: Any) -> dict[str, Any]:
    """Return the reference returns of the dataset, once the lifetimes are over.

    Args:
        data: a LifetimeBuffers.
        module: its agents.
    """
    final = mean_action_returns(data, module)
    return {
        "random": random_returns(data.family, **data.evaluation),
        "standing_still": still_returns(data.family, **data.evaluation),
        "best_behaviour": final,
        "stages": dict(zip(data.stages, [*data.stage_returns, final], strict=True)),
    }
