"""Ablations and value targets of MACAW against the slow reference, and what they refuse."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from offline_meta_rl.losses import awr
from offline_meta_rl.methods.macaw import Macaw
from tests.helpers import build, make_dataset, quiet_trainer, task_buffers
from tests.references import macaw as reference

TASKS, ROWS = 3, 16
DISCOUNT, LAMBDA, EXPECTILE = 0.9, 0.6, 0.8
DOUBLE: Any = {"dtype": torch.float64}


def make(**options: Any) -> Macaw:
    sizes = {"width": 8, "head_width": 5, "latent_size": 6}
    steps = {"inner_policy_step": 0.03, "inner_value_step": 0.03}
    return build(Macaw, observation_size=4, action_size=2, **sizes, **steps, **options).double()  # type: ignore[arg-type]


def batches() -> list[dict[str, Tensor]]:
    made = [reference.random_batch(TASKS, ROWS, 4, 2, **DOUBLE) for _ in range(2)]
    for batch in made:
        batch["reward"] = torch.randn(TASKS, ROWS, **DOUBLE)
        batch["next_observation"] = torch.randn(TASKS, ROWS, 4, **DOUBLE)
        batch["terminated"] = torch.rand(TASKS, ROWS) < 0.3
    return made


def assert_gradient_is_the_references(module: Macaw, **variant: Callable[..., Tensor]) -> None:
    inner, outer = batches()
    for parameter in module.parameters():  # one value for all tensors would hide a mix-up
        if parameter.ndim == 2 and parameter.shape[1] in (2, 3, 4) and parameter.max() < -3:
            parameter.data += torch.rand_like(parameter)
    parameters = module.meta_parameters()
    weight = torch.full((TASKS,), 1 / TASKS, **DOUBLE)
    gradient, _ = module.outer_gradient(parameters, inner, outer, weight)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    leaves = zip(pytree.tree_leaves(parameters), pytree.tree_leaves(gradient), strict=True)
    found = {names[id(parameter)]: value for parameter, value in leaves}
    steps = module.settings.inner.num_steps
    expected = reference.meta_gradient(module, inner, outer, steps, **variant)
    assert set(found) == set(expected) == {name for name, _ in module.named_parameters()}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-12, msg=name)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("layer", ["plain", "bias_transform"])
def test_layers_without_weight_transform(layer: str, steps: int) -> None:
    assert_gradient_is_the_references(make(layer=layer, num_inner_steps=steps))


def test_no_enriched_loss() -> None:
    assert_gradient_is_the_references(make(advantage_coefficient=0.0))


def test_maml_awr_has_neither() -> None:
    module = make(advantage_coefficient=0.0, layer="plain", match_parameters=True)
    assert_gradient_is_the_references(module)
    wanted = sum(parameter.numel() for parameter in make().policy.parameters())
    assert sum(p.numel() for p in module.policy.parameters()) == pytest.approx(wanted, rel=0.05)


def td_lambda_target(layers: Sequence[reference.Layer], batch: reference.Batch) -> Tensor:
    """Written out row by row."""
    rows = []
    for row in range(ROWS):
        following = reference.value(layers, batch["next_observation"][row : row + 1])[0]
        following = 0.0 if batch["terminated"][row] else following
        one_step = batch["reward"][row] + DISCOUNT * following
        rows.append((1 - LAMBDA) * one_step + LAMBDA * batch["return_to_go"][row])
    return torch.stack(rows)


@pytest.mark.parametrize("steps", [1, 3])
def test_td_lambda(steps: int) -> None:
    module = make(
        value_target="td_lambda", td_lambda=LAMBDA, discount=DISCOUNT, num_inner_steps=steps
    )
    assert_gradient_is_the_references(module, target=td_lambda_target)


def expectile_error(estimate: Tensor, target: Tensor) -> Tensor:
    """Written out row by row."""
    rows = []
    for value, wanted in zip(estimate, target, strict=True):
        weight = EXPECTILE if wanted > value else 1 - EXPECTILE
        rows.append(weight * (wanted - value) ** 2)
    return torch.stack(rows).mean()


@pytest.mark.parametrize("steps", [1, 3])
def test_expectile(steps: int) -> None:
    module = make(value_target="expectile", expectile=EXPECTILE, num_inner_steps=steps)
    assert_gradient_is_the_references(module, error=expectile_error)


def test_lambda_1_is_monte_carlo_and_0_is_td_0() -> None:
    batch = batches()[0]
    following = torch.randn(TASKS, ROWS, **DOUBLE)
    returns, reward, terminated = (batch[name] for name in ("return_to_go", "reward", "terminated"))

    def target(td_lambda: float) -> Tensor:
        return awr.td_lambda_return(
            returns, reward, following, terminated, discount=DISCOUNT, td_lambda=td_lambda
        )

    assert torch.equal(target(1.0), returns)
    torch.testing.assert_close(target(0.0), reward + DISCOUNT * following * ~terminated)


def test_lambda_return_of_consistent_values_is_the_return() -> None:
    """With V the true return of a deterministic episode every lambda gives that return."""
    reward = torch.randn(1, 9, **DOUBLE)
    returns = torch.zeros(1, 10, **DOUBLE)
    for step in reversed(range(9)):
        returns[0, step] = reward[0, step] + DISCOUNT * returns[0, step + 1]
    terminated = torch.arange(9)[None] == 8
    for td_lambda in (0.0, 0.3, 1.0):
        found = awr.td_lambda_return(
            returns[:, :-1],
            reward,
            returns[:, 1:],
            terminated,
            discount=DISCOUNT,
            td_lambda=td_lambda,
        )
        torch.testing.assert_close(found, returns[:, :-1])


@pytest.mark.parametrize(("expectile", "fraction"), [(0.5, 0.5), (0.9, 0.9)])
def test_expectile_of_two_returns(expectile: float, fraction: float) -> None:
    """The expectile of 0 and 1 is tau: the minimum of the loss lies there."""
    value = torch.linspace(0, 1, 1001, **DOUBLE)[:, None].expand(-1, 2)
    target = torch.tensor([0.0, 1.0], **DOUBLE)
    loss = awr.expectile_loss(value, target, expectile)
    assert value[loss.argmin(), 0].item() == pytest.approx(fraction, abs=1e-9)
    if expectile == 0.5:
        torch.testing.assert_close(loss, 0.5 * awr.value_loss(value, target))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"td_lambda": 1.5}, r"td_lambda in \[0, 1\] .* found 1.5 and 0.7"),
        ({"expectile": 1.0}, r"expectile in \(0, 1\), found 0.95 and 1.0"),
        (
            {"adapt_matrices": False, "layer": "plain"},
            "found plain layers. Set inner.adapt_matrices",
        ),
        (
            {"bootstrap_advantage": True, "value_target": "td_lambda"},
            "defined for target.kind monte_carlo, found td_lambda",
        ),
    ],
)
def test_settings_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, r"Expected batches with the fields .*'next_observation', 'terminated'\], found \["),
        (
            {"fields": ["observation", "action", "return_to_go", "reward"], "discount": 0.5},
            r"'terminated'\], found .*'reward'\]\. Set --data\.init_args\.fields='\[observation, ",
        ),
        ({"discount": 0.5, "fields": None}, r"built for discount 0\.99, the data has 0\.5\. Set"),
    ],
)
def test_data_that_td_lambda_cannot_use(data: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = make_dataset(tmp_path / "data", num_tasks=7)
    module = make(value_target="td_lambda").float()
    if "fields" in data and data["fields"] is None:
        data = data | {"fields": list(module.context_fields)}
    datamodule = task_buffers(path, inner_size=8, outer_size=8, **data)
    with pytest.raises(ValueError, match=message):
        quiet_trainer(tmp_path, 1).fit(module, datamodule=datamodule)


def test_td_lambda_adapts_to_a_context_that_has_what_it_needs() -> None:
    module = make(value_target="td_lambda").float()
    context = {name: value[0].float() for name, value in batches()[0].items()}
    context["terminated"] = context["terminated"].bool()
    before = module.adapt(context, 0)(context["observation"])
    after = module.adapt(context, 1)(context["observation"])
    assert not torch.equal(before, after)
    del context["terminated"]
    with pytest.raises(ValueError, match=r"needs the fields .*terminated; terminated is missing"):
        module.adapt(context)
