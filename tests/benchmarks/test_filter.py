"""Training the variational filter: frames per second, and how much of the machine's arithmetic.

Every comparator does the same updates: sizes, data, dtype, threads, batch and fused Adam are the
same, and its encoder is outside the loop over time as well. Rounds are interleaved, so that another
busy process slows all alike.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from datamodules.sampling.episodes import EpisodeTable
from datamodules.sampling.stitch import draw_segments
from offline_meta_rl.data.dataset import TaskDataset
from offline_meta_rl.networks.filter.model import VariationalFilter
from offline_meta_rl.networks.filter.recurrent import RecurrentSizes
from offline_meta_rl.networks.filter.settings import FilterSettings
from offline_meta_rl.networks.filter.two_level import TwoLevelSizes
from tests.benchmarks.eager_filter import eager_loss
from tests.benchmarks.record import record
from tests.benchmarks.torchrl_filter import quietly, without_searching_for_pandas
from tests.image_data import make_image_dataset

THREADS = min(2, len(os.sched_getaffinity(0)))
LITE_LATENTS: dict[str, Any] = {
    "two_level": TwoLevelSizes(first_size=16, second_size=32, hidden_size=128),
    "recurrent": RecurrentSizes(random_size=24, deterministic_size=64, hidden_size=128),
}
LITE: dict[str, Any] = {"image_network": "dense", "image_size": 128, "hidden_size": 128}
LITE_SHAPE, LITE_ROWS, LITE_STEPS = (3, 16, 16), 32, 39  # of explorer_two_drawer_lite.yaml
SMALL, SMALL_ROWS = LITE | {"image_size": 64}, 16
LARGE_LATENTS = ("two_level", "recurrent")  # of MELD's sizes, the defaults
LARGE_SHAPE, LARGE_ROWS, LARGE_STEPS = (3, 64, 64), 2, 26
ACTION_SIZE = 2
Loss = Callable[[TensorDict, Tensor], Tensor]


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As many threads for all sides."""
    without_searching_for_pandas(monkeypatch)
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def random_batch(rows: int, steps: int, shape: tuple[int, ...], device: str) -> TensorDict:
    tensors = {
        "observation": torch.randint(0, 256, (rows, steps, *shape), dtype=torch.uint8),
        "action": torch.rand(rows, steps, ACTION_SIZE) * 2 - 1,
        "reward": torch.randint(0, 2, (rows, steps)).float(),
        "mask": torch.ones(rows, steps, dtype=torch.bool),
    }
    return TensorDict(tensors, batch_size=[rows]).to(device)


def updates(
    module: torch.nn.Module, loss: Loss, batch: TensorDict, noise_size: int
) -> Callable[[], object]:
    """Return a function that does one update."""
    optimizer = torch.optim.Adam(module.parameters(), 1e-3, fused=True)

    def update() -> None:
        noise = torch.randn(*batch["reward"].shape, noise_size, device=batch.device)
        value = loss(batch, noise)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return update


def seconds(update: Callable[[], object], repeats: int, device: str) -> tuple[float, float]:
    """Return the time of one call by the clock and by the processor."""
    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronise()
    begin = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        update()
    synchronise()
    end = time.perf_counter(), time.process_time()
    return (end[0] - begin[0]) / repeats, (end[1] - begin[1]) / repeats


def compare(
    sides: dict[str, Callable[[], object]], repeats: int, device: str, rounds: int = 5
) -> dict[str, tuple[float, float]]:
    """Return the median times of one update of each side, by the clock and by the processor."""
    for update in sides.values():
        update()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, update in sides.items():
            times[name].append(seconds(update, repeats, device))
    return {
        name: tuple(sorted(column)[rounds // 2] for column in zip(*found, strict=True))  # type: ignore[misc]
        for name, found in times.items()
    }


def peak_rate(device: str, kind: int) -> float:
    """Return the rate of a large matrix product, FLOP per second of the clock or the processor."""
    size = 1024 if device == "cpu" else 8192
    left, right = torch.randn(2, size, size, device=device)
    best = min(seconds(lambda: torch.mm(left, right), 3, device)[kind] for _ in range(5))
    return 2 * size**3 / best


def measure(
    name: str,
    latent: str,
    settings: dict[str, Any],
    size: tuple[int, int, tuple[int, int, int]],
    *,
    repeats: int,
    device: str = "cpu",
    torchrl: bool = False,
) -> float:
    """Record frames per second of all sides, and return the ratio to the eager loop."""
    rows, steps, shape = size
    torch.manual_seed(0)
    filter_settings = FilterSettings(latent=latent, **settings)  # type: ignore[arg-type]
    model = VariationalFilter(shape, ACTION_SIZE, filter_settings).to(device)
    batch = random_batch(rows, steps, shape, device)
    noise = torch.randn(rows, steps, model.noise_size, device=device)
    with torch.no_grad():
        ours, theirs = model.elbo(batch, noise)["loss"], eager_loss(model, batch, noise)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
    own = updates(model, lambda b, n: model.elbo(b, n)["loss"], batch, model.noise_size)
    eager = updates(model, lambda b, n: eager_loss(model, b, n), batch, model.noise_size)
    sides = {"ours": own, "eager": eager}
    if torchrl:
        other = quietly(model, ACTION_SIZE).to(device)
        sides["torchrl"] = updates(other, lambda b, _: other.loss(b), batch, model.noise_size)
    with FlopCounterMode(display=False) as counter:
        own()
    found = compare(sides, repeats, device)
    # A busy machine's clock also counts the time of others; without a device both mean the same.
    kind = 0 if device == "cuda" else 1
    frames, flop, peak = rows * steps, counter.get_total_flops(), peak_rate(device, kind)
    figures = {f"{side}_frames_per_second": frames / clock for side, (clock, _) in found.items()}
    for side in list(sides)[1:]:
        for number, label in enumerate(("ratio", "ratio_of_processor_time")):
            figures[f"{label}_to_{side}"] = found[side][number] / found["ours"][number]
    record(
        f"{Path(__file__).stem}_{name}",
        latent=latent,
        rows=rows,
        steps=steps,
        image=list(shape),
        device=device,
        threads=torch.get_num_threads(),
        load_of_the_machine=os.getloadavg()[0],
        update_ms=1e3 * found["ours"][0],
        update_processor_ms=1e3 * found["ours"][1],
        gflop_of_update=flop / 1e9,
        peak_gflop_per_second=peak / 1e9,
        fraction_of_peak=flop / found["ours"][kind] / peak,
        **figures,
    )
    return figures["ratio_to_eager"]


@pytest.mark.parametrize("latent", sorted(LITE_LATENTS))
def test_lite_size(latent: str) -> None:
    """The larger the batch, the more of an update is arithmetic, which is the same on all sides."""
    more = {**LITE_LATENTS, "prior_reward_weight": 10.0}
    size = LITE_ROWS, LITE_STEPS, LITE_SHAPE
    shipped = measure(f"lite_{latent}", latent, LITE | more, size, repeats=10)
    size = SMALL_ROWS, LITE_STEPS, LITE_SHAPE
    small = measure(f"lite_small_{latent}", latent, SMALL | more, size, repeats=10)
    assert shipped >= 1.5
    assert small >= 2


def test_lite_size_against_torchrl() -> None:
    sizes = RecurrentSizes(random_size=24, deterministic_size=128, hidden_size=128)
    size = LITE_ROWS, LITE_STEPS, LITE_SHAPE
    settings = LITE | {"recurrent": sizes}
    measure("lite_torchrl", "recurrent", settings, size, repeats=10, torchrl=True)


@pytest.mark.parametrize("latent", sorted(LARGE_LATENTS))
def test_64_pixels(latent: str) -> None:
    settings = {"image_size": 32}
    size = LARGE_ROWS, LARGE_STEPS, LARGE_SHAPE
    torchrl = latent == "recurrent"
    measure(f"64_{latent}", latent, settings, size, repeats=1, torchrl=torchrl)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("latent", sorted(LARGE_LATENTS))
@pytest.mark.parametrize("autocast", [False, True])
def test_64_pixels_on_a_gpu(latent: str, autocast: bool) -> None:
    settings = {"image_size": 64, "hidden_size": 512, "autocast": autocast}
    name = f"gpu_64_{latent}" + ("_autocast" if autocast else "")
    torchrl = latent == "recurrent"
    measure(
        name, latent, settings, (32, 78, LARGE_SHAPE), repeats=5, device="cuda", torchrl=torchrl
    )


def test_autocast_of_convolutions() -> None:
    """Whether bfloat16 helps depends on the processor; no side is better everywhere."""
    batch = random_batch(LARGE_ROWS, LARGE_STEPS, LARGE_SHAPE, "cpu")
    sides = {}
    for name in ("single", "bfloat16"):
        torch.manual_seed(0)
        settings = FilterSettings(image_size=32, autocast=name == "bfloat16")
        model = VariationalFilter(LARGE_SHAPE, ACTION_SIZE, settings)
        loss = lambda b, n, model=model: model.elbo(b, n)["loss"]  # noqa: E731
        sides[name] = updates(model, loss, batch, model.noise_size)
    found = compare(sides, 1, "cpu", rounds=1)
    clock = {name: pair[0] for name, pair in found.items()}
    frames = LARGE_ROWS * LARGE_STEPS
    record(
        f"{Path(__file__).stem}_autocast",
        threads=torch.get_num_threads(),
        load_of_the_machine=os.getloadavg()[0],
        bfloat16_to_single=clock["single"] / clock["bfloat16"],
        **{f"{name}_frames_per_second": frames / value for name, value in clock.items()},
    )


@pytest.mark.parametrize("side", [16, 64])
def test_stitched_sampling(side: int, tmp_path: Path) -> None:
    shape = (3, side, side)
    path = make_image_dataset(tmp_path / "data", length=(6,) * 200, shape=shape)
    dataset = TaskDataset.open(path)
    task = dataset.episodes["task"].numpy()
    episodes = {number: np.flatnonzero(task == number) for number in range(2)}
    first = np.ones(len(task), dtype=np.int64)
    rows, number = 32, iter(range(10**9))
    figures = {}
    for name, device in (("memory", torch.device("cpu")), ("mapped", None)):
        table = EpisodeTable(dataset, first, device)

        def batch(table: EpisodeTable = table) -> None:
            table.gather(draw_segments(np.random.default_rng(next(number)), episodes, rows, 3))

        found = compare({name: batch}, 20, "cpu")[name]
        frames = rows * 3 * (table.horizon + 1)
        figures[f"{name}_meta_trajectories_per_second"] = rows / found[0]
        figures[f"{name}_frames_per_second"] = frames / found[0]
        figures[f"{name}_bytes_per_second"] = frames * 3 * side**2 / found[0]
    record(
        f"{Path(__file__).stem}_stitching_{side}",
        load_of_the_machine=os.getloadavg()[0],
        **figures,
    )
