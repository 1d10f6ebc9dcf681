"""The run's whole config in every checkpoint, and what reads it back."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.cli import SaveConfigCallback


def stored_config(checkpoint_path: Path, keys: set[str]) -> dict[str, Any] | None:
    """Return those keys of the config that a checkpoint was trained with; None if it holds none.

    Raises:
        ValueError: the file is not a checkpoint.
    """
    try:
        checkpoint = torch.load(checkpoint_path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, RuntimeError) as error:
        raise ValueError(
            f"{checkpoint_path} is not a readable checkpoint; expected one written by "
            f"`lightning fit`. {error}"
        ) from error
    text = checkpoint.get("config")
    if text is None:
        return None
    return {key: value for key, value in yaml.safe_load(text).items() if key in keys}


def relative_to_root(value: Any, root: str) -> Any:
    """Write paths below the run's folder as an interpolation again, so that they can move."""
    if isinstance(value, dict):
        return {key: relative_to_root(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [relative_to_root(item, root) for item in value]
    if isinstance(value, str) and (value == root or value.startswith(f"{root}/")):
        return "${trainer.default_root_dir}" + value.removeprefix(root)
    return value


class StoreConfig(SaveConfigCallback):
    """Puts the whole config into every checkpoint and, for ``fit``, beside the results."""

    def config_text(self) -> str:
        """Return the run's config as YAML."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        root = config["trainer"].get("default_root_dir")
        if root:
            config = relative_to_root(config, root)
            config["trainer"]["default_root_dir"] = root
        return yaml.safe_dump(config, sort_keys=False)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write ``config.yaml`` into the run's folder."""
        if stage == "fit" and trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / self.config_filename).write_text(self.config_text())

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Make the checkpoint enough to test, predict or resume."""
        checkpoint["config"] = self.config_text()
