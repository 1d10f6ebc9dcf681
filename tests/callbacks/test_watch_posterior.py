"""WatchPosterior: what the picture and its number say, and where it is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from callbacks.watch_posterior import WatchPosterior
from datamodules.task_buffers import TaskBuffers
from offline_meta_rl import cli
from offline_meta_rl.methods.pearl import FIELDS, Pearl
from offline_meta_rl.reports.posterior import (
    between_task_variance,
    draw_posterior,
    principal_components,
    task_colours,
)
from tests.helpers import build
from tests.methods import tiny

WATCH = {"class_path": "WatchPosterior", "init_args": {"contexts": 3, "context_size": 8}}


def test_it_draws_after_training_and_after_testing(tmp_path: Path) -> None:
    path = tiny.dataset(tmp_path)
    settings = tiny.config("Pearl", path, max_steps=2, callbacks=[WATCH])
    root = tmp_path / "run"
    tiny.fit(settings, root)
    found = json.loads((root / "posterior.json").read_text())
    assert (root / "posterior.png").read_bytes()[:4] == b"\x89PNG"
    assert found["held_out_tasks"] == [1]
    assert found["global_step"] == 2

    content = torch.load(root / "checkpoints" / "last.ckpt", weights_only=True)
    module = build(Pearl, **content["hyper_parameters"])
    module.load_state_dict(content["state_dict"])
    data = TaskBuffers(env="point_robot", path=str(path), fields=FIELDS)
    data.setup("predict")
    means = torch.tensor(found["posterior_means"])
    assert means.shape == (7, 3, 3)
    with torch.no_grad():
        expected = module.infer(data.context(range(7), 8, seed=2)).mean
    torch.testing.assert_close(means[:, 2], expected)
    assert found["between_task_variance"] == pytest.approx(between_task_variance(means.numpy()))

    (root / "posterior.png").unlink()
    cli.run(["test", "--ckpt_path", str(root / "checkpoints" / "last.ckpt")])
    assert (root / "posterior.png").is_file()


def test_other_methods_and_single_contexts_are_refused(tmp_path: Path) -> None:
    settings = tiny.config("Macaw", tiny.dataset(tmp_path), callbacks=[WATCH])
    with pytest.raises(TypeError, match=r"needs a method with a context posterior.* found Macaw"):
        tiny.fit(settings, tmp_path / "run")
    with pytest.raises(ValueError, match="contexts: expected at least 2 for each task, found 1"):
        WatchPosterior(contexts=1)


def test_between_task_variance_is_hand_worked() -> None:
    apart = np.array([[[1.0], [1.0]], [[-1.0], [-1.0]]])
    assert between_task_variance(apart) == 1.0
    assert between_task_variance(apart.swapaxes(0, 1)) == 0.0
    # Tasks at +-2, contexts at +-1 around them: 4 of 5 parts.
    assert between_task_variance(np.array([[[3.0], [1.0]], [[-1.0], [-3.0]]])) == pytest.approx(0.8)
    assert between_task_variance(np.zeros((2, 2, 3))) == 0.0
    noise = np.random.default_rng(0).normal(size=(400, 5, 3))
    assert between_task_variance(noise) == pytest.approx(0.2, abs=0.03)


def test_principal_components_find_the_axes() -> None:
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(500, 2)) * [3.0, 1.0]
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0][:2]
    points, shares = principal_components(hidden @ turn, 2)
    assert abs(np.corrcoef(points[:, 0], hidden[:, 0])[0, 1]) > 0.99
    np.testing.assert_allclose(shares, [0.9, 0.1], atol=0.03)
    flat, shares = principal_components(np.arange(4.0)[:, None], 2)
    np.testing.assert_allclose(np.abs(flat[:, 0]), [1.5, 0.5, 0.5, 1.5])
    np.testing.assert_allclose(flat[:, 1], 0.0)
    np.testing.assert_allclose(shares, [1.0, 0.0])


def test_colours_are_the_parameter_or_its_main_direction(tmp_path: Path) -> None:
    speeds = np.linspace(0.0, 3.0, 7)
    np.testing.assert_allclose(task_colours(speeds[:, None])[0], speeds)
    angle = np.linspace(0.1, 3.0, 7)
    colours, name = task_colours(np.stack([np.cos(angle), 0.1 * np.sin(angle)], axis=1))
    assert (np.diff(colours) > 0).all() or (np.diff(colours) < 0).all()
    assert "component" in name
    means = np.zeros((7, 2, 1))  # one latent number, all tasks trained on, nothing learned
    draw_posterior(means, speeds[:, None], np.zeros(7, dtype=bool), tmp_path / "flat.png")
    assert (tmp_path / "flat.png").is_file()
