"""Lightning's own commands: ``lightning fit | validate | test | predict``.

Three things are added: shared defaults that do not depend on the working directory, callbacks that
every run has whatever its config lists, and a checkpoint that is enough by itself
(``lightning test --ckpt_path X``).
"""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as CheckpointCallback
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from callbacks.interrupt import Interrupt
from callbacks.monitor import Monitor
from callbacks.progress import Progress
from callbacks.save_policies import SavePolicies
from callbacks.store_config import StoreConfig
from offline_meta_rl.common.checkpoints import Checkpoint
from offline_meta_rl.common.commands import Brief, one_message
from offline_meta_rl.common.configs import expand
from offline_meta_rl.data.contracts import DataSizes, HasSizes
from offline_meta_rl.launch import (
    check_settings,
    defaults_path,
    hide_noise,
    import_classes,
    keep_wandb_offline,
    option,
    owners_of,
    stored_config,
    with_folder,
)
from offline_meta_rl.stages import train_first_stage

SHARED_CALLBACKS: dict[str, type[Callback]] = {
    "progress": Progress,
    "monitor": Monitor,
    "best": BestCheckpoint,
    "checkpoint": LastCheckpoint,
    "interrupt": Interrupt,
    "policies": SavePolicies,
}
DESCRIPTION = "Meta-train, validate and test on fixed data of many tasks."
LIGHTNINGS_OWN = {"best", "last", "hpc", "registry"}  # words that --ckpt_path may be


class Parser(Brief, LightningArgumentParser):
    """Answers a mistake with the mistake, not with two hundred lines of usage."""


class CommandLine(LightningCLI):
    """Lightning's command line with shared callbacks and self-sufficient checkpoints."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Give each shared callback its own key; let the data say the sizes of the networks."""
        for key, callback in SHARED_CALLBACKS.items():
            parser.add_class_arguments(callback, key, fail_untyped=False, sub_configs=True)
        for name in DataSizes.names():
            parser.link_arguments(
                "data",
                f"model.init_args.{name}",
                compute_fn=partial(self._size, name),
                apply_on="instantiate",
            )

    def _size(self, name: str, data: LightningDataModule) -> int | tuple[int, ...] | None:
        """Return the method's argument ``name``: as given, or else what the data says."""
        config = self.config.get(str(self.subcommand), self.config)
        given: int | tuple[int, ...] | None = (config.model.init_args or {}).get(name)
        if given is None and isinstance(data, HasSizes):
            given = asdict(data.sizes())[name]
        return given

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, with the config stored in ``--ckpt_path`` read before any ``--config``.

        Lightning would then put the checkpoint's hyper-parameters over what the user gave, so it
        does not get to see the path until that is over.
        """
        given = self._given = list(sys.argv[1:] if args is None else args)
        with tempfile.TemporaryDirectory() as folder:
            arguments = with_folder(given, expand(given, Path(folder)))
            check_settings(arguments)
            self.config = parser.parse_args(self._with_stored_config(arguments, Path(folder)))
        self._options = self.config[self.config.subcommand]
        self._ckpt_path: str | None = self._options.ckpt_path
        self._options.ckpt_path = None

    def _with_stored_config(self, arguments: list[str], folder: Path) -> list[str]:
        names = list(self.subcommands())
        position = next((i for i, argument in enumerate(arguments) if argument in names), None)
        given = option(arguments, "--ckpt_path")
        if position is None or given is None or given in LIGHTNINGS_OWN or "://" in given:
            return arguments
        config = stored_config(Checkpoint.read(given, mapped=True))
        if config is None:
            if option(arguments, "--config") or option(arguments, "--model"):
                return arguments
            raise ValueError(
                f"{given} holds no config; expected a checkpoint written by `lightning fit`. "
                "Give the run's config too: --config FILE."
            )
        known = {"seed_everything", "trainer", "model", "data", *SHARED_CALLBACKS}
        path = folder / "stored.yaml"
        path.write_text(yaml.safe_dump({key: config[key] for key in config.keys() & known}))
        return [*arguments[: position + 1], "--config", str(path), *arguments[position + 1 :]]

    def before_instantiate_classes(self) -> None:
        """Train what the method builds on; give the path of the checkpoint back.

        A checkpoint that is resumed holds the result of the first stage.
        """
        if self.subcommand == "fit" and self._ckpt_path is None:
            config = yaml.safe_load(self._parser("fit").dump(self._options, skip_unset=False))
            method, first = owners_of(config).get("model"), partial(run, command_line=FirstStage)
            if train_first_stage(config, method, self._given, first):
                self._set_seed()  # that run drew random numbers
        self._options.ckpt_path = self._ckpt_path
        self._started = time.time()

    def instantiate_trainer(self, **kwargs: object) -> Trainer:
        """Add the shared callbacks, except those that the run's trainer options rule out."""
        made = self.config_init.get(str(self.subcommand), self.config_init)
        config = made["trainer"]
        own = config.get("callbacks") or []
        own = own if isinstance(own, list) else [own]
        unwanted: tuple[type, ...] = ()
        if config.get("enable_progress_bar") is False or any(
            isinstance(each, ProgressBar) for each in own
        ):
            unwanted += (ProgressBar,)
        if config.get("enable_checkpointing") is False:
            unwanted += (CheckpointCallback,)
        if config.get("barebones"):
            unwanted += (Callback,)
        shared = [made[key] for key in SHARED_CALLBACKS]
        kept = [callback for callback in shared if not isinstance(callback, unwanted)]
        return super().instantiate_trainer(callbacks=[*own, *kept], **kwargs)

    def after_fit(self) -> None:
        """Say what was written, and what to do next."""
        folder = Path(self.trainer.default_root_dir) / "checkpoints"
        names = [name for name in ("best.ckpt", "last.ckpt") if (folder / name).is_file()]
        self._tell(f"lightning test --ckpt_path {folder / names[0]}" if names else None)

    def after_test(self) -> None:
        """Say what was written, and what to do next."""
        self._tell(f"lightning predict --ckpt_path {self._ckpt_path}" if self._ckpt_path else None)

    def after_predict(self) -> None:
        """Say what was written."""
        self._tell(None)

    def _tell(self, following: str | None) -> None:
        """Name the files of this command on standard error, in the first process."""
        root = Path(self.trainer.default_root_dir)
        if not self.trainer.is_global_zero or not root.is_dir():
            return
        written = [path for path in sorted(root.iterdir()) if path.stat().st_mtime >= self._started]
        if written:
            print(f"Wrote {', '.join(each.name for each in written)} in {root}.", file=sys.stderr)
        if following:
            print(f"Next: {following}", file=sys.stderr)


class FirstStage(CommandLine):
    """A run that another one needs, which follows."""

    def after_fit(self) -> None:
        """Say nothing."""


def only_the_command(
    arguments: Sequence[str], command_line: type[CommandLine]
) -> type[CommandLine]:
    """Return the command line with nothing but the command that is asked for.

    Each command has a parser with hundreds of options; building all of them takes longer than to
    train a small network for a hundred steps.

    Args:
        arguments: Of the command line.
        command_line: With all commands.
    """
    known = command_line.subcommands()
    command = next((argument for argument in arguments if argument in known), None)
    if command is None:
        return command_line
    subcommands = {"subcommands": staticmethod(lambda: {command: known[command]})}
    return type(command_line.__name__, (command_line,), subcommands)


def run(
    arguments: Sequence[str] | None = None, *, command_line: type[CommandLine] = CommandLine
) -> CommandLine:
    """Run one command; ``arguments`` default to the process's own."""
    keep_wandb_offline()
    hide_noise()
    import_classes()
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    parser_options: dict[str, Any] = {"parser_mode": "omegaconf+"}
    per_command = {**parser_options, "default_config_files": [str(defaults_path())]}
    command_line = only_the_command(sys.argv[1:] if arguments is None else arguments, command_line)
    return command_line(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=StoreConfig,
        parser_class=Parser,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        parser_kwargs={
            **parser_options,
            "description": DESCRIPTION,
            **{command: dict(per_command) for command in command_line.subcommands()},
        },
        args=None if arguments is None else list(arguments),
    )


def main(arguments: Sequence[str]) -> None:
    """Run one command; errors about the input are one message, without a traceback."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a user's own modules
    with one_message(also=(MisconfigurationException,)):
        run(arguments)
