"""The run's whole config in every checkpoint; ``Checkpoint.config`` reads it back."""

from functools import cached_property
from pathlib import Path

import lightning.pytorch as pl
import yaml
from lightning.pytorch.cli import SaveConfigCallback

from offline_meta_rl.common.checkpoints import CONFIG

Setting = None | bool | int | float | str | list["Setting"] | dict[str, "Setting"]
"""A value in a config file."""


def relative_to_root(value: Setting, root: str) -> Setting:
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

    @cached_property
    def config_text(self) -> str:
        """The run's config as YAML."""
        # Writing it takes as long as hundreds of small outer steps, and it never changes.
        config = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        root = config["trainer"].get("default_root_dir")
        if root:
            config = {key: relative_to_root(value, root) for key, value in config.items()}
            config["trainer"]["default_root_dir"] = root
        return yaml.safe_dump(config, sort_keys=False)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write ``config.yaml`` into the run's folder."""
        if stage == "fit" and trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / self.config_filename).write_text(self.config_text)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, object]
    ) -> None:
        """Make the checkpoint enough to test, predict or resume."""
        checkpoint[CONFIG] = self.config_text
