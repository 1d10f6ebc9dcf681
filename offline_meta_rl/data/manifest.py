"""The manifest of a dataset: what its arrays hold, and how to tell that they are whole.

The manifest is the file ``manifest.json`` in the dataset's folder. Everything that describes the
tasks is in it; the arrays beside it are plain little-endian numbers in row-major order.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_origin

import numpy as np

SCHEMA_VERSION = 2
"""Of image datasets; datasets of vectors are as they were in version 1, and say so."""
CHUNK_BYTES = 16 * 2**20
MANIFEST_FILE = "manifest.json"

TRANSITION_KEYS = (
    "observation",
    "action",
    "reward",
    "next_observation",
    "terminated",
    "truncated",
)
EPISODE_KEYS = ("task", "stage", "start", "length")
FINAL_KEY = "final_observation"
"""Of episodes of image datasets, which store each image once: no ``next_observation``."""


@dataclass(frozen=True)
class ArrayEntry:
    """One array file.

    Attributes:
        shape: all sizes, rows first.
        dtype: numpy's name of the element type.
        file: path relative to the dataset's folder.
        bytes: size of the file.
        checksums: BLAKE2b (16 bytes, hexadecimal) of each chunk of ``chunk_bytes``.
    """

    shape: list[int]
    dtype: str
    file: str
    bytes: int
    checksums: list[str]


@dataclass(frozen=True)
class Manifest:
    """What a dataset of T tasks holds.

    Attributes:
        schema_version: version of this format.
        environment: ``id``, ``version`` and ``kwargs`` of the gymnasium environment.
        family: short name of the task family.
        observation_space: ``shape``, ``dtype``, ``low`` and ``high`` (None for unbounded).
        action_space: the same for actions.
        horizon: steps after which an episode is truncated.
        task_seed: seed the task parameters come from.
        task_parameters: numbers that describe each task, [T, P].
        splits: split name -> {"train": task indices, "test": task indices}.
        stages: names of the behaviour stages, poor to expert.
        reference_returns: "random", "best_behaviour", "standing_still" -> mean return of each task
            [T]; "stages" -> {stage name: [T]}. May be empty: then nothing can be normalised.
        num_episodes: episodes of each task, [T].
        num_transitions: transitions of each task, [T].
        provenance: seed, configuration, versions: how the data came about.
        chunk_bytes: bytes that one checksum covers.
        arrays: array name ("transitions/reward") -> its file.
    """

    schema_version: int
    environment: dict[str, Any]
    family: str
    observation_space: dict[str, Any]
    action_space: dict[str, Any]
    horizon: int
    task_seed: int
    task_parameters: list[list[float]]
    splits: dict[str, dict[str, list[int]]]
    stages: list[str]
    reference_returns: dict[str, Any]
    num_episodes: list[int]
    num_transitions: list[int]
    provenance: dict[str, Any]
    chunk_bytes: int
    arrays: dict[str, ArrayEntry]

    @property
    def num_tasks(self) -> int:
        """Number of tasks T."""
        return len(self.task_parameters)

    @property
    def has_images(self) -> bool:
        """Whether observations are images, which are stored once."""
        return are_images(self.observation_space)

    @property
    def transition_keys(self) -> tuple[str, ...]:
        """Names of the arrays of transitions."""
        without = "next_observation" if self.has_images else None
        return tuple(key for key in TRANSITION_KEYS if key != without)

    @property
    def observation_size(self) -> int:
        """Numbers in one observation, O."""
        return math.prod(self.observation_space["shape"])

    @property
    def action_size(self) -> int:
        """Numbers in one action, A."""
        return math.prod(self.action_space["shape"])

    @property
    def checksum(self) -> str:
        """One string that identifies data, tasks and splits, whatever their provenance."""
        content = {key: value for key, value in asdict(self).items() if key != "provenance"}
        text = json.dumps(content, sort_keys=True, allow_nan=False)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def to_json(self) -> str:
        """Return the text of ``manifest.json``."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, file: Path) -> "Manifest":
        """Parse and check the text of ``manifest.json``.

        Args:
            text: the file's content.
            file: named in errors.

        Raises:
            ValueError: names the file and the field that is missing, of another type, of an
                unknown version, or at odds with another field.
        """
        values = _parse(text, file)
        for field in fields(cls):
            expected: Any = get_origin(field.type) or field.type
            if field.name not in values:
                raise ValueError(
                    f"{file}: field {field.name!r} is missing; expected the manifest of a dataset "
                    "written by DatasetWriter. Collect or copy the dataset again."
                )
            if not isinstance(values[field.name], expected):
                raise ValueError(
                    f"{file}: field {field.name!r}: expected {expected.__name__}, found "
                    f"{type(values[field.name]).__name__}. Collect or copy the dataset again."
                )
        known = {field.name: values[field.name] for field in fields(cls)}
        try:
            known["arrays"] = {k: ArrayEntry(**entry) for k, entry in known["arrays"].items()}
        except TypeError as error:
            raise ValueError(f"{file}: field 'arrays': {error}.") from error
        manifest = cls(**known)
        for name, problem in _problems(manifest):
            raise ValueError(f"{file}: field {name!r}: {problem}. Collect or copy the data again.")
        return manifest


def box(shape: list[int], dtype: str, low: float | None, high: float | None) -> dict[str, Any]:
    """Return the manifest's entry of a space; None for an unbounded side."""
    return {"shape": shape, "dtype": dtype, "low": low, "high": high}


def are_images(observation_space: dict[str, Any]) -> bool:
    """Return whether a space is one of images: uint8, [channels, height, width]."""
    return observation_space["dtype"] == "uint8" and len(observation_space["shape"]) == 3


def expected_layout(manifest: Manifest) -> dict[str, tuple[list[int], str]]:
    """Return array name -> (shape, dtype) as the rest of the manifest implies them."""
    rows, episodes = sum(manifest.num_transitions), sum(manifest.num_episodes)
    observation = manifest.observation_space
    action = manifest.action_space
    of_row: dict[str, tuple[list[int], str]] = {
        "observation": (observation["shape"], observation["dtype"]),
        "action": (action["shape"], action["dtype"]),
        "reward": ([], "float32"),
        "next_observation": (observation["shape"], observation["dtype"]),
        "terminated": ([], "bool"),
        "truncated": ([], "bool"),
    }
    layout = {
        f"transitions/{key}": ([rows, *of_row[key][0]], of_row[key][1])
        for key in manifest.transition_keys
    }
    layout |= {f"episodes/{key}": ([episodes], "int64") for key in EPISODE_KEYS}
    if manifest.has_images:
        layout[f"episodes/{FINAL_KEY}"] = ([episodes, *observation["shape"]], "uint8")
    return layout


def _parse(text: str, file: Path) -> dict[str, Any]:
    """Parse JSON and check the version, before any field is trusted."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{file}: expected JSON, found {error}. Copy the dataset again."
        ) from error
    version = values.get("schema_version") if isinstance(values, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise ValueError(
            f"{file}: expected the manifest of a dataset with an integer 'schema_version', found "
            f"{version!r}. Pass the folder of a dataset written by DatasetWriter."
        )
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{file}: field 'schema_version': expected at most {SCHEMA_VERSION}, found {version}. "
            "The dataset was written by a newer offline_meta_rl; update this one."
        )
    if version < 1:
        raise ValueError(
            f"{file}: field 'schema_version': expected 1 to {SCHEMA_VERSION}, found {version}, "
            "which never existed. Collect or copy the dataset again."
        )
    result: dict[str, Any] = values
    return result


def _problems(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield (field, what is wrong) for fields that contradict each other."""
    tasks = manifest.num_tasks
    for name in ("num_episodes", "num_transitions"):
        count = len(getattr(manifest, name))
        if count != tasks:
            yield name, f"expected {tasks} tasks, found {count}"
    for name, split in manifest.splits.items():
        unknown = [t for part in split.values() for t in part if not 0 <= t < tasks]
        if unknown or set(split) != {"train", "test"}:
            expected = f"'train' and 'test' lists of tasks 0 to {tasks - 1}"
            yield "splits", f"{name!r}: expected {expected}, found {split}"
    returns = dict(manifest.reference_returns)
    for name, values in (returns.pop("stages", {}) | returns).items():
        if len(values) != tasks:
            yield "reference_returns", f"{name!r}: expected {tasks} tasks, found {len(values)}"
    if manifest.has_images and manifest.schema_version < 2:
        yield "schema_version", "expected 2, of data that stores its images once, found 1"
    if manifest.chunk_bytes < 8 or manifest.chunk_bytes % 8:
        yield "chunk_bytes", f"expected a multiple of 8, found {manifest.chunk_bytes}"
    for problem in _array_problems(manifest):
        yield "arrays", problem


def _array_problems(manifest: Manifest) -> Iterator[str]:
    """Yield what is wrong with the entries of array files."""
    for name, (shape, dtype) in expected_layout(manifest).items():
        entry = manifest.arrays.get(name)
        if entry is None:
            yield f"{name!r} is missing"
        elif (entry.shape, entry.dtype) != (shape, dtype):
            yield f"{name!r}: expected {shape} {dtype}, found {entry.shape} {entry.dtype}"
        elif entry.bytes != math.prod(shape) * np.dtype(dtype).itemsize:
            yield f"{name!r}: {entry.bytes} bytes do not fit {shape} {dtype}"
        elif len(entry.checksums) != math.ceil(entry.bytes / manifest.chunk_bytes):
            yield f"{name!r}: {len(entry.checksums)} checksums do not fit {entry.bytes} bytes"
