"""PEARL's online learner against one agent after another, row by row, in double precision."""

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from offline_meta_rl.finetuning.pearl import FIELDS, PearlLearner
from offline_meta_rl.methods.pearl import Pearl
from tests.helpers import build
from tests.methods.tiny import difference
from tests.references.pearl import ReferencePearl
from tests.references.sac import random_batch

TASKS, ROWS, SIZE, A, Z = 3, 6, 3, 2, 2
RATE, TARGET = 1e-2, 0.1
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "regularised": {"behaviour_weight": 0.4, "advantage_temperature": 0.5},
    "dynamics": {"context_next_observation": True, "entropy_weight": 0.3},
}


def pearl(**options: Any) -> Pearl:
    """Return a small method in double precision; the target differs from the value function."""
    torch.manual_seed(4)
    widths = {"width": 6, "depth": 2, "encoder_width": 5, "encoder_depth": 1}
    rates = {"learning_rate": RATE, "target_update": TARGET}
    sizes = {"observation_size": SIZE, "action_size": A, "latent_size": Z}
    module = build(Pearl, **{**sizes, **widths, **rates, **options}).double()
    for parameter in module.target_value.parameters():
        parameter.data.mul_(0.7)
    return module


def rows(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return random_batch(TASKS, ROWS, SIZE, A, torch.float64)


def context(seed: int = 5) -> TensorDict:
    return TensorDict(rows(seed), batch_size=[TASKS, ROWS])


def observation() -> Tensor:
    return torch.randn(TASKS, 5, SIZE, dtype=torch.float64, generator=seeded(1))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class OneTask:
    """One task's agent: its own networks, its own Adam, all transitions it has seen."""

    def __init__(self, module: Pearl, own: dict[str, Tensor]) -> None:
        self.networks, self.seen = ReferencePearl(module), own
        self.groups: dict[str, list[nn.Module]] = {
            "critic": [*self.networks.critics],
            "value": [self.networks.value],
            "actor": [self.networks.actor],
        }
        self.optimizer = torch.optim.Adam(
            [p for group in self.groups.values() for net in group for p in net.parameters()],
            lr=RATE,
        )

    def observe(self, own: dict[str, Tensor]) -> None:
        self.seen = {name: torch.cat([self.seen[name], own[name]]) for name in own}

    def update(self, batch: dict[str, Tensor], latent: Tensor, action: Tensor) -> dict[str, Tensor]:
        losses = self.networks.task_losses(self.seen, batch, latent, action)
        for name, group in self.groups.items():
            leaves = [p for network in group for p in network.parameters()]
            gradients = torch.autograd.grad(losses[name], leaves, retain_graph=True)
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf.grad = gradient
        self.optimizer.step()
        moving = zip(
            self.networks.target.parameters(), self.networks.value.parameters(), strict=True
        )
        for target, value in moving:
            target.data = (1 - TARGET) * target.data + TARGET * value.data
        return losses

    def mean_action(self, one: Tensor) -> Tensor:
        z = self.networks.posterior(self.seen).mean
        return torch.tanh(self.networks.policy(one, z).base_dist.mean)


@pytest.mark.parametrize("name", VARIANTS)
def test_batched_agents_equal_a_loop_over_tasks(name: str) -> None:
    module = pearl(**VARIANTS[name])
    agents = module.fine_tuner(context())

    def own(columns: Any, task: int, kept: Any = slice(None)) -> dict[str, Tensor]:
        return {field: columns[field][task][kept] for field in FIELDS}

    singles = [OneTask(module, own(context(), task)) for task in range(TASKS)]
    generator, same = seeded(0), seeded(0)
    kept = torch.arange(ROWS) < torch.tensor([[ROWS], [ROWS - 2], [0]])
    for episode in range(2):
        new = rows(10 + episode)
        agents.observe(new, kept)
        for task, single in enumerate(singles):
            single.observe(own(new, task, kept[task]))
        for step in range(3):
            batch = rows(20 + 5 * episode + step)
            found = agents.update("sac", batch, generator)
            latent = torch.randn(TASKS, Z, generator=same).double()
            action = torch.randn(TASKS, ROWS, A, generator=same).double()
            for task, single in enumerate(singles):
                losses = single.update(own(batch, task), latent[task], action[task])
                for loss in ("critic", "value", "actor"):
                    torch.testing.assert_close(found[loss][task], losses[loss].detach())
    means = agents.act(observation())
    for task, single in enumerate(singles):
        expected = torch.stack([single.mean_action(one) for one in observation()[task]])
        torch.testing.assert_close(means[task], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("num_steps", [0, 1])
def test_starts_as_the_adapted_policy(num_steps: int) -> None:
    module = pearl()
    agents = module.fine_tuner(context(), num_steps)
    expected = module.adapt_tasks(context(), num_steps)(observation())
    torch.testing.assert_close(agents.act(observation()), expected)


def test_without_a_context_the_prior_holds_until_a_task_s_first_episode() -> None:
    module = pearl()
    agents = module.fine_tuner(context(), 0)
    kept = torch.ones(TASKS, ROWS, dtype=torch.bool)
    kept[1] = False
    agents.observe(rows(7), kept)
    mean, variance = agents.belief()
    expected = module.infer(context(7))
    torch.testing.assert_close(mean[[0, 2]], expected.mean[[0, 2]])
    torch.testing.assert_close(variance[[0, 2]], expected.variance[[0, 2]])
    assert torch.equal(mean[1], torch.zeros_like(mean[1]))
    assert torch.equal(variance[1], torch.ones_like(mean[1]))


def test_z_can_stay_that_of_the_offline_context() -> None:
    module = pearl()
    agents = module.fine_tuner(context(), infer=False)
    agents.observe(rows(7), torch.ones(TASKS, ROWS, dtype=torch.bool))
    torch.testing.assert_close(agents.belief().mean, module.infer(context()).mean)


def test_rows_that_are_not_kept_say_nothing() -> None:
    agents, others = (pearl().fine_tuner(context()) for _ in range(2))
    kept = torch.rand(TASKS, ROWS, generator=seeded(3)) < 0.5
    damaged = rows(7)
    for name in ("observation", "reward"):
        damaged[name][~kept] = torch.nan
    agents.observe(rows(7), kept)
    others.observe(damaged, kept)
    assert torch.equal(agents.belief().mean, others.belief().mean)
    assert not torch.equal(agents.belief().mean, pearl().fine_tuner(context()).belief().mean)


def test_noise_is_the_actor_s_or_sigma_wide() -> None:
    noise = torch.randn(TASKS, 5, A, dtype=torch.float64, generator=seeded(2))
    module = pearl()
    wide = module.fine_tuner(context(), sigma=0.3)
    moved = wide.act(observation(), noise) - wide.act(observation())
    torch.testing.assert_close(moved, 0.3 * noise)
    found = module.fine_tuner(context()).act(observation(), noise)
    reference, z = ReferencePearl(module), module.infer(context()).mean
    for task in range(TASKS):
        for one, normal, action in zip(observation()[task], noise[task], found[task], strict=True):
            base = reference.policy(one, z[task]).base_dist
            torch.testing.assert_close(action, torch.tanh(base.mean + base.stddev * normal))


def test_continues_where_it_was() -> None:
    def learn(agents: PearlLearner, generator: torch.Generator, first: int, last: int) -> None:
        for seed in range(first, last):
            agents.observe(rows(seed), torch.ones(TASKS, ROWS, dtype=torch.bool))
            agents.update("sac", rows(seed + 50), generator)

    module, generator = pearl(behaviour_weight=0.4), seeded(0)
    whole = module.fine_tuner(context())
    learn(whole, generator, 0, 6)
    generator = seeded(0)
    half = module.fine_tuner(context())
    learn(half, generator, 0, 3)
    resumed = module.fine_tuner(context(8), 0)
    resumed.load_state_dict(half.state_dict())
    learn(half, seeded(9), 3, 4)  # what was saved is a copy
    learn(resumed, generator, 3, 6)
    assert difference(whole.state_dict(), resumed.state_dict()) is None
    assert torch.equal(whole.act(observation()), resumed.act(observation()))


def test_defaults_are_the_checkpoint_s_and_it_is_left_alone() -> None:
    module = pearl(**VARIANTS["regularised"], final_learning_rate=0.1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    agents = module.fine_tuner(context())
    assert agents.settings == module.settings
    assert agents.target_update == TARGET
    assert agents.optimizer.param_groups[0]["lr"] == pytest.approx(RATE / 10)
    agents.update("sac", rows(1), seeded(0))
    assert difference(before, dict(module.state_dict())) is None
    given = {"entropy_weight": 0.2, "policy_regularisation": 0.0, "behaviour_weight": 0.0}
    changed = module.fine_tuner(context(), learning_rate=1e-3, target_update=0.3, **given)
    assert {name: getattr(changed.settings, name) for name in given} == given
    assert changed.settings.advantage_temperature is None
    assert changed.optimizer.param_groups[0]["lr"] == 1e-3
    assert changed.target_update == 0.3


def test_an_infinite_temperature_weighs_all_actions_alike() -> None:
    alike = pearl(behaviour_weight=0.4).fine_tuner(context())
    weighted = pearl(**VARIANTS["regularised"]).fine_tuner(context())
    infinite = pearl(**VARIANTS["regularised"]).fine_tuner(
        context(), advantage_temperature=math.inf
    )
    agents = (alike, weighted, infinite)
    found = [each.update("sac", rows(1), seeded(0))["actor"] for each in agents]
    torch.testing.assert_close(found[0], found[2])
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, r"learning_rate: expected more than 0, found 0\.0"),
        ({"target_update": 1.5}, r"target_update: expected in \(0, 1\], found 1\.5"),
        ({"sigma": -0.1}, r"sigma: expected at least 0, or None, found -0\.1"),
        ({"behaviour_weight": -1.0}, r"behaviour_weight: expected at least 0, found -1\.0"),
        ({"advantage_temperature": 0.5}, "with a behaviour_weight of more than 0"),
    ],
)
def test_settings_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pearl().fine_tuner(context(), **options)
