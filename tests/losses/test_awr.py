"""Losses against slow references, numbers worked by hand, and invariances."""

import math

import pytest
import torch

from offline_meta_rl.losses import awr
from offline_meta_rl.losses.awr import Weighting


def test_value_loss_by_hand() -> None:
    value = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    target = torch.tensor([[0.0, 4.0], [3.0, 1.0]])
    expected = torch.tensor([(1 + 4) / 2, (9 + 1) / 2])
    torch.testing.assert_close(awr.value_loss(value, target), expected)


def test_log_prob_is_that_of_independent_normals() -> None:
    action, mean = torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    expected = torch.distributions.Normal(mean, 0.2).log_prob(action).sum(dim=-1)
    torch.testing.assert_close(awr.gaussian_log_prob(action, mean, 0.2), expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("standardise", [True, False])
def test_weights_equal_a_loop(temperature: float, standardise: bool) -> None:
    advantage = 4 * torch.randn(3, 16)
    weights = awr.advantage_weights(advantage, Weighting(temperature, 20.0, standardise))
    for row, found in zip(advantage.tolist(), weights.tolist(), strict=True):
        mean = sum(row) / len(row) if standardise else 0.0
        variance = sum((value - mean) ** 2 for value in row) / (len(row) - 1)
        scale = math.sqrt(variance) if standardise else 1.0
        expected = [min(20.0, math.exp((value - mean) / scale / temperature)) for value in row]
        assert found == pytest.approx(expected, rel=1e-4)


def test_standardised_weights_do_not_depend_on_the_units_of_the_return() -> None:
    advantage = torch.randn(2, 32)
    torch.testing.assert_close(
        awr.advantage_weights(advantage, Weighting()),
        awr.advantage_weights(7.0 * advantage - 100.0, Weighting()),
        rtol=1e-4,
        atol=1e-5,
    )


def test_equal_advantages_give_weight_one() -> None:
    weights = awr.advantage_weights(torch.full((2, 8), 5.0), Weighting())
    torch.testing.assert_close(weights, torch.ones(2, 8))


def test_regression_loss_by_hand() -> None:
    mean = torch.zeros(1, 2, 1)
    action = torch.tensor([[[0.2], [0.4]]])  # one and two standard deviations away
    log_prob = [-0.5 * k**2 - math.log(0.2 * math.sqrt(2 * math.pi)) for k in (1, 2)]
    weight = torch.tensor([[2.0, 0.5]])
    expected = torch.tensor([-(2.0 * log_prob[0] + 0.5 * log_prob[1]) / 2])
    torch.testing.assert_close(awr.regression_loss(mean, action, weight, 0.2), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature: expected more than 0, found 0.0"),
        ({"max_weight": 1.0}, "max_weight: expected more than 1, found 1.0"),
        ({"sigma": 0.0}, "sigma: expected more than 0, found 0.0"),
    ],
)
def test_impossible_settings(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        awr.AWRSettings(**settings)


def test_advantage_loss_by_hand() -> None:
    predicted, advantage = torch.tensor([[1.0, -1.0]]), torch.tensor([[3.0, -1.0]])
    torch.testing.assert_close(awr.advantage_loss(predicted, advantage), torch.tensor([2.0]))


def test_bootstrapped_return_by_hand() -> None:
    returns = awr.bootstrapped_return(
        torch.tensor([[2.0]]), torch.tensor([[10.0]]), torch.tensor([[0.81]])
    )
    torch.testing.assert_close(returns, torch.tensor([[10.1]]))
