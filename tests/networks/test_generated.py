"""Generated layers, their sizes, and the adapted policies."""

import pytest
import torch

from offline_meta_rl.networks import generated as networks
from offline_meta_rl.networks.layers import LayerStack, WeightTransformLinear
from offline_meta_rl.networks.policy import BatchedPolicy


@pytest.mark.parametrize(
    ("observation_size", "action_size", "policy", "value"),
    [(20, 6, 2_663_263, 2_262_901), (27, 8, 2_760_829, 2_333_601), (17, 6, 2_632_963, 2_232_601)],
    ids=["cheetah", "ant", "walker"],
)
def test_parameter_counts_are_the_authors(
    observation_size: int, action_size: int, policy: int, value: int
) -> None:
    sizes = networks.policy_sizes(observation_size, action_size, 100, 3, 32)
    stack = LayerStack(sizes, 100)
    assert sum(p.numel() for p in stack.parameters()) == policy
    stack = LayerStack(networks.value_sizes(observation_size, 100, 3), 100)
    assert sum(p.numel() for p in stack.parameters()) == value


def test_layer_is_a_linear_layer_of_generated_weights() -> None:
    layer = WeightTransformLinear(3, 2, latent_size=4)
    theta = layer.matrix @ layer.latent + layer.vector
    inputs = torch.randn(5, 3)
    expected = inputs @ theta[:6].view(3, 2) + theta[6:]
    torch.testing.assert_close(layer(inputs), expected)


def test_initial_numbers_have_the_authors_spread() -> None:
    torch.manual_seed(0)
    layer = WeightTransformLinear(100, 100, latent_size=100)
    assert layer.latent.std().item() == pytest.approx(0.01, rel=0.25)
    assert layer.matrix.abs().max().item() == pytest.approx(0.1, rel=0.01)
    assert layer.vector.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.05)


def test_rectified_head_does_not_see_negative_actions() -> None:
    thetas = [
        torch.randn(1, i * o + o) for i, o in networks.policy_sizes(3, 2, 8, depth=2, head_width=4)
    ]
    observation, action = torch.randn(1, 5, 3), -torch.rand(1, 5, 2)
    for rectify, equal in ((True, True), (False, False)):
        found = [
            networks.two_headed_forward(thetas, observation, a, rectify_action=rectify)[1]
            for a in (action, 0.1 * action)
        ]
        assert torch.equal(*found) is equal


def make_policy() -> tuple[BatchedPolicy, list[torch.Tensor]]:
    sizes = networks.policy_sizes(3, 2, 8, depth=2, head_width=4)[:3]
    thetas = [torch.randn(4, i * o + o) for i, o in sizes]
    return BatchedPolicy.from_thetas(thetas, 3, sigma=0.2), thetas


def test_batched_policy_is_the_policy_of_every_task() -> None:
    policy, thetas = make_policy()
    observation = torch.randn(4, 6, 3)
    mean = policy(observation)
    assert policy.num_tasks == 4
    torch.testing.assert_close(mean, networks.policy_forward(thetas, observation))
    for task in range(4):
        plain = policy.task(task)
        kinds = [type(module).__name__ for module in plain]
        assert kinds == ["Linear", "ReLU", "Linear", "ReLU", "Linear", "Tanh"]
        torch.testing.assert_close(plain(observation[task]), mean[task])
