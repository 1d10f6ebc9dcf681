"""What a command of Lightning's needs before its line is parsed.

Classes by short name, shared defaults, names of earlier versions, the config in a checkpoint.

Order of precedence: command line, then ``--config``, then the checkpoint, then the defaults.
"""

import contextlib
import importlib
import logging
import os
import pkgutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule

from offline_meta_rl.common.checkpoints import Checkpoint
from offline_meta_rl.common.extras import logged_in
from offline_meta_rl.renamed import check_names, options, rename

PACKAGES = ("offline_meta_rl.methods", "datamodules", "callbacks")
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
        if name == argument:
            continue
        config = read_config(name)
        if config is not None:
            yield name, config


def read_config(name: str) -> dict[str, Any] | None:
    """Return the content of a config file; None if it is no file of keys and values."""
    if not Path(name).is_file():
        return None
    with contextlib.suppress(yaml.YAMLError, UnicodeDecodeError):
        config = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
        if isinstance(config, dict):
            return config
    return None


def with_folder(given: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Return the arguments with a folder for the run, where several configs leave it open.

    ``--config configs/families/ant.yaml --config configs/methods/meta_bc.yaml`` gives
    ``runs/ant_meta_bc``.

    Args:
        given: The command line as it was written.
        arguments: The same with the files that its configs include.
    """
    names = [Path(name).stem for name, _ in given_configs(given)]
    chosen = option(arguments, "--trainer.default_root_dir") or any(
        "default_root_dir" in (config.get("trainer") or {})
        for _, config in given_configs(arguments)
    )
    if chosen or len(names) < 2 or "fit" not in arguments:
        return list(arguments)
    return [*arguments, f"--trainer.default_root_dir=runs/{'_'.join(names)}"]


def check_settings(arguments: Sequence[str]) -> None:
    """Refuse settings of earlier versions, in files and on the command line.

    Raises:
        ValueError: names every old setting, and what it is called today.
    """
    owners: dict[str, type] = {}
    for origin, config in given_configs(arguments):
        owners |= owners_of(config)
        check_names(config, origin, owners)
    owners |= owners_of({part: option(arguments, f"--{part}") for part in ("model", "data")})
    check_names(options(arguments), "the command line", owners)


def stored_config(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the config that a checkpoint was trained with, under today's names; None without."""
    config = checkpoint.config
    if config is not None:
        rename(config, owners_of(config))
    return config


def owners_of(config: Mapping[str, Any]) -> dict[str, type]:
    """Return the classes that a config names for ``model`` and ``data``, and all callbacks."""
    bases: dict[str, type] = {"model": LightningModule, "data": LightningDataModule}
    found: dict[str, type] = {owner.__name__: owner for owner in subclasses(Callback)}
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
