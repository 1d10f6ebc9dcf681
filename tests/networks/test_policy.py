"""Adaptation without a simulator: load a checkpoint, adapt, save the policy; bad input."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn

import offline_meta_rl
from offline_meta_rl.data.context import context_from_episodes
from offline_meta_rl.methods.loading import load
from offline_meta_rl.methods.macaw import Macaw
from offline_meta_rl.networks.policy import load_policy, save_policy
from tests.helpers import build

OBSERVATION_SIZE, ACTION_SIZE = 3, 2

ADAPT_WITHOUT_SIMULATOR = """
import sys
for name in ("mujoco", "gymnasium", "metaworld"):
    sys.modules[name] = None
import torch
import offline_meta_rl
from offline_meta_rl.networks.policy import save_policy
checkpoint, context, folder = sys.argv[1:]
method = offline_meta_rl.load(checkpoint)
policy = method.adapt(torch.load(context, weights_only=True))
save_policy(policy, folder, observation_size=3)
"""


@pytest.fixture
def method() -> Macaw:
    torch.manual_seed(0)
    return build(
        Macaw,
        observation_size=OBSERVATION_SIZE,
        action_size=ACTION_SIZE,
        width=8,
        latent_size=4,
        inner_policy_step=0.1,
    )


@pytest.fixture
def checkpoint(method: Macaw, tmp_path: Path) -> Path:
    path = tmp_path / "method.ckpt"
    content = {
        "state_dict": method.state_dict(),
        "hyper_parameters": {**method.hparams, "_class_path": "Macaw", "_instantiator": "cli"},
    }
    method.on_save_checkpoint(content)
    torch.save(content, path)
    return path


def make_context(size: int = 32, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "observation": torch.randn(size, OBSERVATION_SIZE, generator=generator),
        "action": torch.rand(size, ACTION_SIZE, generator=generator) * 2 - 1,
        "return_to_go": torch.randn(size, generator=generator) * 10,
    }


def test_loaded_method_adapts_as_the_trained_one(method: Macaw, checkpoint: Path) -> None:
    loaded = offline_meta_rl.load(checkpoint)
    observation = torch.randn(7, OBSERVATION_SIZE)
    adapted = method.adapt(make_context())(observation)
    torch.testing.assert_close(loaded.adapt(make_context())(observation), adapted, rtol=0, atol=0)
    # The context decides: another one gives another policy, and none the unadapted one.
    for other in (loaded.adapt(make_context(seed=2)), loaded.adapt(make_context(), num_steps=0)):
        assert not torch.allclose(other(observation), adapted, atol=1e-5)


def test_plain_policy_equals_the_batched_one(method: Macaw) -> None:
    contexts = [TensorDict(make_context(seed=seed), batch_size=[32]) for seed in range(3)]
    batched = method.adapt_tasks(torch.stack(contexts), 1)
    observation = torch.randn(3, 5, OBSERVATION_SIZE)
    actions = batched(observation)
    for task, context in enumerate(contexts):
        policy = method.adapt(context)
        assert type(policy) is nn.Sequential
        assert {type(layer) for layer in policy} == {nn.Linear, nn.ReLU, nn.Tanh}
        torch.testing.assert_close(policy(observation[task]), actions[task])


def test_no_simulator_is_needed(method: Macaw, checkpoint: Path, tmp_path: Path) -> None:
    torch.save(make_context(), tmp_path / "context.pt")
    arguments = [checkpoint, tmp_path / "context.pt", tmp_path / "policy"]
    done = subprocess.run(
        [sys.executable, "-c", ADAPT_WITHOUT_SIMULATOR, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    observation = torch.randn(4, OBSERVATION_SIZE)
    expected = method.adapt(make_context())(observation)
    program = torch.export.load(tmp_path / "policy" / "policy.pt2").module()
    torch.testing.assert_close(program(observation), expected)


def test_saved_policies_give_the_same_actions(method: Macaw, tmp_path: Path) -> None:
    policy = method.adapt(make_context())
    save_policy(policy, tmp_path, OBSERVATION_SIZE)
    program = torch.export.load(tmp_path / "policy.pt2").module()
    rebuilt = load_policy(tmp_path / "policy.pt")
    for size in (1, 2, 17):
        observation = torch.randn(size, OBSERVATION_SIZE)
        torch.testing.assert_close(program(observation), policy(observation))
        torch.testing.assert_close(rebuilt(observation), policy(observation), rtol=0, atol=0)


def test_other_modules_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"Expected an nn\.Sequential .* found Linear"):
        save_policy(nn.Linear(3, 2), tmp_path, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Expected layers of .* found Dropout"):
        save_policy(nn.Sequential(nn.Linear(3, 2), nn.Dropout()), tmp_path, 3)
    with pytest.raises(ValueError, match="observations of size 3, found observation_size=4"):
        save_policy(nn.Sequential(nn.Linear(3, 2)), tmp_path, 4)
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="is not a saved policy"):
        load_policy(tmp_path / "other.pt")


def test_checkpoint_of_another_method(checkpoint: Path) -> None:
    assert isinstance(load(checkpoint, method="Macaw"), Macaw)
    with pytest.raises(ValueError, match=r"checkpoint of Pearl, found one of .*macaw\.Macaw"):
        load(checkpoint, method="Pearl")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({"state_dict": {}}, ValueError, r"entries method and state_dict, found \['state_dict'\]"),
        ([1, 2], ValueError, "is not a checkpoint of offline_meta_rl.*found list"),
        ({"method": "nowhere.Method", "state_dict": {}}, ImportError, "nowhere.Method cannot be"),
        (
            {"method": "torch.nn.Linear", "state_dict": {}},
            ValueError,
            "does not adapt to a context",
        ),
    ],
)
def test_not_our_checkpoint(
    content: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(error, match=message):
        load(tmp_path / "other.ckpt")


def test_missing_broken_and_outgrown_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No checkpoint at .*missing\.ckpt"):
        load(tmp_path / "missing.ckpt")
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(checkpoint.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"broken\.ckpt is not a readable checkpoint"):
        load(broken)
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["width"] = 9
    torch.save(content, broken)
    with pytest.raises(ValueError, match=r"parameters in .* do not fit .*Macaw"):
        load(broken)


def test_bad_contexts(method: Macaw) -> None:
    good = make_context()
    with pytest.raises(ValueError, match="return_to_go is missing"):
        method.adapt({"observation": good["observation"], "action": good["action"]})
    with pytest.raises(ValueError, match=r"observation .* shape \[B, 3\], found \[32, 4\]"):
        method.adapt({**good, "observation": torch.zeros(32, 4)})
    with pytest.raises(ValueError, match=r"action .* shape \[B, 2\], found \[32, 5\]"):
        method.adapt({**good, "action": torch.zeros(32, 5)})
    good["action"][7, 1] = torch.nan
    with pytest.raises(ValueError, match=r"action .* NaN or inf.* row 7"):
        method.adapt(good)


def test_bootstrapped_advantages_need_the_ends_of_episodes() -> None:
    sizes = {"observation_size": OBSERVATION_SIZE, "action_size": ACTION_SIZE, "width": 8}
    method = build(Macaw, **sizes, latent_size=4, bootstrap_advantage=True)  # type: ignore[arg-type]
    context = make_context()
    with pytest.raises(ValueError, match="terminal_observation is missing"):
        method.adapt(context)
    context["terminal_observation"] = context["observation"] + 1.0
    context["terminal_discount"] = torch.full((32,), 0.5)
    assert method.adapt(context)(context["observation"]).shape == (32, ACTION_SIZE)


def test_context_from_episodes_is_hand_worked() -> None:
    episodes = [
        {"observation": np.eye(3), "action": np.zeros((3, 2)), "reward": [1.0, 2.0, 4.0]},
        {"observation": np.ones((1, 3)), "action": np.ones((1, 2)), "reward": [5.0]},
    ]
    context = context_from_episodes(episodes, discount=0.5)
    # 4; 2 + 0.5 * 4; 1 + 0.5 * 4; the next episode starts afresh.
    torch.testing.assert_close(context["return_to_go"], torch.tensor([3.0, 4.0, 4.0, 5.0]))
    assert context["observation"].shape == (4, 3)
    assert context["action"].dtype == torch.float32
    with pytest.raises(ValueError, match="at least one episode"):
        context_from_episodes([])
    with pytest.raises(ValueError, match=r"Episode 1 lacks \['reward'\]"):
        context_from_episodes([episodes[0], {"observation": [], "action": []}])
    with pytest.raises(ValueError, match="Episode 0 has parts of different lengths"):
        context_from_episodes([{**episodes[0], "reward": [1.0, 2.0]}])


def test_unknown_names_of_the_package() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        _ = offline_meta_rl.lode
