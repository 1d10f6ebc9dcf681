"""Small datasets, and a trainer, for tests."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lightning
import numpy as np
import yaml
from numpy.typing import NDArray
from tensordict import TensorDict

from offline_meta_rl.common.settings import arguments_of
from offline_meta_rl.data.writer import DatasetWriter

Owner = TypeVar("Owner")
STAGES = ["poor", "fair", "good", "expert"]


def build(owner: type[Owner], **settings: Any) -> Owner:
    """Return a method from its settings by their short names: ``width`` for ``network.width``.

    Short names are those that the settings had before they were grouped, so what is built is what
    an old checkpoint becomes.
    """
    return owner(**arguments_of(owner, settings))


def merged(files: Iterable[Path]) -> dict[str, Any]:
    """Return what configs come to, later ones on top of earlier ones."""
    found: dict[str, Any] = {}
    for file in files:
        found = on_top(found, yaml.safe_load(file.read_text()))
    found.pop("include", None)
    return found


def on_top(below: Any, above: Any) -> Any:
    """Return settings with others on top of them, field by field."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {key: on_top(below.get(key), value) for key, value in above.items()}


def make_episodes(
    lengths: Sequence[int], horizon: int, observation_size: int, action_size: int, seed: int
) -> dict[str, NDArray[Any]]:
    """Return transitions of random episodes, one after another; those below the horizon fall."""
    rng = np.random.default_rng(seed)
    parts: dict[str, list[NDArray[Any]]] = {
        key: [] for key in ("observation", "action", "reward", "next_observation", "terminated")
    }
    parts["truncated"] = []
    for length in lengths:
        states = rng.normal(size=(length + 1, observation_size)).astype(np.float32)
        last = np.arange(length) == length - 1
        parts["observation"].append(states[:-1])
        parts["next_observation"].append(states[1:])
        parts["action"].append(rng.uniform(-1, 1, (length, action_size)).astype(np.float32))
        parts["reward"].append(rng.normal(size=length).astype(np.float32))
        parts["terminated"].append(last & (length < horizon))
        parts["truncated"].append(last & (length == horizon))
    return {key: np.concatenate(arrays) for key, arrays in parts.items()}


def writer_for(
    path: Path,
    *,
    num_tasks: int = 3,
    horizon: int = 20,
    observation_size: int = 4,
    action_size: int = 2,
    test_tasks: Sequence[int] = (1,),
    environment: dict[str, Any] | None = None,
    family: str = "point_robot",
    seed: int = 0,
) -> DatasetWriter:
    """Return a writer; of a built-in family unless told otherwise."""
    train = [task for task in range(num_tasks) if task not in test_tasks]
    return DatasetWriter(
        path,
        environment=environment or {"id": "offline_meta_rl/PointRobot-v0", "kwargs": {}},
        family=family,
        observation_size=observation_size,
        action_size=action_size,
        horizon=horizon,
        task_seed=0,
        task_parameters=[[0.5 * task, 1.0] for task in range(num_tasks)],
        splits={"default": (train, list(test_tasks)), "all": (range(num_tasks), range(num_tasks))},
        stages=STAGES,
        provenance={"seed": seed, "versions": {}},
    )


def task_episodes(
    task: int,
    *,
    episodes_per_stage: int = 2,
    horizon: int = 20,
    observation_size: int = 4,
    action_size: int = 2,
    seed: int = 0,
    ragged: bool = True,
) -> tuple[dict[str, NDArray[Any]], list[int], list[int]]:
    """Return (transitions, stage of each episode, length of each episode) of one task."""
    stage = [index for index in range(len(STAGES)) for _ in range(episodes_per_stage)]
    rng = np.random.default_rng([seed, task])
    lengths = (
        rng.integers(horizon // 2, horizon + 1, len(stage)) if ragged else [horizon] * len(stage)
    )
    length = [int(value) for value in lengths]
    transitions = make_episodes(length, horizon, observation_size, action_size, seed + 97 * task)
    return transitions, stage, length


def make_dataset(
    path: Path,
    *,
    num_tasks: int = 3,
    episodes_per_stage: int = 2,
    horizon: int = 20,
    observation_size: int = 4,
    action_size: int = 2,
    test_tasks: Sequence[int] = (1,),
    environment: dict[str, Any] | None = None,
    family: str = "point_robot",
    ragged: bool = True,
    seed: int = 0,
) -> Path:
    """Write a dataset of random numbers with four stages, splits and reference returns.

    Args:
        path: folder of the dataset.
        num_tasks: tasks.
        episodes_per_stage: episodes of each of the four stages in every task.
        horizon: longest episode.
        observation_size: O.
        action_size: A.
        test_tasks: test tasks of the split "default"; in "all" every task is both.
        environment: the manifest's entry; None for the point robot.
        family: short name of the family.
        ragged: episodes end between half the horizon and the horizon, else all at the horizon.
        seed: of the numbers.

    Returns:
        The path.
    """
    sizes = {"observation_size": observation_size, "action_size": action_size, "horizon": horizon}
    writer = writer_for(
        path,
        num_tasks=num_tasks,
        test_tasks=test_tasks,
        environment=environment,
        family=family,
        seed=seed,
        **sizes,
    )
    for task in range(num_tasks):
        transitions, stage, length = task_episodes(
            task, episodes_per_stage=episodes_per_stage, seed=seed, ragged=ragged, **sizes
        )
        writer.write_task(task, transitions, stage=stage, length=length)
    return writer.commit(
        {
            "random": np.full(num_tasks, -10.0),
            "best_behaviour": np.full(num_tasks, 10.0),
            "stages": {name: np.full(num_tasks, 5.0 * i) for i, name in enumerate(STAGES)},
        }
    )


def quiet_trainer(folder: Path, max_steps: int) -> lightning.Trainer:
    """Return a trainer that writes and shows nothing."""
    return lightning.Trainer(
        default_root_dir=folder,
        max_steps=max_steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class Batches:
    """A loader of given batches; Lightning would take a list for several loaders."""

    def __init__(self, *batches: TensorDict) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[TensorDict]:
        return iter(self.batches)
