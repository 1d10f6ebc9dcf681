"""CQL as a method: it learns from real data, knows its tasks, and refuses what does not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.utils import _pytree as pytree

from datamodules.task_buffers import TaskBuffers
from offline_meta_rl.common.settings import arguments_of
from offline_meta_rl.envs.base import Array
from offline_meta_rl.losses.cql import Conservatism, CQLSettings
from offline_meta_rl.methods.cql import CQL
from offline_meta_rl.methods.cql_agent import FIELDS
from offline_meta_rl.networks.stacked import HiddenLayers
from tests.methods import tiny
from tests.methods.two_goals import collect_goals, goal_returns


@pytest.fixture(scope="module")
def goals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collect_goals(tmp_path_factory.mktemp("goals"))


def settings(path: Path, **model: Any) -> dict[str, Any]:
    """Return the config of a short training on two goals."""
    found = tiny.config("CQL", path, max_steps=500, log_every_n_steps=100)
    found["model"]["init_args"] = {
        "observation_size": 2,
        "action_size": 2,
        "tell_task": True,
        "network": {"width": 32},
        "losses": {
            "discount": 0.9,
            "conservatism": {"weight": 0.3, "form": "logsumexp", "num_actions": 2},
            "min_log_std": -2.0,
        },
        "learning": {
            "actor_learning_rate": 1e-3,
            "critic_learning_rate": 3e-3,
            "target_update": 0.02,
        },
        **model,
    }
    found["data"]["init_args"] = {
        "env": "point_robot",
        "path": str(path),
        "batches": {"tasks": 2, "inner_size": 1, "outer_size": 64},
        "steps_per_epoch": 1200,
        "fields": [*FIELDS, "task"],
    }
    found["trainer"]["val_check_interval"] = 1200
    found["checkpoint"] = {"every_n_train_steps": 1200}
    return found


def returns_of(checkpoint: dict[str, Any], data: TaskBuffers) -> Array:
    """Return each goal's mean return, [2], of the policy in a checkpoint."""
    module = CQL(**arguments_of(CQL, checkpoint["hyper_parameters"]))
    module.load_state_dict(checkpoint["state_dict"])
    return goal_returns(module.adapt_tasks(data.context([0, 1], 1, seed=0)))


def test_it_learns_both_goals_from_their_data(goals: Path, tmp_path: Path) -> None:
    checkpoint = tiny.fit(settings(goals), tmp_path)
    data = TaskBuffers(**arguments_of(TaskBuffers, settings(goals)["data"]["init_args"]))
    data.setup("predict")
    found = returns_of(checkpoint, data)
    references = data.dataset.manifest.reference_returns
    behaviour = np.mean([*references["stages"].values()], axis=0)
    best, random = (np.asarray(references[name]) for name in ("best_behaviour", "random"))
    assert (found > behaviour).all()
    assert (found > best - 0.3 * (best - random)).all()


def module_and_batch(**options: Any) -> tuple[CQL, TensorDict]:
    module = CQL(observation_size=2, action_size=2, network=HiddenLayers(4, depth=2), **options)
    rows = {
        "observation": torch.randn(3, 5, 2),
        "next_observation": torch.randn(3, 5, 2),
        "action": torch.rand(3, 5, 2),
        "reward": torch.rand(3, 5),
        "terminated": torch.zeros(3, 5, dtype=torch.bool),
        "task": torch.tensor([2, 0, 1])[:, None].expand(3, 5),
    }
    return module, TensorDict(rows, batch_size=[3, 5])


def test_each_task_s_policy_is_the_actor_told_that_task() -> None:
    module, batch = module_and_batch(num_tasks=3, tell_task=True)
    rows = module.transitions(batch)
    assert rows["observation"].shape == (15, 5)
    assert rows["observation"][:, 2:].argmax(1).tolist() == [2] * 5 + [0] * 5 + [1] * 5
    expected = module.agent.act(rows["observation"]).view(3, 5, 2)
    found = module.adapt_tasks(batch)(batch["observation"])
    torch.testing.assert_close(found, expected)


def test_it_adapts_to_one_task_by_its_index_alone() -> None:
    module, batch = module_and_batch(num_tasks=3, tell_task=True)
    expected = module.adapt_tasks(batch)(batch["observation"])
    alone = module.adapt({name: batch[name][1] for name in ("observation", "task")})
    torch.testing.assert_close(alone(batch["observation"][1]), expected[1])


def test_one_policy_for_all_tasks_without_their_index() -> None:
    module, batch = module_and_batch()
    found = module.adapt_tasks(batch)(batch["observation"])
    expected = module.agent.act(batch["observation"].flatten(0, 1)).view(3, 5, 2)
    torch.testing.assert_close(found, expected)


def test_contexts_without_the_task_are_refused() -> None:
    module, batch = module_and_batch(num_tasks=3, tell_task=True)
    with pytest.raises(ValueError, match=r"told its task: expected contexts with the field task"):
        module.adapt_tasks(batch.exclude("task"))


def test_batches_without_the_fields_are_refused(goals: Path, tmp_path: Path) -> None:
    config = settings(goals)
    config["data"]["init_args"]["fields"] = list(FIELDS)
    with pytest.raises(ValueError, match=r"Expected batches with the fields .*'task'\], found"):
        tiny.fit(config, tmp_path)


def test_another_number_of_tasks_is_refused(goals: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="built for num_tasks 3, the data has 2"):
        tiny.fit(settings(goals, num_tasks=3), tmp_path)


def test_held_out_losses_leave_the_random_state_alone() -> None:
    module, batch = module_and_batch(
        losses=CQLSettings(conservatism=Conservatism(form="logsumexp"))
    )
    state = torch.get_rng_state()
    first, second = (module.held_out_losses(batch, batch) for _ in range(2))
    pytree.tree_map(torch.testing.assert_close, first, second)
    assert torch.equal(torch.get_rng_state(), state)
