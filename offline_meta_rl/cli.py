"""The command line: ``lightning fit | validate | test | predict | finetune | data``.

The only module that knows every package. Three things are added to Lightning's own command:
shared defaults that do not depend on the working directory, callbacks that every run has whatever
its config lists, and a checkpoint that is enough by itself (``lightning test --ckpt_path X``).
Order of precedence: command line, then ``--config``, then the checkpoint, then the defaults.
"""

import contextlib
import importlib
import logging
import os
import pkgutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from callbacks.fine_tune_online import FineTuneOnline
from callbacks.interrupt import Interrupt, Interrupted
from callbacks.monitor import Monitor
from callbacks.progress import Progress
from callbacks.save_policies import SavePolicies
from callbacks.store_config import StoreConfig, stored_config
from offline_meta_rl.common.commands import DEBUG_VARIABLE, raised_in_project
from offline_meta_rl.common.configs import expand
from offline_meta_rl.common.renamed import check_names, options, rename
from offline_meta_rl.common.wandb_login import logged_in
from offline_meta_rl.data.contracts import DataSizes, HasSizes

PACKAGES = ("offline_meta_rl.methods", "datamodules", "callbacks")
SHARED_CALLBACKS: dict[str, type[Callback]] = {
    "progress": Progress,
    "monitor": Monitor,
    "best": BestCheckpoint,
    "checkpoint": LastCheckpoint,
    "interrupt": Interrupt,
    "policies": SavePolicies,
}
DESCRIPTION = """Meta-train, validate and test on fixed data of many tasks.
`lightning data --help` has the tools for datasets: info, validate, plot, convert, merge, split.
`lightning experiment --help` runs and reports the figures and tables of a paper."""
LIGHTNINGS_OWN = {"best", "last", "hpc", "registry"}  # words that --ckpt_path may be
SIMULATORS = {"gymnasium", "metaworld", "mujoco"}


def defaults_path() -> Path:
    """Return the shared defaults: beside this file when installed, else in the repository.

    Raises:
        FileNotFoundError: neither place has them.
    """
    here = Path(__file__).resolve().parent
    for path in (here / "defaults.yaml", here.parent / "configs" / "defaults.yaml"):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"defaults.yaml is neither in {here} nor in {here.parent / 'configs'}. Reinstall the "
        "package."
    )


def import_classes() -> None:
    """Import every method, datamodule and callback, so that YAML may name a class alone.

    A module whose simulator is not installed is left out: adapting to data needs none.
    """
    for name in PACKAGES:
        package = importlib.import_module(name)
        for module in pkgutil.iter_modules(package.__path__, f"{name}."):
            try:
                importlib.import_module(module.name)
            except ImportError as error:
                if (error.name or "").split(".")[0] not in SIMULATORS:
                    raise


def keep_wandb_offline() -> None:
    """Make Weights & Biases write to disk, and never prompt, unless there is a login."""
    if "WANDB_MODE" not in os.environ and not logged_in():
        os.environ["WANDB_MODE"] = "offline"
        os.environ.setdefault("WANDB_SILENT", "true")


def hide_noise() -> None:
    """Hide what Lightning says about itself; it says nothing about the run."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage()
    )
    for message in (
        ".*LeafSpec.*",
        "Checkpoint directory .* exists and is not empty",
        "You defined a `validation_step` but have no `val_dataloader`",
    ):
        warnings.filterwarnings("ignore", message=message)


def option(arguments: Sequence[str], name: str) -> str | None:
    """Return the last value given to an option, ``--name value`` or ``--name=value``."""
    found = None
    for position, argument in enumerate(arguments):
        if argument == name and position + 1 < len(arguments):
            found = arguments[position + 1]
        elif argument.startswith(f"{name}="):
            found = argument.removeprefix(f"{name}=")
    return found


def given_configs(arguments: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and content of each ``--config`` that can be read; the parser reports others."""
    for position, argument in enumerate(arguments):
        name = argument.removeprefix("--config=")
        if argument == "--config" and position + 1 < len(arguments):
            name = arguments[position + 1]
        if name == argument or not Path(name).is_file():
            continue
        with contextlib.suppress(yaml.YAMLError, UnicodeDecodeError):
            config = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
            if isinstance(config, dict):
                yield name, config


def owners_of(config: Mapping[str, Any]) -> dict[str, type]:
    """Return the classes that a config names for ``model`` and ``data``, those that are known."""
    bases: dict[str, type] = {"model": LightningModule, "data": LightningDataModule}
    found: dict[str, type] = {}
    for part, base in bases.items():
        given = config.get(part)
        name = given.get("class_path") if isinstance(given, Mapping) else given
        known = {owner.__name__: owner for owner in subclasses(base)}
        owner = known.get(str(name).rpartition(".")[2])
        if owner is not None:
            found[part] = owner
    return found


def subclasses(base: type) -> Iterator[type]:
    """Yield all subclasses, those of subclasses too."""
    direct: list[type] = base.__subclasses__()
    for owner in direct:
        yield owner
        yield from subclasses(owner)


class Parser(LightningArgumentParser):
    """Answers a mistake with the mistake, not with two hundred lines of usage."""

    def print_usage(self, file: Any = None) -> None:
        """Print the usage only where it was asked for."""
        if file is not sys.stderr:
            super().print_usage(file)


class FineTuningTrainer(Trainer):
    """Lightning's trainer with one more entry point."""

    def finetune(
        self,
        model: LightningModule | None = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Fine-tune a meta-trained checkpoint online on its held-out tasks.

        Args:
            model: the method.
            datamodule: its data.
            ckpt_path: the checkpoint; it holds method, data and settings.

        Raises:
            ValueError: no checkpoint.
        """
        if ckpt_path is None:
            raise ValueError(
                "Fine-tuning starts from a meta-trained checkpoint: expected --ckpt_path, found "
                "none. Pass --ckpt_path runs/<run>/checkpoints/last.ckpt."
            )
        with warnings.catch_warnings():  # of callbacks of the meta-training, which are not needed
            warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
            warnings.filterwarnings("ignore", message="The dirpath has changed")
            self.test(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False)


class CommandLine(LightningCLI):
    """Lightning's command line with shared callbacks and self-sufficient checkpoints."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's own subcommands, and ``finetune``."""
        return {**LightningCLI.subcommands(), "finetune": {"model", "datamodule"}}

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        """Give ``finetune`` its own key."""
        if subcommand != "finetune":
            return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser = self.init_parser(**kwargs)
        self._add_arguments(parser)
        parser.add_lightning_class_args(FineTuneOnline, "finetune")
        parser.add_argument("--ckpt_path", type=str | None, help="the meta-trained checkpoint")
        self._subcommand_method_arguments[subcommand] = ["ckpt_path"]
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Give each shared callback its own key; let the data say the sizes of the networks."""
        for key, callback in SHARED_CALLBACKS.items():
            parser.add_lightning_class_args(callback, key)
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
            given = getattr(data.sizes(), name)
        return given

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, with the config stored in ``--ckpt_path`` read before any ``--config``."""
        given = list(sys.argv[1:] if args is None else args)
        with tempfile.TemporaryDirectory() as folder:
            arguments = expand(given, Path(folder))
            self._check_names(arguments)
            self.config = parser.parse_args(self._with_stored_config(arguments, Path(folder)))

    def _check_names(self, arguments: list[str]) -> None:
        """Refuse settings of earlier versions, in files and on the command line."""
        owners: dict[str, type] = {}
        for origin, config in given_configs(arguments):
            owners |= owners_of(config)
            check_names(config, origin, owners)
        owners |= owners_of({part: option(arguments, f"--{part}") for part in ("model", "data")})
        check_names(options(arguments), "the command line", owners)

    def _with_stored_config(self, arguments: list[str], folder: Path) -> list[str]:
        names = list(self.subcommands())
        position = next((i for i, argument in enumerate(arguments) if argument in names), None)
        given = option(arguments, "--ckpt_path")
        if position is None or given is None or given in LIGHTNINGS_OWN or "://" in given:
            return arguments
        if not Path(given).is_file():
            raise FileNotFoundError(f"No checkpoint at {given}; pass --ckpt_path of a .ckpt file.")
        keys = {"seed_everything", "trainer", "model", "data", *SHARED_CALLBACKS}
        config = stored_config(Path(given), keys)
        if config is None:
            if option(arguments, "--config") or option(arguments, "--model"):
                return arguments
            raise ValueError(
                f"{given} holds no config; expected a checkpoint written by `lightning fit`. "
                "Give the run's config too: --config FILE."
            )
        rename(config, owners_of(config))
        if arguments[position] == "finetune":
            config["trainer"].pop("callbacks", None)  # they belong to the meta-training
        path = folder / "stored.yaml"
        path.write_text(yaml.safe_dump(config))
        return [*arguments[: position + 1], "--config", str(path), *arguments[position + 1 :]]

    def _parse_ckpt_path(self) -> None:
        """Leave the parsed config alone: the checkpoint's own was read before it."""

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Add the shared callbacks, except those that the run's trainer options rule out."""
        unwanted: tuple[type, ...] = ()
        own = config.get("callbacks") or []
        own = own if isinstance(own, list) else [own]
        if config.get("enable_progress_bar") is False or any(
            isinstance(c, ProgressBar) for c in own
        ):
            unwanted += (ProgressBar,)
        if config.get("enable_checkpointing") is False:
            unwanted += (Checkpoint,)
        if config.get("barebones"):
            unwanted += (Callback,)
        kept = [callback for callback in callbacks if not isinstance(callback, unwanted)]
        return super()._instantiate_trainer(config, kept)


def raised_here(error: BaseException) -> bool:
    """Whether the error was raised by this project's code, so that its message says all."""
    return isinstance(error, MisconfigurationException) or raised_in_project(error)


def run(arguments: Sequence[str] | None = None) -> CommandLine:
    """Run one command; ``arguments`` default to the process's own."""
    keep_wandb_offline()
    hide_noise()
    import_classes()
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    parser_options: dict[str, Any] = {"parser_mode": "omegaconf+"}
    per_command = {**parser_options, "default_config_files": [str(defaults_path())]}
    return CommandLine(
        LightningModule,
        LightningDataModule,
        trainer_class=FineTuningTrainer,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=StoreConfig,
        parser_class=Parser,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        parser_kwargs={
            **parser_options,
            "description": DESCRIPTION,
            **{command: dict(per_command) for command in CommandLine.subcommands()},
        },
        args=None if arguments is None else list(arguments),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; errors about the input are one message, without a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["data"]:
        from offline_meta_rl.data_tools.command import main as data

        data(given[1:])
        return
    if given[:1] == ["experiment"]:
        from offline_meta_rl.experiments.command import main as experiment

        experiment(given[1:])
        return
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a user's own modules
    try:
        run(arguments)
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        sys.exit(128 + interrupted.signal_number)
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE) or not raised_here(error):
            raise
        sys.exit(f"error: {error}\n(set {DEBUG_VARIABLE}=1 for the traceback)")
