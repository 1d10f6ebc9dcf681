"""PEARL as a method: it tells tasks apart by their contexts, and refuses what does not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tensordict import TensorDict
from torch.utils import _pytree as pytree

import offline_meta_rl
from datamodules.task_buffers import TaskBuffers
from offline_meta_rl import cli
from offline_meta_rl.common.settings import arguments_of
from offline_meta_rl.data.context import context_from_episodes
from offline_meta_rl.envs.base import Array
from offline_meta_rl.losses.pearl import conditioned_actor
from offline_meta_rl.methods.pearl import FIELDS, Pearl
from tests.helpers import build
from tests.methods import tiny
from tests.methods.two_goals import collect_goals, goal_returns
from tests.references.sac import random_batch

SMALL = {"width": 16, "depth": 2, "encoder_width": 8, "encoder_depth": 1, "latent_size": 3}


def make(**options: Any) -> Pearl:
    """Return a small method for observations of size 3 and actions of size 2."""
    return build(Pearl, observation_size=3, action_size=2, **SMALL, **options)


def contexts(num_tasks: int = 4, rows: int = 9) -> TensorDict:
    return TensorDict(random_batch(num_tasks, rows, 3, 2), batch_size=[num_tasks, rows])


@pytest.fixture(scope="module")
def goals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collect_goals(tmp_path_factory.mktemp("goals"))


def settings(path: Path, **model: Any) -> dict[str, Any]:
    """Return the config of a short training on two goals."""
    found = tiny.config("Pearl", path, max_steps=500, log_every_n_steps=100)
    found["model"]["init_args"] |= {
        "network": {"width": 32, "depth": 2},
        "encoder": {"width": 32, "depth": 1, "latent_size": 2},
        "learning_rate": 3e-3,
        "target_update": 0.05,
        "losses": {
            "discount": 0.9,
            "reward_scale": 1.0,
            "entropy_weight": 0.01,
            "kl_weight": 1e-4,
            "behaviour_weight": 1.0,
            "advantage_temperature": 0.5,
        },
        **model,
    }
    found["data"]["init_args"] = {
        "env": "point_robot",
        "path": str(path),
        "batches": {"tasks": 2, "inner_size": 32, "outer_size": 64},
        "steps_per_epoch": 1200,
        "fields": [*FIELDS],
    }
    found["trainer"]["val_check_interval"] = 1200
    found["checkpoint"] = {"every_n_train_steps": 500}
    return found


def returns_of(module: Pearl, context: TensorDict, num_steps: int) -> Array:
    """Return each goal's mean return, [2], after adapting on the contexts."""
    return goal_returns(module.adapt_tasks(context, num_steps))


def test_its_context_decides_which_goal_it_goes_to(goals: Path, tmp_path: Path) -> None:
    tiny.fit(settings(goals), tmp_path)
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    module = offline_meta_rl.load(checkpoint)
    assert isinstance(module, Pearl)
    data = TaskBuffers(**arguments_of(TaskBuffers, settings(goals)["data"]["init_args"]))
    data.setup("predict")
    context = data.context([0, 1], 32, seed=0)
    references = data.dataset.manifest.reference_returns
    best, random = (np.asarray(references[name]) for name in ("best_behaviour", "random"))
    assert (returns_of(module, context, 1) > best - 0.2 * (best - random)).all()
    assert (returns_of(module, context.flip(0), 1) < random).all()  # straight to the other goal
    assert returns_of(module, context, 0).max() < best.min()  # one policy does not do for both

    cli.run(["predict", "--ckpt_path", str(checkpoint)])
    assert sorted(path.name for path in tmp_path.glob("policies/*")) == ["task_0", "task_1"]


def test_adapted_policy_is_the_actor_given_the_posterior_mean() -> None:
    module, context = make(), contexts()
    observation = torch.randn(4, 6, 3)
    latent = module.infer(context).mean
    expected = torch.tanh(conditioned_actor(module.actor.layers(), observation, latent)[0])
    for num_steps in (1, 5):
        found = module.adapt_tasks(context, num_steps)(observation)
        torch.testing.assert_close(found, expected)
    alone = module.adapt({name: value[2] for name, value in context.items()})
    torch.testing.assert_close(alone(observation[2]), expected[2])


def test_before_adaptation_it_has_the_prior_s_mean() -> None:
    module, observation = make(), torch.randn(4, 6, 3)
    prior = torch.zeros(4, SMALL["latent_size"])
    expected = torch.tanh(conditioned_actor(module.actor.layers(), observation, prior)[0])
    torch.testing.assert_close(module.adapt_tasks(contexts(), 0)(observation), expected)


def test_held_out_losses_have_always_the_same_noise() -> None:
    module, context = make(), contexts()
    state = torch.get_rng_state()
    first, second = (module.held_out_losses(context, context) for _ in range(2))
    pytree.tree_map(torch.testing.assert_close, first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_order_of_a_context_does_not_matter() -> None:
    module, context = make(), contexts()
    observation, order = torch.randn(4, 6, 3), torch.randperm(9)
    found = module.adapt_tasks(context[:, order])(observation)
    torch.testing.assert_close(found, module.adapt_tasks(context)(observation))


@pytest.mark.parametrize("dynamics", [False, True])
def test_it_sees_next_observations_where_it_is_told_to(dynamics: bool) -> None:
    module, context = make(context_next_observation=dynamics), contexts()
    other = context.clone()
    other["next_observation"] += 1.0
    same = torch.equal(module.infer(context).mean, module.infer(other).mean)
    assert same is not dynamics


def episode(**extra: Any) -> dict[str, Any]:
    arrays = {"observation": np.ones((5, 3)), "action": np.zeros((5, 2)), "reward": np.ones(5)}
    return {**arrays, **extra}


def test_it_adapts_on_recorded_episodes() -> None:
    context = context_from_episodes([episode(), episode()])
    assert context["reward"].tolist() == [1.0] * 10
    assert "next_observation" not in context.keys()
    assert make().adapt(context)(torch.zeros(2, 3)).shape == (2, 2)
    with pytest.raises(ValueError, match="action, reward, next_observation; next_observation is m"):
        make(context_next_observation=True).adapt(context)
    context = context_from_episodes([episode(next_observation=np.zeros((5, 3)))])
    policy = make(context_next_observation=True).adapt(context)
    assert policy(torch.zeros(2, 3)).shape == (2, 2)


def test_contexts_that_do_not_fit_are_refused() -> None:
    module, good = make(), contexts()[0]
    with pytest.raises(ValueError, match=r"observation, action, reward; reward is missing"):
        module.adapt(good.exclude("reward"))
    with pytest.raises(ValueError, match=r"reward .* shape \[B\], found \[9, 1\]"):
        module.adapt({**good, "reward": good["reward"][:, None]})
    bad = good["reward"].clone()
    bad[4] = torch.nan
    with pytest.raises(ValueError, match=r"reward .* NaN or inf, first in row 4"):
        module.adapt({**good, "reward": bad})
    with pytest.raises(ValueError, match=r"fields of one length .* 'reward': 7"):
        module.adapt({**good, "reward": good["reward"][:7]})


def test_discounts_of_method_and_data_are_logged_apart(goals: Path, tmp_path: Path) -> None:
    config = settings(goals)
    csv = {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path)}}
    config["trainer"] |= {"logger": [csv], "max_steps": 1}
    tiny.fit(config, tmp_path)
    (logged,) = (yaml.safe_load(path.read_text()) for path in tmp_path.rglob("hparams.yaml"))
    assert logged["losses"]["discount"] == 0.9
    assert logged["discount"] == 0.99  # of the data's returns, which PEARL does not use


def test_batches_without_the_fields_are_refused(goals: Path, tmp_path: Path) -> None:
    config = settings(goals)
    config["data"]["init_args"]["fields"] = ["observation", "action", "return_to_go"]
    with pytest.raises(ValueError, match=r"fields \['observation', .*'terminated'\], found .* Set"):
        tiny.fit(config, tmp_path)
