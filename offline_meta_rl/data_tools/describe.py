"""What the data of others does not say by itself: environment, tasks, splits, stages.

It comes from a description file (YAML or JSON) and from options of the command; a built-in family
fills in what it knows.
"""

from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

import numpy as np
import yaml

from offline_meta_rl.data.description import (
    Description,
    Environment,
    References,
    Space,
    Split,
    Splits,
    named_splits,
    plain_returns,
)

if TYPE_CHECKING:
    from offline_meta_rl.envs.base import TaskFamily  # imports the simulators

KEYS = {
    "family": str,
    "environment": dict,
    "horizon": int,
    "task_seed": int,
    "task_parameters": list,
    "splits": dict,
    "stages": list,
    "reference_returns": dict,
}
FILE_NAMES = ("description.yaml", "description.json")


class DescriptionFile(TypedDict, total=False):
    """The keys of a description file, and ``test_tasks``, an option in place of ``splits``."""

    family: str
    environment: Environment
    horizon: int
    task_seed: int
    task_parameters: list[list[float]]
    splits: Splits
    stages: list[str]
    reference_returns: References
    test_tasks: list[int]


def read_settings(file: Path | None, folder: Path) -> DescriptionFile:
    """Read a description; without one, ``description.yaml`` or ``.json`` in the data's folder.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: Names the key that is unknown or of another type.
    """
    if file is None:
        file = next((folder / n for n in FILE_NAMES if (folder / n).is_file()), None)
        if file is None:
            return {}
    if not file.is_file():
        raise FileNotFoundError(f"No description at {file}; pass --description of a YAML file.")
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: expected YAML or JSON, found {error}.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file}: expected keys and values, found {type(settings).__name__}.")
    for key, value in settings.items():
        if key not in KEYS:
            raise ValueError(
                f"{file}: unknown key {key!r}: expected some of {', '.join(KEYS)}. Correct or "
                "remove it."
            )
        if not isinstance(value, KEYS[key]):
            raise ValueError(
                f"{file}: {key}: expected {KEYS[key].__name__}, found {type(value).__name__}."
            )
    return cast(DescriptionFile, settings)


def describe(
    settings: DescriptionFile,
    *,
    where: Path,
    num_tasks: int,
    observation_space: Space,
    action_space: Space,
    default_stage: str = "data",
) -> Description:
    """Complete a description.

    Args:
        settings: What a description file and the command's options say, by key.
        where: Name of the source, for errors.
        num_tasks: Tasks found in the source, T.
        observation_space: The space found there.
        action_space: The space found there.
        default_stage: Name of the only stage, unless stages are described.

    Raises:
        ValueError: Something is missing, or does not fit the data.
    """
    environment, family = _environment(settings, where)
    name = settings.get("family") or (family.name if family else None)
    name = name or environment["id"].rpartition("/")[2]
    if family is not None:
        _check_sizes(family, observation_space, action_space, where)
    horizon = settings.get("horizon") or (family.horizon if family else None)
    if not horizon or horizon < 1:
        raise ValueError(
            f"{where}: expected the horizon, the steps after which an episode is truncated; found "
            "none. Name it in the description (horizon: 200), or a built-in family."
        )
    return Description(
        environment=environment,
        family=name,
        observation_space=observation_space,
        action_space=action_space,
        horizon=horizon,
        task_seed=settings.get("task_seed") or 0,
        task_parameters=_parameters(settings, family, num_tasks, where),
        splits=_splits(settings, family, num_tasks, where),
        stages=[str(stage) for stage in settings.get("stages") or [default_stage]],
        reference_returns=plain_returns(settings.get("reference_returns") or {}),
    )


def _environment(settings: DescriptionFile, where: Path) -> tuple[Environment, "TaskFamily | None"]:
    """Return the environment, and its built-in family if it is one."""
    from offline_meta_rl.envs import FAMILIES

    given = settings.get("environment")
    env_id = given.get("id") if given else None
    wanted = env_id or settings.get("family")
    for family in FAMILIES.values():
        # Either name of a built-in family is enough: all else about it is known.
        if wanted in (family.name, family.env_id):
            environment: Environment = {
                "id": family.env_id,
                "version": family.version,
                "kwargs": {},
            }
            return environment, family
    if given is None or not env_id:
        raise ValueError(
            f"{where}: expected the family of tasks, found {wanted!r}. Pass --family with one of "
            f"{', '.join(FAMILIES)}, or describe the environment (environment: {{id: ...}})."
        )
    return given, None


def _check_sizes(family: "TaskFamily", observation: Space, action: Space, where: Path) -> None:
    expected = (family.observation_space["shape"], family.action_space["shape"])
    found = (observation["shape"], action["shape"])
    if expected != found:
        raise ValueError(
            f"{where}: expected observations {expected[0]} and actions {expected[1]} of "
            f"{family.name}, found {found[0]} and {found[1]}. Name the family of this data."
        )


def _parameters(
    settings: DescriptionFile, family: "TaskFamily | None", num_tasks: int, where: Path
) -> list[list[float]]:
    given, seed = settings.get("task_parameters"), settings.get("task_seed")
    if given is None and family is not None:
        if seed is None:
            raise ValueError(
                f"{where}: expected the parameters of each task of {family.name}, found none. "
                "List them in the description (task_parameters: [[...], ...]), or pass "
                "--task_seed if the tasks are the family's own."
            )
        # The first tasks of a family are the same however many there are.
        given = family.task_parameters(seed)[:num_tasks].tolist()
    elif given is None:
        # An environment from outside has no parameters that are known: number the tasks.
        given = [[float(task)] for task in range(num_tasks)]
    try:
        parameters = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        parameters = np.empty(0)
    if parameters.ndim != 2 or len(parameters) != num_tasks or not np.isfinite(parameters).all():
        raise ValueError(
            f"{where}: task_parameters: expected one list of numbers for each of {num_tasks} "
            f"tasks, all equally long; found {len(given)} entries. Describe every task once."
        )
    result: list[list[float]] = parameters.tolist()
    return result


def _splits(
    settings: DescriptionFile, family: "TaskFamily | None", num_tasks: int, where: Path
) -> Splits:
    tasks = range(num_tasks)
    test, given = settings.get("test_tasks"), settings.get("splits")
    if test is not None:
        train = [task for task in tasks if task not in test]
        given = {"default": Split(train=train, test=list(test))}
    elif given is None and family is not None and family.num_tasks == num_tasks:
        given = named_splits(family.splits)
    elif given is None:
        given = {"default": Split(train=list(tasks), test=[])}
    for name, split in given.items():
        known = isinstance(split, dict) and set(split) == {"train", "test"}
        if not known or any(task not in tasks for task in [*split["train"], *split["test"]]):
            raise ValueError(
                f"{where}: split {name!r}: expected 'train' and 'test' lists of tasks 0 to "
                f"{num_tasks - 1}, found {split}. Correct it."
            )
    return given
