"""Conservative Q-learning's losses: the paper's formulas row by row, and what they guarantee."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from offline_meta_rl.losses.cql import (
    Conservatism,
    CQLNoise,
    CQLParameters,
    CQLSettings,
    conservative_penalty,
    cql_losses,
    draw_cql_noise,
    values_of_actions,
)
from offline_meta_rl.networks.stacked import StackedMLP
from tests.references.cql import ReferenceCQL, q, unstack

SIZE, ACTIONS, ROWS = 5, 2, 7
UNIFORM = Conservatism(weight=0.7, num_actions=3)
LOGSUMEXP = replace(UNIFORM, form="logsumexp")
PAPER = CQLSettings(discount=0.9, conservatism=UNIFORM)
FORMS = {
    "uniform": PAPER,
    "logsumexp": replace(PAPER, conservatism=LOGSUMEXP),
    "importance_weights": replace(PAPER, conservatism=replace(LOGSUMEXP, importance_weights=True)),
    "cold_importance_weights": replace(
        PAPER, conservatism=replace(LOGSUMEXP, temperature=0.1, importance_weights=True)
    ),
    "entropy_and_floor": replace(
        PAPER, conservatism=LOGSUMEXP, entropy_weight=0.2, min_log_std=0.05
    ),
    "no_conservatism": replace(PAPER, conservatism=replace(UNIFORM, weight=0.0)),
}


class Networks:
    """Small networks in double precision; the targets differ from the critics."""

    def __init__(self) -> None:
        self.actor = StackedMLP(1, [SIZE, 6, 6, 2 * ACTIONS]).double()
        self.critics = StackedMLP(2, [SIZE + ACTIONS, 6, 6, 1]).double()
        self.targets = StackedMLP(2, [SIZE + ACTIONS, 6, 6, 1]).double()
        self.parameters = CQLParameters(self.actor.layers(), self.critics.layers())


def make_batch() -> dict[str, Tensor]:
    """Return random transitions, a third of them terminal."""
    return {
        "observation": torch.randn(ROWS, SIZE).double(),
        "next_observation": torch.randn(ROWS, SIZE).double(),
        "action": torch.rand(ROWS, ACTIONS).double() * 2 - 1,
        "reward": torch.rand(ROWS).double(),
        "terminated": torch.arange(ROWS) % 3 == 0,
    }


def noise_for(settings: CQLSettings) -> CQLNoise:
    return draw_cql_noise((ROWS, ACTIONS), settings.conservatism, dtype=torch.float64)


def losses(
    networks: Networks, batch: dict[str, Tensor], noise: CQLNoise, settings: CQLSettings
) -> dict[str, Tensor]:
    weight = torch.full((ROWS,), 1.0 / ROWS, dtype=torch.float64)
    targets = networks.targets.layers()
    return cql_losses(networks.parameters, targets, batch, noise, weight, settings)


@pytest.mark.parametrize("name", FORMS)
def test_losses_and_gradients_are_the_paper_s(name: str) -> None:
    settings, networks, batch = FORMS[name], Networks(), make_batch()
    noise = noise_for(settings)
    found = losses(networks, batch, noise, settings)
    reference = ReferenceCQL(networks.actor, networks.critics, networks.targets, settings)
    critic, actor = reference.losses(batch, noise)
    total = found["critic"] + found.get("penalty", torch.zeros(()))
    torch.testing.assert_close(total, critic.detach(), rtol=1e-12, atol=1e-12, check_dtype=False)
    torch.testing.assert_close(found["actor"], actor.detach(), rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(total + found["actor"], pytree.tree_leaves(networks.parameters))
    expected = reference.gradients(batch, noise)
    torch.testing.assert_close(
        list(gradients), expected["actor"] + expected["critics"], rtol=1e-9, atol=1e-12
    )


def test_what_is_logged() -> None:
    networks, batch, noise = Networks(), make_batch(), noise_for(PAPER)
    found = losses(networks, batch, noise, PAPER)
    critics = [unstack(networks.critics, index) for index in range(2)]
    rows = zip(batch["observation"], batch["action"], strict=True)
    values = [q(critic, b, a) for b, a in rows for critic in critics]
    torch.testing.assert_close(found["value"], torch.stack(values).mean().detach())
    assert not any(found[name].requires_grad for name in ("value", "policy_value", "entropy"))


def test_weight_zero_samples_and_computes_nothing_conservative(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = replace(PAPER, conservatism=replace(LOGSUMEXP, weight=0.0))
    noise = noise_for(settings)
    assert [values.shape[1] for values in noise[2:]] == [0, 0, 0]
    seen = []

    def counted(critics: object, observation: Tensor, actions: Tensor) -> Tensor:
        seen.append(actions.shape[1])
        return values_of_actions(critics, observation, actions)  # type: ignore[arg-type]

    monkeypatch.setattr("offline_meta_rl.losses.cql.values_of_actions", counted)
    found = losses(Networks(), make_batch(), noise, settings)
    assert "penalty" not in found
    assert seen == [1, 1, 1]  # target, data, actor: one action each


@pytest.mark.parametrize("form", ["uniform", "logsumexp"])
def test_a_constant_critic_costs_nothing_and_the_highest_value_costs_most(form: str) -> None:
    settings = replace(UNIFORM, form=form)  # type: ignore[arg-type]
    sampled, data = torch.full((2, 4, 6), 3.0), torch.full((2, 4), 3.0)
    flat = conservative_penalty(sampled, data, torch.zeros(4, 6), settings)
    torch.testing.assert_close(flat, torch.zeros(2, 4))
    sampled = torch.tensor([0.0, 0.0, 4.0]).expand(2, 1, 3).clone().requires_grad_()
    penalty = conservative_penalty(sampled, torch.zeros(2, 1), torch.zeros(1, 3), settings)
    (gradient,) = torch.autograd.grad(penalty.sum(), sampled)
    share = gradient[0, 0] / gradient[0, 0].sum()
    assert share[2] == pytest.approx(1 / 3) if form == "uniform" else share[2] > 0.9


def test_importance_weights_spare_the_actions_of_a_narrow_actor() -> None:
    # Finding: a density of e^8 divides the exponential of the actor's own action to nothing.
    values = torch.tensor([1.0, 1.0]).expand(2, 1, 2).clone().requires_grad_()
    density = torch.tensor([[-1.4, 8.0]])  # uniform in two dimensions, narrow actor
    for weighted, share in ((True, 1e-3), (False, 0.5)):
        settings = replace(LOGSUMEXP, importance_weights=weighted)
        penalty = conservative_penalty(values, torch.zeros(2, 1), density, settings)
        (gradient,) = torch.autograd.grad(penalty.sum(), values)
        assert float(gradient[0, 0, 1]) == pytest.approx(share, abs=1e-3)


def test_the_first_layer_is_shared_by_all_actions() -> None:
    networks = Networks()
    observation, actions = torch.randn(ROWS, SIZE).double(), torch.randn(ROWS, 4, ACTIONS).double()
    found = values_of_actions(networks.critics.layers(), observation, actions)
    inputs = torch.cat([observation[:, None].expand(-1, 4, -1), actions], dim=-1)
    for index in range(2):
        expected = unstack(networks.critics, index)(inputs)[..., 0]
        torch.testing.assert_close(found[index], expected, rtol=1e-12, atol=1e-12)


def test_noise_is_drawn_from_the_global_state_in_order() -> None:
    torch.manual_seed(3)
    whole = draw_cql_noise((6, ACTIONS), LOGSUMEXP)
    torch.manual_seed(3)
    again = draw_cql_noise((6, ACTIONS), LOGSUMEXP)
    pytree.tree_map(torch.testing.assert_close, tuple(whole), tuple(again))
    assert whole.uniform.shape == (6, 3, ACTIONS)
    assert whole.uniform.abs().max() <= 1
    assert whole.uniform.min() < -0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "max"}, "form: expected uniform or logsumexp, found 'max'"),
        ({"weight": -1.0}, "weight: expected at least 0, found -1.0"),
        ({"temperature": 0.0}, "temperature: expected more than 0, found 0.0"),
        ({"num_actions": 0}, "num_actions: expected at least 1, found 0"),
        ({"entropy_weight": -0.1}, "entropy_weight: expected at least 0"),
        ({"discount": 1.5}, "discount: expected 0 to 1, found 1.5"),
        ({"min_log_std": 3.0}, "min_log_std: expected less than 2.0, found 3.0"),
    ],
)
def test_bad_settings(change: dict[str, Any], message: str) -> None:
    part = Conservatism if change.keys() <= vars(UNIFORM).keys() else CQLSettings
    with pytest.raises(ValueError, match=message):
        part(**change)
