"""Losses against slow references, numbers worked by hand, and invariances."""

import math

import pytest
import torch

from offline_meta_rl.losses import functional


def test_value_loss_by_hand() -> None:
    value = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    target = torch.tensor([[0.0, 4.0], [3.0, 1.0]])
    expected = torch.tensor([(1 + 4) / 2, (9 + 1) / 2])
    torch.testing.assert_close(functional.value_loss(value, target), expected)


def test_log_prob_is_that_of_independent_normals() -> None:
    action, mean = torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    expected = torch.distributions.Normal(mean, 0.2).log_prob(action).sum(dim=-1)
    torch.testing.assert_close(functional.gaussian_log_prob(action, mean, 0.2), expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("standardise", [True, False])
def test_weights_equal_a_loop(temperature: float, standardise: bool) -> None:
    advantage = 4 * torch.randn(3, 16)
    weights = functional.advantage_weights(
        advantage, temperature=temperature, max_weight=20.0, standardise=standardise
    )
    for row, found in zip(advantage.tolist(), weights.tolist(), strict=True):
        mean = sum(row) / len(row) if standardise else 0.0
        variance = sum((value - mean) ** 2 for value in row) / (len(row) - 1)
        scale = math.sqrt(variance) if standardise else 1.0
        expected = [min(20.0, math.exp((value - mean) / scale / temperature)) for value in row]
        assert found == pytest.approx(expected, rel=1e-4)


def test_standardised_weights_do_not_depend_on_the_units_of_the_return() -> None:
    advantage = torch.randn(2, 32)
    options = {"temperature": 1.0, "max_weight": 20.0, "standardise": True}
    torch.testing.assert_close(
        functional.advantage_weights(advantage, **options),
        functional.advantage_weights(7.0 * advantage - 100.0, **options),
        rtol=1e-4,
        atol=1e-5,
    )


def test_equal_advantages_give_weight_one() -> None:
    weights = functional.advantage_weights(
        torch.full((2, 8), 5.0), temperature=1.0, max_weight=20.0, standardise=True
    )
    torch.testing.assert_close(weights, torch.ones(2, 8))


def test_awr_loss_by_hand() -> None:
    log_prob = torch.tensor([[-1.0, -3.0]])
    weight = torch.tensor([[2.0, 0.5]])
    torch.testing.assert_close(functional.awr_loss(log_prob, weight), torch.tensor([1.75]))


def test_advantage_loss_by_hand() -> None:
    predicted, advantage = torch.tensor([[1.0, -1.0]]), torch.tensor([[3.0, -1.0]])
    torch.testing.assert_close(functional.advantage_loss(predicted, advantage), torch.tensor([2.0]))


def test_bootstrapped_return_by_hand() -> None:
    returns = functional.bootstrapped_return(
        torch.tensor([[2.0]]), torch.tensor([[10.0]]), torch.tensor([[0.81]])
    )
    torch.testing.assert_close(returns, torch.tensor([[10.1]]))
