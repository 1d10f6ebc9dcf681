"""A run's checkpoint: the one place that knows the names in it.

    checkpoint = Checkpoint.read("runs/quickstart/checkpoints/last.ckpt")
    checkpoint.global_step, checkpoint.method, checkpoint.dataset

Lightning writes ``state_dict``, ``global_step``, ``callbacks`` and ``hyper_parameters``;
``MetaModule`` adds ``method``, ``random_state`` and ``dataset``, ``StoreConfig`` adds ``config``,
``BeliefFilter`` adds ``planned_steps``.
"""

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import yaml
from torch import Tensor

METHOD = "method"
RANDOM_STATE = "random_state"
DATASET = "dataset"
CONFIG = "config"
PLANNED_STEPS = "planned_steps"
SETTINGS = ("hyper_parameters", "datamodule_hyper_parameters")
"""What the method and the datamodule were built with."""
_WEIGHTS = "state_dict"


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint, by name.

    Attributes:
        content: All entries.
        path: The file; None for a checkpoint that Lightning hands over in memory.
    """

    content: Mapping[str, Any]
    path: Path | None = None

    @classmethod
    def read(cls, path: str | Path, *, mapped: bool = False) -> Self:
        """Read a file onto the CPU; no code in it is run.

        Args:
            path: A ``.ckpt`` file.
            mapped: Leave tensors on the disk until they are used, for who needs other entries.

        Raises:
            FileNotFoundError: No such file.
            ValueError: The file is no checkpoint, or a damaged one.
        """
        return cls(read_tensors(path, mapped=mapped), Path(path))

    @property
    def method(self) -> str | None:
        """Class path of the method; None in a checkpoint of another program."""
        return self.content.get(METHOD)

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Name of a parameter or buffer of the method -> its value."""
        return self.content.get(_WEIGHTS, {})

    @property
    def global_step(self) -> int:
        """Outer steps taken."""
        return int(self.content["global_step"])

    @property
    def planned_steps(self) -> int:
        """Outer steps after which a filter is trained; 0 in checkpoints of other methods."""
        return int(self.content.get(PLANNED_STEPS, 0))

    @property
    def hyper_parameters(self) -> dict[str, Any]:
        """Arguments that the method was built with, under the names of the version that wrote it.

        Names with an underscore are Lightning's own and are left out.
        """
        given = self.content.get(SETTINGS[0], {})
        return {name: value for name, value in given.items() if not name.startswith("_")}

    @property
    def config(self) -> dict[str, Any] | None:
        """The run's whole config; None if there is none."""
        text = self.content.get(CONFIG)
        return None if text is None else dict(yaml.safe_load(text))

    @property
    def dataset(self) -> Mapping[str, str] | None:
        """``environment`` and ``checksum`` of the data trained on; None if there is no dataset."""
        return self.content.get(DATASET)

    @property
    def random_state(self) -> dict[str, Tensor]:
        """States of the random generators, ``cpu`` and perhaps ``cuda``."""
        state: dict[str, Tensor] = self.content[RANDOM_STATE]
        return state

    def callback_state(self, key: str) -> dict[str, Any] | None:
        """Return what a callback with this ``state_key`` saved; None if there was none."""
        return self.content.get("callbacks", {}).get(key)

    def check_complete(self) -> None:
        """Check that the file holds a trained method of this library.

        Raises:
            ValueError: Names the entries expected and found.
        """
        if not {METHOD, _WEIGHTS} <= set(self.content):
            raise ValueError(
                f"{self.path} is not a checkpoint of offline_meta_rl: expected the entries "
                f"{METHOD} and {_WEIGHTS}, found {sorted(self.content)}."
            )


def read_tensors(path: str | Path, *, mapped: bool = False) -> dict[str, Any]:
    """Read a file that ``torch.save`` wrote, onto the CPU; no code in it is run.

    Args:
        path: The file.
        mapped: Leave tensors on the disk until they are used.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is damaged, or holds something else than names and values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"No checkpoint at {path}: expected a .ckpt file that `lightning fit` wrote. Pass the "
            "path of one."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"{path} is not a readable checkpoint: expected a file of tensors and plain types as "
            f"`lightning fit` writes it. {error}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} is not a checkpoint of offline_meta_rl: expected names and values, found "
            f"{type(content).__name__}."
        )
    return content
