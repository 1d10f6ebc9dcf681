"""The real command, stopped by a signal at a random step, resumes to the same bits."""

import random
import signal
from pathlib import Path

import pytest
import torch

from tests.methods import tiny
from tests.methods.test_processes import run_in_new_process

STEPS = 10
PLACES = ["before", "during", "validating"]
DRAW = random.Random(20)


def moment(place: str) -> int:
    """Return a random step; validations come after every third."""
    return DRAW.choice([3, 6]) if place == "validating" else DRAW.randrange(1, STEPS)


MOMENTS = [
    (method, place, moment(place), number)
    for method in tiny.METHODS
    for place, number in zip(PLACES, [signal.SIGINT, signal.SIGTERM, signal.SIGTERM], strict=True)
    if place != "validating" or method in tiny.ON_TASK_BUFFERS
]


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.dataset(tmp_path_factory.mktemp("signals"))


@pytest.mark.parametrize(("method", "place", "step", "number"), MOMENTS)
def test_interrupted_run_resumes_to_the_same_bits(
    method: str, place: str, step: int, number: int, data_path: Path, tmp_path: Path
) -> None:
    settings = tiny.config(method, data_path, val_check_interval=3, evaluate=place == "validating")
    expected = tiny.state(tiny.fit(settings, tmp_path / "uninterrupted"))
    cut = {"step": step, "number": int(number), "place": place}
    sender = {"class_path": "tests.methods.tiny.SignalAt", "init_args": cut}
    callbacks = [*settings["trainer"]["callbacks"], sender]
    root = tmp_path / "run"
    tiny.write({**settings, "trainer": {**settings["trainer"], "callbacks": callbacks}}, root)
    assert run_in_new_process(tiny.command(root)) == 128 + number
    path = root / "checkpoints" / "interrupted.ckpt"
    saved = torch.load(path, weights_only=True)["global_step"]
    assert saved == (step + 1 if place == "validating" else step)
    resumed = tiny.fit(settings, root, "--ckpt_path", str(path))
    assert tiny.difference(tiny.state(resumed), expected) is None
