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
from typing import get_origin, is_typeddict

import numpy as np

from offline_meta_rl.data.description import (
    FINAL_KEY,
    Description,
    policy_returns,
    stage_returns,
)

SCHEMA_VERSION = 2
"""Of image datasets; datasets of vectors are as they were in version 1, and say so."""
CHUNK_BYTES = 16 * 2**20
MANIFEST_FILE = "manifest.json"
EPISODE_KEYS = ("task", "stage", "start", "length")


@dataclass(frozen=True)
class ArrayEntry:
    """One array file.

    Attributes:
        shape: All sizes, rows first.
        dtype: NumPy's name of the element type.
        file: Path relative to the dataset's folder.
        bytes: Size of the file.
        checksums: BLAKE2b (16 bytes, hexadecimal) of each chunk of ``chunk_bytes``.
    """

    shape: list[int]
    dtype: str
    file: str
    bytes: int
    checksums: list[str]


@dataclass(frozen=True, kw_only=True)
class Manifest(Description):
    """What a dataset of T tasks holds; also the fields of ``Description``.

    Attributes:
        schema_version: Version of this format.
        num_episodes: Episodes of each task, [T].
        num_transitions: Transitions of each task, [T].
        provenance: Seed, configuration, versions: how the data came about.
        chunk_bytes: Bytes that one checksum covers.
        arrays: Array name ("transitions/reward") -> its file.
    """

    schema_version: int
    num_episodes: list[int]
    num_transitions: list[int]
    provenance: dict[str, object]
    chunk_bytes: int
    arrays: dict[str, ArrayEntry]

    @property
    def checksum(self) -> str:
        """One string that identifies data, tasks and splits, whatever their provenance."""
        # The same data collected again, on another day or with other packages, are the same.
        content = {key: value for key, value in asdict(self).items() if key != "provenance"}
        text = json.dumps(content, sort_keys=True, allow_nan=False)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def to_json(self) -> str:
        """Return the text of ``manifest.json``, the version first."""
        content = {"schema_version": self.schema_version} | asdict(self)
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of the dataset in a folder.

        Raises:
            FileNotFoundError: There is none.
            ValueError: See ``from_json``.
        """
        file = folder / MANIFEST_FILE
        if not file.is_file():
            raise FileNotFoundError(
                f"No dataset at {folder}: expected a folder with {MANIFEST_FILE}. Collect it or "
                "pass the path of a complete dataset (an interrupted one ends in '.partial')."
            )
        return cls.from_json(file.read_text(encoding="utf-8"), file)

    @classmethod
    def from_json(cls, text: str, file: Path) -> "Manifest":
        """Parse and check the text of ``manifest.json``.

        Args:
            text: The file's content.
            file: Named in errors.

        Raises:
            ValueError: Names the file and the field that is missing, of another type, of an
                unknown version, or at odds with another field.
        """
        values = _parse(text, file)
        for field in fields(cls):
            expected = _json_type(field.type)
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
        # One is enough: nothing else can be trusted before it is mended.
        for name, problem in _problems(manifest):
            raise ValueError(f"{file}: field {name!r}: {problem}. Collect or copy the data again.")
        return manifest


def expected_layout(manifest: Manifest) -> dict[str, tuple[list[int], str]]:
    """Return array name -> (shape, dtype) as the rest of the manifest implies them."""
    rows, episodes = sum(manifest.num_transitions), sum(manifest.num_episodes)
    layout = {
        f"transitions/{key}": ([rows, *shape], dtype)
        for key, (shape, dtype) in manifest.row_layout.items()
    }
    layout |= {f"episodes/{key}": ([episodes], "int64") for key in EPISODE_KEYS}
    if manifest.has_images:
        shape = manifest.observation_space["shape"]
        layout[f"episodes/{FINAL_KEY}"] = ([episodes, *shape], "uint8")
    return layout


def _json_type(kind: object) -> type:
    """Return the Python type of a field as JSON's parser gives it: the annotation's container."""
    kind = get_origin(kind) or kind
    return kind if isinstance(kind, type) and not is_typeddict(kind) else dict


def _parse(text: str, file: Path) -> dict:
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
    return values


def _problems(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield (field, what is wrong) for fields that contradict each other."""
    tasks = manifest.num_tasks
    counts = {"num_episodes": manifest.num_episodes, "num_transitions": manifest.num_transitions}
    for name, count in counts.items():
        if len(count) != tasks:
            yield name, f"expected {tasks} tasks, found {len(count)}"
    for name, split in manifest.splits.items():
        if set(split) != {"train", "test"} or not set(range(tasks)).issuperset(
            [*split["train"], *split["test"]]
        ):
            expected = f"'train' and 'test' lists of tasks 0 to {tasks - 1}"
            yield "splits", f"{name!r}: expected {expected}, found {split}"
    returns = manifest.reference_returns
    for name, values in (stage_returns(returns) | policy_returns(returns)).items():
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
