"""Task-steps per second of every method side by side: tasks of an outer step times outer steps/s.

Every shipped config of half-cheetah velocity that trains on a fixed dataset is run with its own
number of tasks and sizes through ``TaskBuffers`` and ``outer_step``, uncompiled and as shipped. The
data are random numbers of the family's sizes: speed does not depend on them. A second test measures
what the overlays of experiments cost, for their estimated hours.
"""

import inspect
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from datamodules import TaskBuffers
from offline_meta_rl.common.configs import with_includes
from offline_meta_rl.common.settings import arguments_of
from offline_meta_rl.methods.base import MetaModule
from tests.benchmarks.record import record
from tests.helpers import make_dataset, merged
from tests.methods import tiny
from tests.test_configs import CONFIGS, FILES, PAIRS

OVERLAYS = {
    "macaw_cheetah_vel": [
        ["ablations/no_enriched_loss"],
        ["ablations/no_weight_transform"],
        ["ablations/no_weight_transform_wide"],
        ["ablations/bias_transform"],
    ],
    "pearl_cheetah_vel": [
        ["experiments/shared/five_tasks", "ablations/pearl_regularised"],
        ["experiments/shared/paper_pearl"],
    ],
}
BASES = {"pearl_cheetah_vel": ["experiments/shared/five_tasks"]}  # at cpu scale
WARM_UP = 3
ENOUGH_SECONDS, ENOUGH_STEPS = 5.0, 200


def read(name: str, overlays: Sequence[str] = ()) -> dict[str, Any]:
    """Return a config with what it includes, and overlays; later ones win."""
    return merged(
        file
        for each in (*PAIRS.get(name, [name]), *overlays)
        for file in with_includes(CONFIGS / f"{each}.yaml")
    )


def shipped() -> list[str]:
    """Return the names of the configs that are compared."""
    return [name for name in (*FILES, *PAIRS) if name.endswith("_cheetah_vel")]


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of the sizes and the tasks of half-cheetah velocity."""
    return make_dataset(
        tmp_path_factory.mktemp("methods") / "dataset",
        num_tasks=40,
        test_tasks=(2, 7, 15, 23, 26),
        episodes_per_stage=4,
        horizon=200,
        observation_size=20,
        action_size=6,
        ragged=False,
    )


def module_of(config: dict[str, Any], *, compiled: bool) -> MetaModule:
    """Build a config's method, able to take outer steps without a trainer."""
    name = config["model"]["class_path"]
    (found,) = (each for each in tiny.method_classes() if each.__name__ == name)
    sizes = {"observation_size": 20, "action_size": 6, "num_tasks": 40}  # as of ``data_path``
    taken = inspect.signature(found).parameters
    arguments = {key: value for key, value in sizes.items() if key in taken}
    arguments |= config["model"]["init_args"]
    arguments["compile"] = compiled and arguments.get("compile", False)
    module: Any = found(**arguments_of(found, arguments))
    optimizers = module.configure_optimizers()
    optimizer = optimizers[0][0] if isinstance(optimizers, tuple | list) else optimizers
    module._trainer = SimpleNamespace(
        world_size=1, global_rank=0, global_step=0, max_steps=config["trainer"]["max_steps"]
    )
    module.optimizers = lambda: optimizer
    module.lr_schedulers = list
    built: MetaModule = module
    return built


def measure(config: dict[str, Any], data_path: Path, *, compiled: bool) -> dict[str, float]:
    """Return the rate of one config's outer steps, by the clock and by processor time."""
    arguments = {**config["data"]["init_args"], "env": "point_robot", "path": str(data_path)}
    arguments.pop("collection", None)
    data, module = (
        TaskBuffers(**arguments_of(TaskBuffers, arguments)),
        module_of(config, compiled=compiled),
    )
    data.setup("fit")
    begin = (0.0, 0.0)
    steps = -WARM_UP
    while steps < ENOUGH_STEPS and (steps < 1 or time.perf_counter() - begin[0] < ENOUGH_SECONDS):
        if steps == 0:
            begin = time.perf_counter(), time.process_time()
        module.outer_step(data.batch(steps + WARM_UP)[0])
        steps += 1
    end = time.perf_counter(), time.process_time()
    tasks = len(data.batch(0)[0])
    clock, processor = (steps / (after - before) for before, after in zip(begin, end, strict=True))
    return {
        "tasks": tasks,
        "outer_steps_per_second": clock,
        "task_steps_per_second": tasks * clock,
        "task_steps_per_processor_second": tasks * processor,
    }


@pytest.mark.usefixtures("threads")
def test_every_method_side_by_side(data_path: Path) -> None:
    found = {
        name: {
            kind: measure(read(name), data_path, compiled=kind == "as_shipped")
            for kind in ("uncompiled", "as_shipped")
        }
        for name in shipped()
    }
    print()
    for name, kinds in found.items():
        for kind, rates in kinds.items():
            shown = ", ".join(f"{key} {value:.3g}" for key, value in rates.items())
            print(f"{name:30} {kind:10} {shown}")
    record(
        Path(__file__).stem,
        threads=torch.get_num_threads(),
        load_of_the_machine=os.getloadavg()[0],
        methods=found,
    )
    assert {"macaw", "meta_bc", "multitask_awr", "pearl"} <= {n.split("_cheetah")[0] for n in found}
    rates_of_all = [rates for kinds in found.values() for rates in kinds.values()]
    assert all(rates["task_steps_per_second"] > 1.0 for rates in rates_of_all)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", OVERLAYS)
def test_what_overlays_cost(name: str, data_path: Path) -> None:
    """The time of an outer step with overlays, in times of one without, both as shipped."""
    base = measure(read(name, BASES.get(name, ())), data_path, compiled=True)
    costs = {}
    for overlays in OVERLAYS[name]:
        found = measure(read(name, overlays), data_path, compiled=True)
        rates = [rate["outer_steps_per_second"] for rate in (base, found)]
        costs[" ".join(overlays)] = rates[0] / rates[1]
        print(f"{name} {' '.join(overlays)}: {costs[' '.join(overlays)]:.2f} times the time")
    record(
        f"overlays_{name}",
        threads=torch.get_num_threads(),
        load_of_the_machine=os.getloadavg()[0],
        base=base,
        costs=costs,
    )
    assert all(cost > 0.0 for cost in costs.values())
