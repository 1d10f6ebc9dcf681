"""What actor-critics share, against tensordict's, torch's and written-out versions."""

import pytest
import torch
from tensordict.nn import NormalParamExtractor
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from offline_meta_rl.networks.actors import (
    SCALE,
    TENSORDICT_SCALE,
    BehaviourActor,
    constant,
    polyak,
    tanh_sample,
    with_target,
)
from offline_meta_rl.networks.stacked import HiddenLayers, stacked_mlp


def test_scale_of_the_policies_that_ship_is_tensordict_s_to_the_bit() -> None:
    """Their datasets are named by a digest of the policies alone."""
    numbers = torch.linspace(-20.0, 20.0, 1001)
    extractor = NormalParamExtractor(scale_mapping="biased_softplus_1.0", scale_lb=1e-3)
    _, expected = extractor(numbers.repeat_interleave(2).view(-1, 2))
    assert torch.equal(TENSORDICT_SCALE(numbers), expected[:, 0])


def test_scale_has_a_floor_and_is_one_above_it_at_zero() -> None:
    assert float(SCALE(torch.tensor(0.0))) == pytest.approx(1.001)
    assert float(SCALE(torch.tensor(-50.0))) == pytest.approx(1e-3)


def test_sample_and_density_are_those_of_torch_s_distributions() -> None:
    mean, scale = torch.randn(2, 5, 3, dtype=torch.float64).unbind(0)
    scale, noise = scale.exp(), torch.randn(5, 3, dtype=torch.float64)
    action, density = tanh_sample(mean, scale, noise)
    torch.testing.assert_close(action, torch.tanh(mean + scale * noise))
    squashed = TransformedDistribution(Independent(Normal(mean, scale), 1), TanhTransform())
    torch.testing.assert_close(density, squashed.log_prob(action), rtol=1e-7, atol=1e-7)


def test_targets_start_equal_and_follow_slowly() -> None:
    learned, target = with_target(2, [3, 4, 1])
    inputs = torch.randn(2, 5, 3)
    assert torch.equal(learned(inputs), target(inputs))
    assert not any(parameter.requires_grad for parameter in target.parameters())
    old = [parameter.clone() for parameter in target.parameters()]
    with torch.no_grad():
        for parameter in learned.parameters():
            parameter.add_(torch.randn_like(parameter))
    polyak(target.parameters(), learned.parameters(), 0.1)
    for moved, before, now in zip(target.parameters(), old, learned.parameters(), strict=True):
        torch.testing.assert_close(moved, 0.9 * before + 0.1 * now)


def test_constant_networks_pass_gradients_on_and_take_none() -> None:
    learned, _ = with_target(1, [3, 4, 1])
    inputs = torch.randn(1, 5, 3, requires_grad=True)
    stacked_mlp(constant(learned.layers()), inputs).sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in learned.parameters())


def test_behaviour_actor_s_noise_comes_from_the_generator() -> None:
    actor = BehaviourActor(3, 1, 2, HiddenLayers(8, 2))
    observation, features = torch.randn(5, 3), torch.randn(5, 1)

    def sample(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return actor.act(observation, features, stochastic=True, generator=generator)

    mean, scale = actor(observation, features)
    noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(sample(1), torch.tanh(mean + scale * noise))
    assert not torch.equal(sample(1), sample(2))
    assert torch.equal(actor.act(observation, features, stochastic=False), torch.tanh(mean))
