"""Task-steps per second of every method side by side: tasks of an outer step times outer steps/s.

Every shipped config of half-cheetah velocity that trains on a fixed dataset is run with its own
number of tasks and sizes through ``TaskBuffers`` and ``outer_step``, all of them uncompiled: what
compilation gains is measured method by method. The data are random numbers of the family's sizes:
speed does not depend on them.
"""

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from datamodules import TaskBuffers
from offline_meta_rl.methods.base import MetaModule
from tests.benchmarks.record import record
from tests.helpers import make_dataset
from tests.methods import tiny

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
WARM_UP = 3
ENOUGH_SECONDS, ENOUGH_STEPS = 5.0, 200


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


def shipped() -> list[str]:
    """Return the names of the configs that are compared."""
    found = {path.stem: read(path) for path in sorted(CONFIGS.glob("*_cheetah_vel.yaml"))}
    return [name for name, c in found.items() if c["data"]["class_path"] == "TaskBuffers"]


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


def module_of(config: dict[str, Any]) -> MetaModule:
    """Build a config's method, able to take outer steps without a trainer."""
    name = config["model"]["class_path"]
    (found,) = (each for each in tiny.method_classes() if each.__name__ == name)
    arguments = {**config["model"]["init_args"]}
    arguments.pop("compile", None)
    module: Any = found(**arguments)
    optimizers = module.configure_optimizers()
    optimizer = optimizers[0][0] if isinstance(optimizers, tuple | list) else optimizers
    module._trainer = SimpleNamespace(
        world_size=1, global_rank=0, global_step=0, max_steps=config["trainer"]["max_steps"]
    )
    module.optimizers = lambda: optimizer
    module.lr_schedulers = list
    built: MetaModule = module
    return built


def measure(name: str, data_path: Path) -> dict[str, float]:
    """Return the rate of one config's outer steps, by the clock and by processor time."""
    config = read(CONFIGS / f"{name}.yaml")
    arguments = {**config["data"]["init_args"], "env": "point_robot", "path": str(data_path)}
    arguments.pop("transitions_per_stage", None)
    data, module = TaskBuffers(**arguments), module_of(config)
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
    found = {name: measure(name, data_path) for name in shipped()}
    print()
    for name, rates in sorted(found.items(), key=lambda item: -item[1]["task_steps_per_second"]):
        shown = ", ".join(f"{key} {value:.3g}" for key, value in rates.items())
        print(f"{name:30} {shown}")
    record(
        Path(__file__).stem,
        threads=torch.get_num_threads(),
        compiled=False,
        load_of_the_machine=os.getloadavg()[0],
        methods=found,
    )
    assert {"macaw_cheetah_vel", "pearl_cheetah_vel"} <= set(found)
    assert all(rates["task_steps_per_second"] > 1.0 for rates in found.values())
