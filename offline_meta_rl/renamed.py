"""Settings of earlier versions in a config: one error that names the new name, or the new name.

A class lists the settings it has renamed in ``renamed``, old name -> new name.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from offline_meta_rl.common.settings import check_class, renamed_by, with_new_names

PARTS = ("model", "data")


def check_names(config: Mapping[str, Any], origin: str, owners: Mapping[str, type]) -> None:
    """Refuse classes and settings that have another name today.

    Args:
        config: a config as it was written, or part of one.
        origin: where it comes from, for the message.
        owners: ``model`` and ``data`` -> the class that the settings are of, where it is known.

    Raises:
        ValueError: names the old class or every old setting, and what it is called today.
    """
    check_classes(config, origin)
    old = [
        f"{part}.{name} is {part}.{renamed_by(owner)[name]} now"
        for part, owner, given in parts(config, owners)
        for name in given
        if name in renamed_by(owner)
    ]
    if old:
        raise ValueError(f"Settings in {origin} have new names: {'; '.join(old)}. Rename them.")


def check_classes(config: Mapping[str, Any], origin: str) -> None:
    """Refuse classes that have another name today.

    Args:
        config: ``model`` and ``data`` -> a class's name, or a mapping with its ``class_path``.
        origin: where it comes from, for the message.

    Raises:
        ValueError: names the class, and what to use now.
    """
    for part in PARTS:
        given = config.get(part)
        check_class(str(given.get("class_path") if isinstance(given, Mapping) else given), origin)


def rename(config: dict[str, Any], owners: Mapping[str, type]) -> None:
    """Give settings their names of today, in place: a checkpoint's config is not for editing.

    Raises:
        ValueError: a class that is no more.
    """
    check_classes(config, "the checkpoint")
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


def options(arguments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what options such as ``--model Macaw --model.width 3`` name, in a config's shape.

    Settings come without their values. ``--model.init_args.width`` is the same setting.
    """
    found: dict[str, dict[str, Any]] = {}
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, equals, value = argument.partition("=")
        part, _, name = option.removeprefix("--").partition(".")
        if not argument.startswith("--") or part not in PARTS:
            continue
        given = found.setdefault(part, {"init_args": {}})
        if name in ("", "class_path"):
            given["class_path"] = value if equals else following
        else:
            given["init_args"][name.removeprefix("init_args.")] = None
    return found
