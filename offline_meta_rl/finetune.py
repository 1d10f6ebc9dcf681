"""``lightning finetune``: from a checkpoint to a fine-tuning of its method on its held-out tasks.

The checkpoint holds the method, the data and the run's config. Of a config, this command reads
``finetune``, ``data``, ``seed_everything`` and the part of ``trainer`` that ``Place`` names; what
belongs to the meta-training is left out.
"""

import inspect
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings
from lightning.fabric import Fabric, seed_everything
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from offline_meta_rl.cli import SHARED_CALLBACKS
from offline_meta_rl.common.checkpoints import Checkpoint
from offline_meta_rl.common.commands import Brief, one_message
from offline_meta_rl.common.configs import expand
from offline_meta_rl.finetuning.command import fine_tune
from offline_meta_rl.finetuning.learner import checked
from offline_meta_rl.finetuning.result import FineTuningResult, Outputs, summary_lines
from offline_meta_rl.finetuning.settings import FineTuningSettings
from offline_meta_rl.launch import (
    check_settings,
    defaults_path,
    given_configs,
    hide_noise,
    import_classes,
    keep_wandb_offline,
    option,
    stored_config,
)
from offline_meta_rl.methods.checks import check_same_data
from offline_meta_rl.methods.loading import load

OF_TRAINING = {"model", "weights_only", "verbose", *SHARED_CALLBACKS}
"""Keys of other commands' configs that mean nothing here."""


@dataclass(frozen=True)
class Place:
    """Where the fine-tuning runs and writes; the keys of ``--trainer`` that it knows.

    Attributes:
        default_root_dir: Folder of the results. By default that of the meta-training.
        accelerator: "cpu", "gpu", or "auto" for a GPU if there is one.
        devices: 1, or the index of a GPU in a list: all tasks run in one process.
        logger: Loggers of the curve; true for a CSV file, false for none.
        enable_progress_bar: Show progress on standard error.
    """

    default_root_dir: str = "runs/default"
    accelerator: str = "auto"
    devices: int | list[int] = 1
    logger: Logger | list[Logger] | bool | None = None
    enable_progress_bar: bool | None = None

    def __post_init__(self) -> None:
        """Check the number of devices.

        Raises:
            ValueError: There is more than one.
        """
        count = self.devices if isinstance(self.devices, int) else len(self.devices)
        if count != 1:
            raise ValueError(
                f"Fine-tuning runs all tasks in one process, found {count}. Set "
                "--trainer.devices=1."
            )

    @property
    def loggers(self) -> list[Logger]:
        """The loggers as a list."""
        if isinstance(self.logger, Logger):
            return [self.logger]
        if isinstance(self.logger, list):
            return self.logger
        return [CSVLogger(self.default_root_dir, name="csv")] if self.logger else []


class FineTuneParser(Brief, ArgumentParser):
    """Answers a mistake with the mistake, not with all options."""


def parser() -> ArgumentParser:
    """Return the parser of the command."""
    made = FineTuneParser(
        prog="lightning finetune",
        description="Fine-tune a checkpoint online, in the simulator, on its held-out tasks.",
        parser_mode="omegaconf+",
    )
    made.add_argument("--config", action=ActionConfigFile, help="YAML with settings; repeatable.")
    made.add_argument("--ckpt_path", type=str | None, help="The meta-trained checkpoint.")
    made.add_argument(
        "--seed_everything", type=bool | int, default=0, help="Seed of whatever has none of its own"
    )
    made.add_class_arguments(FineTuningSettings, "finetune")
    made.add_class_arguments(Place, "trainer")
    made.add_subclass_arguments(LightningDataModule, "data", required=False, fail_untyped=False)
    return made


def run_finetune(arguments: Sequence[str]) -> FineTuningResult:
    """Fine-tune a checkpoint; return the content of the result file.

    Args:
        arguments: Options of the command.

    Raises:
        ValueError: No checkpoint, other data than it was trained on, or settings that do not fit.
        TypeError: A method or data that cannot be fine-tuned.
        Interrupted: The process was asked to stop; the state is saved.
    """
    keep_wandb_offline()
    hide_noise()
    import_classes()
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    made = parser()
    if {"-h", "--help"} & {*arguments}:
        made.parse_args(list(arguments))
    with tempfile.TemporaryDirectory() as folder:
        given = expand(arguments, Path(folder))
        check_settings(given)
        checkpoint = Checkpoint.read(_checkpoint_path(given), mapped=True)
        config = made.parse_args(_with_configs(given, checkpoint, Path(folder)))
    if config.seed_everything is not False:
        seed_everything(None if config.seed_everything is True else config.seed_everything)
    objects = made.instantiate_classes(config)
    return _fine_tune(checkpoint, objects.finetune, objects.trainer, objects.data, arguments)


def _fine_tune(
    checkpoint: Checkpoint,
    settings: FineTuningSettings,
    place: Place,
    data: LightningDataModule,
    arguments: Sequence[str],
) -> FineTuningResult:
    """Put method and data together, run, and close what was opened."""
    device = Fabric(accelerator=place.accelerator, devices=place.devices).device
    method = load(str(checkpoint.path), device=device)
    data.prepare_data()
    data.setup("test")
    check_same_data(checkpoint.dataset, data)
    outputs = Outputs(Path(place.default_root_dir), settings.name, place.loggers)
    for logger in outputs.loggers:
        logger.log_hyperparams({**method.hparams_initial, **data.hparams_initial})
    status = "failed"
    try:
        content = fine_tune(
            *checked(method, data),
            settings,
            outputs,
            global_step=checkpoint.global_step,
            resume=f"lightning finetune {shlex.join(arguments)}",
            show_progress=place.enable_progress_bar is not False,
        )
        status = "success"
    finally:
        for logger in outputs.loggers:
            logger.finalize(status)
        data.teardown("test")
    print("\n".join(summary_lines(content, outputs)), file=sys.stderr)
    return content


def _with_configs(arguments: Sequence[str], checkpoint: Checkpoint, folder: Path) -> list[str]:
    """Return the arguments with the defaults and the checkpoint's config before any ``--config``.

    Args:
        arguments: As given.
        checkpoint: Holds the config of the meta-training.
        folder: For the parts of configs that the command reads.
    """
    stored = stored_config(checkpoint)
    if stored is None and not (option(arguments, "--config") or option(arguments, "--data")):
        raise ValueError(
            f"{checkpoint.path} holds no config; expected a checkpoint written by `lightning fit`. "
            "Give the run's config too: --config FILE."
        )
    (stored or {}).get("trainer", {}).pop("devices", None)  # the meta-training may have had many
    defaults = yaml.safe_load(defaults_path().read_text())
    first = []
    for name, config in (("defaults", defaults), ("stored", stored or {})):
        first += ["--config", _written(config, folder / f"{name}.yaml")]
    given = list(arguments)
    for number, (name, config) in enumerate(given_configs(arguments)):
        path = _written(config, folder / f"given_{number}.yaml")
        given = [path if each == name else each for each in given]
        given = [f"--config={path}" if each == f"--config={name}" else each for each in given]
    return [*first, *given]


def _written(config: Mapping[str, Any], path: Path) -> str:
    """Write a config without what belongs to the meta-training; return the path."""
    kept = {key: value for key, value in config.items() if key not in OF_TRAINING}
    if isinstance(config.get("trainer"), Mapping):
        own = {field.name for field in fields(Place)}
        dropped = set(inspect.signature(Trainer).parameters) - own
        kept["trainer"] = {k: v for k, v in config["trainer"].items() if k not in dropped}
    path.write_text(yaml.safe_dump(kept))
    return str(path)


def _checkpoint_path(arguments: Sequence[str]) -> str:
    """Return the checkpoint that the command line names, or the last ``--config`` with one."""
    of_configs = [config.get("ckpt_path") for _, config in given_configs(arguments)]
    for path in (option(arguments, "--ckpt_path"), *reversed(of_configs)):
        if path:
            return str(path)
    raise ValueError(
        "Fine-tuning starts from a meta-trained checkpoint: expected --ckpt_path, found none. "
        "Pass --ckpt_path runs/<run>/checkpoints/last.ckpt."
    )


def finetune_command(arguments: Sequence[str]) -> None:
    """Run the command; errors about the input are one message, without a traceback."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a user's own modules
    with one_message(also=(MisconfigurationException,)):
        run_finetune(arguments)
