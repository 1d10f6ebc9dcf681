"""Settings of earlier versions in a config: one error that names the new name, or the new name.

A class lists the settings it has renamed in ``renamed``, old name -> new name.
"""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import NamedTuple

from offline_meta_rl.common.settings import check_class, renamed_by, with_new_names

PARTS = ("model", "data")


class Part(NamedTuple):
    """The settings of one class in a config.

    Attributes:
        name: as messages call it: ``model``, ``data`` or the class of a callback.
        owner: class that the settings are of.
        entry: ``class_path`` and ``init_args``, as the config has them.
    """

    name: str
    owner: type
    entry: MutableMapping[str, object]

    @property
    def given(self) -> Mapping[str, object]:
        """The settings, by name."""
        found = self.entry.get("init_args")
        return found if isinstance(found, Mapping) else {}


def check_names(config: Mapping[str, object], origin: str, owners: Mapping[str, type]) -> None:
    """Refuse classes and settings that have another name today.

    Args:
        config: a config as it was written, or part of one.
        origin: where it comes from, for the message.
        owners: ``model`` and ``data`` -> the class that the settings are of, where it is known, and
            the callbacks' classes by their names.

    Raises:
        ValueError: names the old class or every old setting, and what it is called today.
    """
    check_classes(config, origin)
    old = []
    for part in parts(config, owners):
        renamed = renamed_by(part.owner)
        for name in part.given:
            # ``inner_slice.size`` on the command line is part of the setting ``inner_slice``.
            first, dot, rest = name.partition(".")
            if first in renamed:
                new = f"{part.name}.{renamed[first]}{dot}{rest}"
                old.append(f"{part.name}.{name} is {new} now")
    if old:
        raise ValueError(f"Settings in {origin} have new names: {'; '.join(old)}. Rename them.")


def check_classes(config: Mapping[str, object], origin: str) -> None:
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


def rename(config: Mapping[str, object], owners: Mapping[str, type]) -> None:
    """Give settings their names of today, in place: a checkpoint's config is not for editing.

    Raises:
        ValueError: a class that is no more.
    """
    check_classes(config, "the checkpoint")
    for part in parts(config, owners):
        if part.given:
            part.entry["init_args"] = with_new_names(part.owner, part.given)


def parts(config: Mapping[str, object], owners: Mapping[str, type]) -> Iterator[Part]:
    """Yield the parts of a config whose class is known: method, data and callbacks."""
    for name in PARTS:
        entry = config.get(name)
        if name in owners and isinstance(entry, MutableMapping):
            yield Part(name, owners[name], entry)
    trainer = config.get("trainer")
    listed = trainer.get("callbacks") if isinstance(trainer, Mapping) else None
    for entry in listed if isinstance(listed, list) else [listed]:
        if isinstance(entry, MutableMapping):
            name = str(entry.get("class_path")).rpartition(".")[2]
            if name in owners:
                yield Part(name, owners[name], entry)


def options(arguments: Sequence[str]) -> dict[str, dict[str, object]]:
    """Return what options such as ``--model Macaw --model.width 3`` name, in a config's shape.

    Settings come without their values. ``--model.init_args.width`` is the same setting.
    """
    found: dict[str, dict[str, object]] = {}
    settings: dict[str, dict[str, None]] = {}
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, equals, value = argument.partition("=")
        part, _, name = option.removeprefix("--").partition(".")
        if not argument.startswith("--") or part not in PARTS:
            continue
        given = found.setdefault(part, {"init_args": settings.setdefault(part, {})})
        if name in ("", "class_path"):
            given["class_path"] = value if equals else following
        else:
            settings[part][name.removeprefix("init_args.")] = None
    return found
