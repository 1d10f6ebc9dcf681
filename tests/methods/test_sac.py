"""SAC's update against its losses written out row by row (Haarnoja et al., 2018).

Two departures, both TorchRL's: the critics' error is a smooth L1 instead of half a square, and the
temperature's loss is linear in its logarithm instead of in itself; the sign of its gradient, and
where it vanishes, are the same.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from offline_meta_rl.methods.sac import SAC
from tests.helpers import Batches, quiet_trainer

ROWS, DISCOUNT, TARGET_ENTROPY = 5, 0.9, -2.0
TERMINATED, TRUNCATED = 1, 3  # rows whose episode ended there


def make() -> SAC:
    module = SAC(
        observation_size=3,
        task_feature_size=1,
        action_size=2,
        hidden_size=6,
        discount=DISCOUNT,
        target_update=0.1,
    )
    with torch.no_grad():
        module.loss.log_alpha.fill_(-0.7)
        for name, target in module.loss.named_buffers():
            if "target_qvalue" in name:
                target.add_(0.3 * torch.randn_like(target))
    return module


def transitions() -> TensorDict:
    ended = torch.zeros(2, ROWS, 1, dtype=torch.bool)
    ended[0, TERMINATED] = ended[1, TERMINATED] = ended[1, TRUNCATED] = True
    following = {
        "observation": torch.randn(ROWS, 3),
        "task_features": torch.randn(ROWS, 1),
        "reward": torch.randn(ROWS, 1),
        "terminated": ended[0],
        "done": ended[1],
    }
    batch = {
        "observation": torch.randn(ROWS, 3),
        "task_features": following["task_features"],
        "action": torch.rand(ROWS, 2) * 2 - 1,
        "next": following,
    }
    return TensorDict(batch, batch_size=[ROWS])


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Make every standard normal draw of a distribution the same [ROWS, 2]."""
    drawn = torch.randn(ROWS, 2)
    monkeypatch.setattr("torch.distributions.normal._standard_normal", lambda *_, **__: drawn)
    return drawn


def critics(module: SAC, *, target: bool) -> list[Tensor]:
    """Return biases and weights of three layers, [2, ...] for the two critics."""
    named = module.loss.named_buffers() if target else module.loss.named_parameters()
    prefix = "target_qvalue_network_params" if target else "qvalue_network_params"
    found = sorted((name, tensor) for name, tensor in named if name.startswith(prefix))
    assert len(found) == 6
    return [tensor for _, tensor in found]


def q_value(layers: list[Tensor], index: int, *inputs: Tensor) -> Tensor:
    """Return one critic's value of one (observation, task features, action)."""
    hidden = torch.cat(inputs)
    for number in range(3):
        bias, weight = layers[2 * number][index], layers[2 * number + 1][index]
        hidden = weight @ (torch.relu(hidden) if number else hidden) + bias
    return hidden[0]


def sample(module: SAC, observation: Tensor, features: Tensor, noise: Tensor) -> Any:
    """Return a row's action and its log density after the tanh."""
    loc, scale = module.actor(observation, features)
    before = loc + scale * noise
    normal = -0.5 * noise.square() - scale.log() - 0.5 * math.log(2 * math.pi)
    return before.tanh(), (normal - torch.log(1 - before.tanh().square())).sum()


def reference(module: SAC, batch: TensorDict, noise: Tensor) -> dict[str, Tensor]:
    """Return the three losses of a batch, one row after another."""
    now, target = critics(module, target=False), critics(module, target=True)
    constant = [tensor.detach() for tensor in now]
    log_alpha = module.loss.log_alpha
    alpha = log_alpha.detach().exp()
    critic_loss, actor_loss, alpha_loss = [], [], []
    for row in range(ROWS):
        state = batch["observation"][row], batch["task_features"][row]
        following = batch["next", "observation"][row], batch["next", "task_features"][row]
        with torch.no_grad():
            action, log_prob = sample(module, *following, noise[row])
            value = min(q_value(target, i, *following, action) for i in range(2)) - alpha * log_prob
            bootstrap = 0.0 if batch["next", "terminated"][row] else DISCOUNT * value
            y = batch["next", "reward"][row, 0] + bootstrap
        for index in range(2):
            error = (q_value(now, index, *state, batch["action"][row]) - y).abs()
            critic_loss.append(0.5 * error.square() if error < 1 else error - 0.5)
        action, log_prob = sample(module, *state, noise[row])
        actor_loss.append(
            alpha * log_prob - min(q_value(constant, i, *state, action) for i in range(2))
        )
        alpha_loss.append(-log_alpha * (log_prob.detach() + TARGET_ENTROPY))
    return {
        "loss_qvalue": torch.stack(critic_loss).sum() / ROWS,
        "loss_actor": torch.stack(actor_loss).mean(),
        "loss_alpha": torch.stack(alpha_loss).mean(),
    }


def update(module: SAC, batch: TensorDict) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return gradients by name and metrics of an outer step whose optimizer does nothing."""
    seen: dict[int, Tensor] = {}

    def apply_gradients(parameters: Any, gradients: Any, metrics: Any) -> Any:
        seen.update(zip(map(id, parameters), gradients, strict=True))
        return metrics

    module.apply_gradients = apply_gradients  # type: ignore[method-assign]
    metrics = module.outer_step(batch)
    return {name: seen[id(p)] for name, p in module.named_parameters() if id(p) in seen}, metrics


def test_losses_and_gradients_equal_the_slow_reference(noise: Tensor) -> None:
    module, batch = make(), transitions()
    losses = reference(module, batch, noise)
    names, parameters = zip(*module.named_parameters(), strict=True)
    expected = torch.autograd.grad(sum(losses.values()), parameters)  # type: ignore[arg-type]
    found, metrics = update(module, batch)
    assert set(found) == set(names)
    for name in ("loss_qvalue", "loss_actor"):
        torch.testing.assert_close(metrics[name], losses[name].detach(), rtol=1e-5, atol=1e-5)
    for name, gradient in zip(names, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_only_a_terminated_episode_ends_the_bootstrap(noise: Tensor) -> None:
    """What follows counts after a truncation, and not after a termination."""
    module, batch = make(), transitions()
    before = module.loss(batch)["loss_qvalue"].detach()
    for row, counts in ((TERMINATED, False), (TRUNCATED, True), (0, True)):
        changed = batch.clone()
        changed["next", "observation"][row] += 5.0
        found = module.loss(changed)["loss_qvalue"].detach()
        expected = reference(module, changed, noise)["loss_qvalue"].detach()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(found, before) is not counts


def test_targets_follow_the_critics_slowly(noise: Tensor) -> None:
    module = make()
    old = [tensor.clone() for tensor in critics(module, target=True)]
    update(module, transitions())
    now = critics(module, target=False)
    for target, before, critic in zip(critics(module, target=True), old, now, strict=True):
        torch.testing.assert_close(target, 0.9 * before + 0.1 * critic)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_an_update_moves_every_weight_as_plain_adam_would(noise: Tensor, tmp_path: Path) -> None:
    """The whole path: losses, gradients, Lightning's optimizer step."""
    module, batch = make(), transitions()
    plain = make()
    plain.load_state_dict(module.state_dict())
    optimizer = torch.optim.Adam(plain.learned_parameters(), lr=plain.learning_rate, fused=False)
    losses = plain.loss(batch)
    sum(losses[f"loss_{name}"] for name in ("actor", "qvalue", "alpha")).backward()  # type: ignore[union-attr]
    optimizer.step()
    trainer = quiet_trainer(tmp_path, max_steps=1)
    trainer.fit(module, train_dataloaders=Batches(batch[None]))
    for (name, found), expected in zip(module.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, expected, msg=lambda text, name=name: f"{name}: {text}")
