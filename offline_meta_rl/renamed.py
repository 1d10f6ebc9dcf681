"""Settings of earlier versions in a config: one error that names the new name, or the new name.

A class lists the settings it has renamed in ``renamed``, old name -> new name.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from offline_meta_rl.common.settings import renamed_by, with_new_names

PARTS = ("model", "data")


def check_names(config: Mapping[str, Any], origin: str, owners: Mapping[str, type]) -> None:
    """Refuse settings that have another name today.

    Args:
        config: a config as it was written, or part of one.
        origin: where it comes from, for the message.
        owners: ``model`` and ``data`` -> the class that the settings are of, where it is known.

    Raises:
        ValueError: names every old setting, and what it is called today.
    """
    old = [
        f"{part}.{name} is {part}.{renamed_by(owner)[name]} now"
        for part, owner, given in parts(config, owners)
        for name in given
        if name in renamed_by(owner)
    ]
    if old:
        raise ValueError(f"Settings in {origin} have new names: {'; '.join(old)}. Rename them.")


def rename(config: dict[str, Any], owners: Mapping[str, type]) -> None:
    """Give settings their names of today, in place: a checkpoint's config is not for editing."""
    for part, owner, given in parts(config, owners):
        config[part]["init_args"] = with_new_names(owner, given)


def parts(
    config: Mapping[str, Any], owners: Mapping[str, type]
) -> Iterator[tuple[str, type, Mapping[str, Any]]]:
    """Yield ``model`` and ``data`` with their class and their settings, where all are given."""
    for part in PARTS:
        given = config.get(part)
        if part in owners and isinstance(given, Mapping):
            yield part, owners[part], given.get("init_args") or {}


def options(arguments: Sequence[str]) -> dict[str, dict[str, dict[str, None]]]:
    """Return the settings that options such as ``--model.width 3`` name, without values.

    ``--model.init_args.width`` is the same setting.
    """
    found: dict[str, dict[str, dict[str, None]]] = {}
    for argument in arguments:
        part, _, name = argument.removeprefix("--").partition("=")[0].partition(".")
        if argument.startswith("--") and part in PARTS and name:
            names = found.setdefault(part, {"init_args": {}})["init_args"]
            names[name.removeprefix("init_args.")] = None
    return found
