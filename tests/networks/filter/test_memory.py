"""The filter remembers the task across episodes if rewards are decoded from the prior, as shipped.

Trains on drawers in the plane with the settings of ``configs/explorer_two_drawer_lite.yaml``.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import MetaTrajectories
from offline_meta_rl.behaviour.collection import Collection
from offline_meta_rl.evaluation.probe import ProbeResult, task_probe
from offline_meta_rl.networks.filter.model import VariationalFilter
from offline_meta_rl.networks.filter.recurrent import RecurrentSizes
from offline_meta_rl.networks.filter.settings import FilterSettings

STEPS = 1500
COLLECTION = Collection(transitions_per_stage=12_000)
SETTINGS = FilterSettings(
    latent="recurrent",
    recurrent=RecurrentSizes(random_size=24, deterministic_size=64, hidden_size=128),
    image_network="dense",
    image_size=64,
    hidden_size=128,
)


def trained_probe(path: Path, prior_reward_weight: float) -> tuple[ProbeResult, ProbeResult]:
    """Train a filter; return its probe, and the one with shuffled labels."""
    data = MetaTrajectories(
        env="two_drawer_lite", path=str(path), batch_size=16, collection=COLLECTION, seed=7
    )
    data.prepare_data()
    data.setup()
    torch.manual_seed(7)
    settings = replace(SETTINGS, prior_reward_weight=prior_reward_weight)
    model = VariationalFilter(data.image_shape, 2, settings)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1 ** (1 / STEPS))
    for step in range(STEPS):
        batch = data.batch(step)[0]
        noise = torch.randn(*batch["reward"].shape, model.noise_size)
        optimizer.zero_grad()
        model.elbo(batch, noise)["loss"].backward()
        optimizer.step()
        schedule.step()
    (item,) = data.val_dataloader()
    parts = []
    with torch.no_grad():
        for name in ("fit", "held_out"):
            noise = torch.randn(*item[name]["reward"].shape, model.noise_size)
            parts += [item[name], model.beliefs(item[name], noise)]
    return task_probe(*parts), task_probe(*parts, shuffle=np.random.default_rng(0))


@pytest.mark.slow
def test_task_is_remembered_across_the_boundary(tmp_path: Path) -> None:
    found, shuffled = trained_probe(tmp_path / "data", 10.0)
    assert (found.accuracy[1:] >= 0.95).all()
    assert (np.abs(found.accuracy[0, :2] - 0.5) < 0.1).all()  # nothing to know yet
    assert (np.abs(shuffled.accuracy - 0.5) < 0.1).all()


@pytest.mark.slow
def test_formula_as_printed_forgets_before_the_reward(tmp_path: Path) -> None:
    found, _ = trained_probe(tmp_path / "data", 0.0)
    before_reward, last = found.accuracy[1:, 1], found.accuracy[:, 2]
    assert (before_reward < 0.8).all()
    assert (last >= 0.95).all()
