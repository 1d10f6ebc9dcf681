"""The variational filter against a slow reference; step by step against sequences; masks."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from offline_meta_rl.networks.filter.model import VariationalFilter
from offline_meta_rl.networks.filter.recurrence import LoopLayer
from offline_meta_rl.networks.filter.recurrent import RecurrentLatent, RecurrentSizes
from offline_meta_rl.networks.filter.settings import FilterSettings
from offline_meta_rl.networks.filter.two_level import TwoLevelLatent, TwoLevelSizes
from tests.references import filter as reference_filter

SIZES: dict[str, Any] = {
    "two_level": TwoLevelSizes(first_size=3, second_size=4, hidden_size=6),
    "recurrent": RecurrentSizes(random_size=3, deterministic_size=4, hidden_size=6),
}
every_latent = pytest.mark.parametrize("latent", sorted(SIZES))
LENGTH = 4  # steps of an episode; two of them in a meta-trajectory


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def small(latent: str, **changes: Any) -> VariationalFilter:
    settings: dict[str, Any] = {"image_network": "dense", "image_size": 5, "hidden_size": 7}
    settings |= {"latent": latent, "reward_copies": 2, "prior_reward_weight": 3.0, **SIZES}
    return VariationalFilter((3, 8, 8), 2, FilterSettings(**(settings | changes)))


def random_batch(rows: int = 3, *, padded: bool = False, side: int = 8) -> TensorDict:
    """Return meta-trajectories of two episodes; padded ones are of random lengths."""
    size = (rows, 2 * (LENGTH + 1))
    within = torch.arange(LENGTH + 1).repeat(2)
    length = torch.randint(1, LENGTH + 1, (rows, 2)) if padded else torch.full((rows, 2), LENGTH)
    return TensorDict(
        {
            "observation": torch.randint(0, 256, (*size, 3, side, side), dtype=torch.uint8),
            "action": torch.rand(*size, 2) * 2 - 1,
            "reward": torch.randint(0, 2, size).to(torch.get_default_dtype()),
            "mask": within <= length.repeat_interleave(LENGTH + 1, dim=1),
        },
        batch_size=[rows],
    )


def noise_for(model: VariationalFilter, batch: TensorDict) -> Tensor:
    return torch.randn(*batch["reward"].shape, model.noise_size)


@every_latent
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("prior_reward_weight", [0.0, 3.0])
def test_bound_and_gradients_against_the_reference(
    latent: str, padded: bool, prior_reward_weight: float
) -> None:
    model = small(latent, prior_reward_weight=prior_reward_weight)
    batch = random_batch(4, padded=padded)
    assert bool(batch["mask"].all()) is not padded
    noise = noise_for(model, batch)
    found, expected = model.elbo(batch, noise), reference_filter.elbo(model, batch, noise)
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)
    parameters = dict(model.named_parameters())
    gradients = [
        torch.autograd.grad(terms["loss"], list(parameters.values())) for terms in (found, expected)
    ]
    for name, own, reference in zip(parameters, *gradients, strict=True):
        assert reference.abs().max() > 0, name
        torch.testing.assert_close(own, reference, rtol=1e-9, atol=1e-11, msg=name)


def test_convolutional_bound_against_the_reference() -> None:
    model = small("two_level", image_network="convolutional", image_size=2)
    batch = random_batch(2)
    noise = noise_for(model, batch)
    found, expected = model.elbo(batch, noise), reference_filter.elbo(model, batch, noise)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)


@every_latent
def test_step_after_step_equals_the_sequence(latent: str) -> None:
    model, batch = small(latent), random_batch(5)
    noise = noise_for(model, batch)
    state, beliefs = model.initial(5), []
    for t in range(noise.shape[1]):
        one = [batch[name][:, t] for name in ("observation", "action", "reward")]
        state, belief = model.step(state, *one, noise[:, t])
        beliefs.append(belief)
    found = model.beliefs(batch, noise)
    assert found.shape == (5, noise.shape[1], model.belief_size)
    torch.testing.assert_close(found, torch.stack(beliefs, 1), rtol=0, atol=1e-10)


@every_latent
def test_belief_is_mean_and_variance(latent: str) -> None:
    model, batch = small(latent), random_batch(2)
    noise = noise_for(model, batch)
    expected = [found["belief"] for found in reference_filter.steps(model, batch, noise)]
    torch.testing.assert_close(model.beliefs(batch, noise), torch.stack(expected, 1))


@every_latent
def test_padding_changes_nothing(latent: str) -> None:
    model, batch = small(latent), random_batch(6, padded=True)
    noise = noise_for(model, batch)
    beliefs, padded = model.beliefs(batch, noise), model.elbo(batch, noise)["loss"]
    losses = []
    for row, mask in enumerate(batch["mask"]):
        alone = TensorDict({k: v[row][mask][None] for k, v in batch.items()}, batch_size=[1])
        short = noise[row][mask][None]
        torch.testing.assert_close(
            model.beliefs(alone, short)[0], beliefs[row][mask], rtol=0, atol=1e-12
        )
        losses.append(model.elbo(alone, short)["loss"])
    torch.testing.assert_close(padded, torch.stack(losses).mean())
    hidden = ~batch["mask"]
    batch["observation"][hidden] = 255
    batch["reward"][hidden] = 5.0
    torch.testing.assert_close(model.elbo(batch, noise)["loss"], padded, rtol=0, atol=0)


@every_latent
def test_state_is_carried_across_episodes(latent: str) -> None:
    model, batch = small(latent), random_batch(2)
    noise = noise_for(model, batch)
    before = model.beliefs(batch, noise)
    batch["reward"][:, 1] += 1.0
    changed = (model.beliefs(batch, noise) - before).abs().amax(dim=(0, 2))
    assert not changed[0]
    assert (changed[1:] > 0).all()


@every_latent
def test_parts_of_several_processes_add_up(latent: str) -> None:
    model, batch = small(latent), random_batch(5)
    noise = noise_for(model, batch)
    whole = model.elbo(batch, noise)
    batch["weight"] = torch.full((5,), 0.2)
    parts = [model.elbo(batch[rank::2], noise[rank::2]) for rank in range(2)]
    for name, value in whole.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], value)


def test_loss_is_minus_the_bound_without_departures() -> None:
    model, batch = small("two_level", prior_reward_weight=0.0), random_batch()
    terms = model.elbo(batch, noise_for(model, batch))
    assert terms["loss"] == -terms["elbo"]
    assert FilterSettings().prior_reward_weight == 0.0


def test_latent_may_be_a_class() -> None:
    class Other(TwoLevelLatent):
        """Somebody's own."""

    model = VariationalFilter((3, 16, 16), 2, FilterSettings(image_size=2), latent=Other)
    assert type(model.latent) is Other


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"latent: expected one of .*'two_level'.*found 'other'"):
        FilterSettings(latent="other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"image_network: expected one of .*found 'other'"):
        FilterSettings(image_network="other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reward_std: expected more than 0, found 0"):
        FilterSettings(reward_std=0.0)
    with pytest.raises(ValueError, match="first_size: expected at least 1, found 0"):
        TwoLevelSizes(first_size=0)


def test_memory_lasts_for_as_long_as_it_is_told_to() -> None:
    torch.manual_seed(0)
    latent = RecurrentLatent(
        3, 2, RecurrentSizes(random_size=1, deterministic_size=400, memory_steps=50)
    )
    gru = latent.gru
    with torch.no_grad():
        gru.weight_ih.zero_()
        gru.weight_hh.zero_()
        gru.bias_ih[800:], gru.bias_hh[800:] = 0.0, 0.0  # the new content is 0
        kept = gru(torch.zeros(1, 256), torch.ones(1, 400))[0]
    lasts = 1.0 / (1.0 - kept)
    assert lasts.min() >= 2.0
    assert lasts.max() <= 50.0
    assert lasts.mean().item() == pytest.approx(26.0, abs=2.0)
    with pytest.raises(ValueError, match="memory_steps: expected 0 or at least 2, found 1"):
        RecurrentSizes(memory_steps=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": None}, r"mask: expected \[B, S\] bool, .* Pad episodes to one length"),
        ({"reward": None}, r"Expected observation, .*; reward is missing"),
        ({"action": torch.zeros(4, 5, 3)}, r"action: expected \[B, S, 2\] .* found \[4, 5, 3\]"),
        (
            {"observation": torch.zeros(4, 5, 8, 8, 3)},
            r"observation: expected \[B, S, 3, 8, 8\]",
        ),
        (
            {"observation": torch.zeros(4, 5, 3, 8, 8)},
            r"observation: expected torch.uint8, found",
        ),
        ({"mask": torch.ones(4, 5)}, r"mask: expected torch.bool, found torch.float32"),
    ],
)
def test_batches_that_do_not_fit(change: dict[str, torch.Tensor | None], message: str) -> None:
    model = small("recurrent")
    batch = {
        "observation": torch.zeros(4, 5, 3, 8, 8, dtype=torch.uint8),
        "action": torch.zeros(4, 5, 2),
        "reward": torch.zeros(4, 5),
        "mask": torch.ones(4, 5, dtype=torch.bool),
    }
    noise = torch.zeros(4, 5, model.noise_size)
    model.elbo(batch, noise)
    given = {name: value for name, value in (batch | change).items() if value is not None}
    for use in (model.elbo, model.beliefs, model.reconstructions):
        with pytest.raises(ValueError, match=message):
            use(given, noise)


@every_latent
def test_nothing_is_left_after_an_update(latent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: weakref.WeakSet[LoopLayer] = weakref.WeakSet()
    initialise = LoopLayer.__init__

    def noted(self: LoopLayer, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        made.add(self)

    monkeypatch.setattr(LoopLayer, "__init__", noted)
    model, batch = small(latent), random_batch()
    gc.disable()  # what only the collector finds would pile up between its rounds
    try:
        terms = model.elbo(batch, noise_for(model, batch))
        assert made
        terms["loss"].backward()
        del terms
        assert not made
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("latent", "image_network"), [("two_level", "dense"), ("recurrent", "convolutional")]
)
def test_training_explains_images_and_rewards(latent: str, image_network: str) -> None:
    torch.set_default_dtype(torch.float32)
    settings = {"image_network": image_network, "image_size": 8, "prior_reward_weight": 0.0}
    model, batch = small(latent, **settings), random_batch(4)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    history = []
    for _ in range(50):
        terms = model.elbo(batch, noise_for(model, batch))
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in terms.items()})
    first, last = history[0], history[-1]
    assert last["elbo"] > first["elbo"]
    assert last["image"] < first["image"]
    assert last["reward"] < first["reward"]
    assert 0 < last["kl"] < float("inf")
    shown = model.reconstructions(batch, noise_for(model, batch))
    assert shown.shape == batch["observation"].shape
    assert shown.dtype == torch.uint8
    error = (shown.float() - batch["observation"].float()).abs().mean()
    assert error < 75  # a constant grey is wrong by 64 on average, an untrained decoder by 125


def test_autocast_is_close_to_single_precision() -> None:
    torch.set_default_dtype(torch.float32)
    model, batch = small("two_level", image_network="convolutional"), random_batch()
    other = small("two_level", image_network="convolutional", autocast=True)
    other.load_state_dict(model.state_dict())
    noise = noise_for(model, batch)
    exact, rounded = model.elbo(batch, noise), other.elbo(batch, noise)
    assert rounded["loss"] != exact["loss"]
    assert rounded["loss"].dtype == torch.float32
    torch.testing.assert_close(rounded["loss"], exact["loss"], rtol=1e-2, atol=0)
    rounded["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in other.parameters())
