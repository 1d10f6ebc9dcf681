"""Point robots with two opposite goals: what a method must be able to tell apart."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from offline_meta_rl.behaviour.collect import collect
from offline_meta_rl.behaviour.collection import Collection
from offline_meta_rl.envs.base import Array
from offline_meta_rl.envs.point_robot import PointRobot
from offline_meta_rl.evaluation.rollout import run_episodes
from offline_meta_rl.networks.policy import BatchedPolicy

GOALS = np.array([[1.0, 0.0], [-1.0, 0.0]])


class TwoGoals(PointRobot):
    """Both tasks are for training and testing."""

    num_tasks = 2
    splits: ClassVar = {"default": ((0, 1), (0, 1))}

    def task_parameters(self, seed: int) -> Array:
        return GOALS


def collect_goals(folder: Path) -> Path:
    """Write the dataset of both goals; return its path."""
    return collect(TwoGoals(), folder / "dataset", Collection(transitions_per_stage=1500))


def goal_returns(policies: BatchedPolicy) -> Array:
    """Return each goal's mean return, [2], of the policies of the two tasks."""
    engine = TwoGoals().make_engine(np.repeat(GOALS, 8, axis=0), seed=3)

    @torch.no_grad()
    def act(observation: Any) -> Any:
        return policies(torch.from_numpy(observation).view(2, 8, 2)).view(16, 2).numpy()

    mean: Array = run_episodes(engine, act, 20).returns.reshape(2, 8).mean(axis=1)
    return mean
