"""Checkpoints and settings of explorers and of CQL from earlier versions."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import offline_meta_rl
from datamodules.meta_trajectories import BeliefBatches, MetaTrajectories
from datamodules.sampling.stitched import HeldOutEpisodes
from offline_meta_rl import cli
from offline_meta_rl.behaviour.collection import Collection
from offline_meta_rl.common.settings import arguments_of
from offline_meta_rl.losses.cql import Conservatism, CQLSettings
from offline_meta_rl.methods.belief_filter import FilterLearning
from offline_meta_rl.methods.cql import CQL
from offline_meta_rl.methods.cql_agent import AgentLearning
from offline_meta_rl.methods.reflective_explorer import ReflectiveExplorer
from offline_meta_rl.networks.filter.recurrent import RecurrentSizes
from offline_meta_rl.networks.filter.two_level import TwoLevelSizes
from offline_meta_rl.networks.stacked import HiddenLayers
from tests.methods import tiny

AGENT = {
    "width": 8,
    "depth": 1,
    "actor_learning_rate": 2e-4,
    "critic_learning_rate": 4e-4,
    "discount": 0.9,
    "target_update": 0.02,
    "conservative_weight": 0.5,
    "conservative_form": "logsumexp",
    "conservative_temperature": 0.1,
    "num_actions": 2,
    "importance_weights": False,
    "entropy_weight": 0.02,
    "min_log_std": -2.0,
    "compile": False,
    "clip_gradient_norm": None,
}
EXPLORER = {
    **AGENT,
    "observation_shape": [3, 5, 4],
    "action_size": 2,
    "filter_steps": 5,
    "filter_from": None,
    "latent": "recurrent",
    "latent_sizes": {"random_size": 3, "deterministic_size": 4, "hidden_size": 6},
    "image_network": "dense",
    "image_size": 6,
    "hidden_size": 6,
    "reward_std": 0.2,
    "reward_weight": 10.0,
    "prior_reward_weight": 3.0,
    "autocast": False,
    "filter_learning_rate": 1e-3,
    "final_filter_learning_rate": 0.3,
    "final_policy_learning_rate": 0.1,
}
LOSS = CQLSettings(
    discount=0.9,
    conservatism=Conservatism(weight=0.5, form="logsumexp", temperature=0.1, num_actions=2),
    entropy_weight=0.02,
    min_log_std=-2.0,
)


def old_checkpoint(folder: Path, *, step: int = 10) -> Path:
    """Write what the one module, which trained filter and policy, would have written."""
    module = ReflectiveExplorer(**arguments_of(ReflectiveExplorer, EXPLORER))
    content = {
        "method": "offline_meta_rl.methods.reflective_explorer.ReflectiveExplorer",
        "state_dict": {f"explorer.{name}": value for name, value in module.state_dict().items()},
        "hyper_parameters": EXPLORER,
        "global_step": step,
        "random_state": {"cpu": torch.get_rng_state()},
        "epoch": 0,
        "pytorch-lightning_version": "2.6.0",
        "callbacks": {},
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / "last.ckpt")
    return folder / "last.ckpt"


def test_settings_of_an_explorer() -> None:
    found = arguments_of(ReflectiveExplorer, EXPLORER)
    assert found["losses"] == LOSS
    assert found["network"] == HiddenLayers(width=8, depth=1)
    assert found["learning"] == AgentLearning(2e-4, 4e-4, 0.1, 0.02)
    assert found["filter_learning"] == FilterLearning(1e-3, 0.3)
    assert found["filter_steps"] == 5
    sizes = RecurrentSizes(random_size=3, deterministic_size=4, hidden_size=6)
    assert (found["filter"].latent, found["filter"].recurrent) == ("recurrent", sizes)
    assert found["filter"].prior_reward_weight == 3.0
    default = arguments_of(ReflectiveExplorer, {"latent": "two_level", "latent_sizes": None})
    assert default["filter"].two_level == TwoLevelSizes()
    other = {"latent": "two_level", "latent_sizes": {"first_size": 7}}
    assert arguments_of(ReflectiveExplorer, other)["filter"].two_level.first_size == 7


@pytest.mark.parametrize(("old", "told"), [(0, False), (7, True)])
def test_settings_of_cql(old: int, told: bool) -> None:
    given = {**AGENT, "observation_size": 2, "action_size": 2, "one_hot_tasks": old}
    module = CQL(**arguments_of(CQL, given))
    assert module.code_size == old
    assert module.hparams["tell_task"] is told
    assert module.agent.settings == LOSS


def test_settings_of_the_data() -> None:
    old = {
        "belief_meta_trajectories": 9,
        "policy_batch_size": 8,
        "policy_updates_per_batch": 7,
        "boundary_transitions": True,
        "validation_share": 0.2,
        "probe_meta_trajectories": 6,
        "collect_seed": 1,
        "task_seed": 2,
        "transitions_per_stage": 3,
    }
    found = arguments_of(MetaTrajectories, old)
    assert found["beliefs"] == BeliefBatches(9, 8, 7, True)
    assert found["held_out"] == HeldOutEpisodes(0.2, 6)
    assert found["collection"] == Collection(seed=1, task_seed=2, transitions_per_stage=3)


def test_an_explorer_of_one_module_is_loaded(tmp_path: Path) -> None:
    path = old_checkpoint(tmp_path)
    found = offline_meta_rl.load(path, method="ReflectiveExplorer").state_dict()
    old = torch.load(path, weights_only=True)["state_dict"]
    assert {f"explorer.{name}" for name in found} == set(old)
    assert all(torch.equal(value, old[f"explorer.{name}"]) for name, value in found.items())


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.dataset(tmp_path_factory.mktemp("old"))


def settings(data_path: Path) -> dict[str, Any]:
    """Return a config of today with the networks of the old checkpoint."""
    found = tiny.config("ReflectiveExplorer", data_path)
    found["model"]["init_args"] |= {"network": {"width": 8, "depth": 1}, "filter_from": None}
    return found


def test_its_training_is_not_resumed(data_path: Path, tmp_path: Path) -> None:
    path = old_checkpoint(tmp_path / "old")
    message = r"by one module, and its training cannot be resumed. Test it .* --model.filter_from"
    with pytest.raises(ValueError, match=message):
        tiny.fit(settings(data_path), tmp_path, "--ckpt_path", str(path))


def test_its_filter_is_used_once_it_is_trained(data_path: Path, tmp_path: Path) -> None:
    path = old_checkpoint(tmp_path / "old", step=5)
    wanted = settings(data_path)
    wanted["model"]["init_args"]["filter_from"] = str(path)
    found = tiny.fit(wanted, tmp_path)["state_dict"]
    old = torch.load(path, weights_only=True)["state_dict"]
    names = [name for name in found if name.startswith("filter.")]
    assert names
    assert all(torch.equal(found[name], old[f"explorer.{name}"]) for name in names)
    wanted["model"]["init_args"]["filter_from"] = str(old_checkpoint(tmp_path / "half", step=4))
    with pytest.raises(ValueError, match="has had 4 of 5 updates"):
        tiny.fit(wanted, tmp_path)


def test_old_names_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fit", "--model", "ReflectiveExplorer", "--data", "MetaTrajectories"]
    names = {
        "--model.conservative_weight=0": "model.losses.conservatism.weight",
        "--model.latent_sizes={random_size: 3}": "model.filter.recurrent or filter.two_level",
        "--data.policy_batch_size=3": "data.beliefs.batch_size",
    }
    for option, new in names.items():
        old = option.partition("=")[0].removeprefix("--")
        with pytest.raises(SystemExit, match=re.escape(f"{old} is {new} now")):
            cli.main([*arguments, option])
