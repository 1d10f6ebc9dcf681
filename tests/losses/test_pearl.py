"""PEARL's encoder and losses: the paper's formulas row by row, and what they guarantee."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.utils import _pytree as pytree

from offline_meta_rl.losses.pearl import PearlNoise, pearl_losses, total_loss
from offline_meta_rl.methods.pearl import Pearl
from offline_meta_rl.networks.context_encoder import (
    Gaussians,
    context_rows,
    divergence_from_prior,
    draw_latent,
    factors,
    posterior,
    product,
)
from offline_meta_rl.networks.stacked import StackedMLP, conditioned_mlp, stacked_mlp
from tests.helpers import build
from tests.references.pearl import LOSSES, ReferencePearl
from tests.references.sac import random_batch

TASKS, ROWS, OBSERVATION, ACTION, LATENT = 3, 7, 4, 2, 3
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "dynamics": {"context_next_observation": True},
    "other_numbers": {
        "discount": 0.9,
        "reward_scale": 2.0,
        "entropy_weight": 0.3,
        "kl_weight": 0.7,
    },
    "no_regularisation": {"policy_regularisation": 0.0, "kl_weight": 0.0},
    "behaviour": {"behaviour_weight": 0.4},
    "weighted_behaviour": {"behaviour_weight": 0.4, "advantage_temperature": 0.5},
}


def make(**options: Any) -> Pearl:
    """Return small networks in double precision; the target differs from the value function."""
    sizes = {"width": 6, "depth": 2, "encoder_width": 5, "encoder_depth": 2}
    module = build(
        Pearl,
        observation_size=OBSERVATION,
        action_size=ACTION,
        latent_size=LATENT,
        **sizes,
        **options,
    ).double()
    for parameter in module.target_value.parameters():
        parameter.data.mul_(0.7)
    return module


def batches() -> tuple[dict[str, Tensor], dict[str, Tensor], PearlNoise]:
    """Return a context of fewer rows than the batch, the batch, and noise."""
    sizes = (OBSERVATION, ACTION, torch.float64)
    context, batch = random_batch(TASKS, ROWS - 2, *sizes), random_batch(TASKS, ROWS, *sizes)
    latent = torch.randn(TASKS, LATENT, dtype=torch.float64)
    return context, batch, PearlNoise(latent, torch.randn_like(batch["action"]))


def losses(
    module: Pearl, context: dict[str, Tensor], batch: dict[str, Tensor], noise: PearlNoise
) -> dict[str, Tensor]:
    weight = torch.full((TASKS,), 1.0 / TASKS, dtype=torch.float64)
    rows = context_rows(context, module.context_fields)
    targets = module.target_value.layers()
    return pearl_losses(module.learned(), targets, rows, batch, noise, weight, module.settings)


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_and_gradients_are_the_paper_s(name: str) -> None:
    module, (context, batch, noise) = make(**VARIANTS[name]), batches()
    found = losses(module, context, batch, noise)
    reference = ReferencePearl(module)
    expected = reference.losses(context, batch, noise)
    for loss in LOSSES:
        torch.testing.assert_close(found[loss], expected[loss], rtol=1e-10, atol=1e-12, msg=loss)
    learned = module.learned()
    gradients = torch.autograd.grad(total_loss(found), pytree.tree_leaves(learned))
    wanted = reference.gradients(expected)
    torch.testing.assert_close(
        list(gradients),
        [gradient for network in learned._fields for gradient in wanted[network]],
        rtol=1e-8,
        atol=1e-11,
    )


def test_each_loss_teaches_its_own_network_alone() -> None:
    module, data = make(behaviour_weight=0.4), batches()
    found = losses(module, *data)
    reached = {}
    for loss in LOSSES:
        networks = {name: getattr(module, name) for name in module.learned()._fields}
        gradients = {
            name: torch.autograd.grad(
                found[loss], list(network.parameters()), allow_unused=True, retain_graph=True
            )
            for name, network in networks.items()
        }
        reached[loss] = {
            name
            for name, each in gradients.items()
            if any(gradient is not None and gradient.abs().max() > 0 for gradient in each)
        }
    assert reached == {
        "critic": {"critics", "encoder"},
        "value": {"value"},
        "actor": {"actor"},
        "kl": {"encoder"},
    }
    shown = set(found) - set(LOSSES)
    assert shown == {
        "divergence",
        "data_value",
        "policy_value",
        "entropy",
        "behaviour_distance",
    }
    assert not any(found[name].requires_grad for name in shown)


def test_what_is_logged_is_in_its_units() -> None:
    module, (context, batch, noise) = make(), batches()
    found = losses(module, context, batch, noise)
    reference = ReferencePearl(module)
    values, divergences = [], []
    for task in range(TASKS):
        q = reference.posterior({name: each[task] for name, each in context.items()})
        z = q.mean + q.stddev * noise.latent[task]
        divergences.append(kl_divergence(q, Normal(torch.zeros_like(z), 1.0)).sum())
        rows = zip(batch["observation"][task], batch["action"][task], strict=True)
        values += [each for s, a in rows for each in reference.q_values(s, a, z)]
    torch.testing.assert_close(found["data_value"], torch.stack(values).mean().detach())
    torch.testing.assert_close(found["divergence"], torch.stack(divergences).mean().detach())


def test_reward_and_end_of_an_episode_are_hand_worked() -> None:
    """With critics of 0 the critics' loss is twice the squared target."""
    module, (context, batch, noise) = make(discount=0.5, reward_scale=3.0), batches()
    for network in (module.critics, module.target_value):
        for parameter in network.parameters():
            parameter.data.zero_()
    module.target_value.biases[-1].data.fill_(4.0)  # V_target = 4 everywhere
    batch["reward"] = torch.full_like(batch["reward"], 2.0)
    for ended, aim in ((True, 6.0), (False, 8.0)):
        batch["terminated"] = torch.full_like(batch["terminated"], ended)
        found = losses(module, context, batch, noise)
        assert found["critic"].item() == pytest.approx(2 * aim**2)


def test_smaller_rewards_with_a_smaller_temperature_are_the_same_objective() -> None:
    """What the shipped configs rely on: only the size of the values changes."""
    weights = {"reward_scale": 5.0, "kl_weight": 0.1, "policy_regularisation": 1e-3}
    behaviour = {"behaviour_weight": 0.4, "advantage_temperature": 0.5}
    first, c = make(**weights, **behaviour), 0.01
    weights = {"reward_scale": 0.05, "kl_weight": 1e-5, "policy_regularisation": 1e-5}
    second = make(entropy_weight=c, **weights, **behaviour)
    second.load_state_dict(first.state_dict())
    for network in (second.critics, second.value, second.target_value):
        for last in (network.weights[-1], network.biases[-1]):
            last.data.mul_(c)
    data = batches()
    found, smaller = losses(first, *data), losses(second, *data)
    for name, factor in (("critic", c**2), ("value", c**2), ("kl", c**2), ("actor", c)):
        torch.testing.assert_close(smaller[name], factor * found[name], msg=name)


def test_a_large_behaviour_weight_turns_the_actor_towards_the_data() -> None:
    module, (context, batch, noise) = make(behaviour_weight=1e6), batches()
    found = losses(module, context, batch, noise)
    gradients = torch.autograd.grad(found["actor"], list(module.actor.parameters()))
    for parameter, gradient in zip(module.actor.parameters(), gradients, strict=True):
        parameter.data -= 1e-8 * gradient
    after = losses(module, context, batch, noise)
    assert after["behaviour_distance"] < found["behaviour_distance"] - 1e-6


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_posterior_does_not_depend_on_the_order(order: str) -> None:
    encoder, rows = StackedMLP(1, [4, 8, 2 * LATENT]).double(), torch.randn(TASKS, 9, 4).double()
    index = torch.arange(8, -1, -1) if order == "reversed" else torch.randperm(9)
    found = posterior(encoder.layers(), rows[:, index])
    torch.testing.assert_close(found, posterior(encoder.layers(), rows), rtol=1e-12, atol=0)


@pytest.mark.parametrize("first", [1, 4])
def test_posterior_does_not_depend_on_how_the_context_is_split(first: int) -> None:
    encoder, rows = StackedMLP(1, [4, 8, 2 * LATENT]).double(), torch.randn(TASKS, 9, 4).double()
    parts = [posterior(encoder.layers(), part) for part in (rows[:, :first], rows[:, first:])]
    joined = Gaussians(*(torch.stack(pair, dim=-2) for pair in zip(*parts, strict=True)))
    torch.testing.assert_close(
        product(joined), posterior(encoder.layers(), rows), rtol=1e-12, atol=0
    )


def test_posterior_is_the_normalised_product_of_densities() -> None:
    """On a grid, with nothing but the definition."""
    gaussians = Gaussians(torch.tensor([[0.5], [-1.0], [2.0]]), torch.tensor([[0.3], [1.0], [0.6]]))
    grid = torch.linspace(-8.0, 8.0, 4001)[:, None, None]
    log_density = Normal(gaussians.mean, gaussians.variance.sqrt()).log_prob(grid)
    density = log_density.sum(dim=1)[:, 0].exp()
    density = density / density.sum()
    mean = (density * grid[:, 0, 0]).sum()
    variance = (density * (grid[:, 0, 0] - mean).square()).sum()
    found = product(gaussians)
    torch.testing.assert_close(found.mean[0], mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.variance[0], variance, rtol=1e-3, atol=1e-4)


def test_more_context_narrows_the_posterior() -> None:
    encoder, rows = StackedMLP(1, [4, 8, 2 * LATENT]), torch.randn(TASKS, 64, 4)
    variances = [posterior(encoder.layers(), rows[:, :n]).variance for n in (1, 8, 64)]
    assert (variances[0] > variances[1]).all()
    assert (variances[1] > variances[2]).all()


def test_divergence_and_draw_are_those_of_the_distributions() -> None:
    mean, variance = torch.randn(TASKS, LATENT).double(), torch.rand(TASKS, LATENT).double() + 0.1
    gaussians = Gaussians(mean, variance)
    q = Normal(mean, variance.sqrt())
    expected = kl_divergence(q, Normal(torch.zeros_like(mean), torch.ones_like(mean))).sum(dim=-1)
    torch.testing.assert_close(divergence_from_prior(gaussians), expected)
    noise = torch.randn(TASKS, LATENT).double()
    torch.testing.assert_close(
        q.log_prob(draw_latent(gaussians, noise)), _log_normal(noise, variance)
    )
    prior = Gaussians(torch.zeros(1, LATENT), torch.ones(1, LATENT))
    assert divergence_from_prior(prior).item() == 0.0


def _log_normal(noise: Tensor, variance: Tensor) -> Tensor:
    return Normal(torch.zeros_like(noise), 1.0).log_prob(noise) - 0.5 * variance.log()


def test_factor_variances_have_a_floor() -> None:
    encoder = StackedMLP(1, [2, 3, 2])
    encoder.biases[-1].data[..., 1] = -1e4
    variance = factors(encoder.layers(), torch.randn(1, 5, 2)).variance.detach()
    torch.testing.assert_close(variance, torch.full((1, 5, 1), 1e-7))


def test_conditioned_network_is_the_network_of_joined_rows() -> None:
    network = StackedMLP(2, [OBSERVATION + LATENT, 6, 5, 3]).double()
    rows, latent = torch.randn(TASKS, 4, OBSERVATION).double(), torch.randn(TASKS, LATENT).double()
    joined = torch.cat([rows, latent[:, None].expand(-1, 4, -1)], dim=-1).flatten(0, 1)
    expected = stacked_mlp(network.layers(), joined.expand(2, -1, -1)).unflatten(1, (TASKS, 4))
    torch.testing.assert_close(conditioned_mlp(network.layers(), rows, latent), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_weight": -1.0}, "kl_weight: expected at least 0, found -1.0"),
        ({"behaviour_weight": -0.1}, "behaviour_weight: expected at least 0, found -0.1"),
        ({"discount": 1.5}, "discount: expected 0 to 1, found 1.5"),
        ({"reward_scale": 0.0}, "reward_scale: expected more than 0, found 0.0"),
        ({"advantage_temperature": 1.0}, "with a behaviour_weight of more than 0, found 1.0 and 0"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(Pearl, observation_size=2, action_size=2, width=2, **options)  # type: ignore[arg-type]
