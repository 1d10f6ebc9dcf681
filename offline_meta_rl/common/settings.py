"""Settings: frozen dataclasses that say each default and its meaning once.

    @dataclass(frozen=True)
    class InnerLoop:
        num_steps: int = 1

    class Macaw(MetaModule):
        renamed = {"num_inner_steps": "inner.num_steps"}

        def __init__(self, *, inner: InnerLoop = InnerLoop()): ...

The command line fills them (``--model.inner.num_steps 3``), the losses take them as they are, and
checkpoints hold them as plain dictionaries.
"""

import dataclasses
import inspect
import typing
from collections.abc import Mapping
from typing import Any, overload

REPLACED_CLASSES = {
    "PerTaskSAC": (
        "SAC with agents: per_task (its discount, initial_temperature and target_entropy are in "
        "the group losses, to which belongs temperature_loss: paper)"
    ),
}
"""Class of an earlier version -> what to use now."""


def check_class(class_path: str, origin: str) -> None:
    """Refuse a class that is no more.

    Args:
        class_path: Its name, alone or with its module.
        origin: Where it is named, for the message.

    Raises:
        ValueError: Names the class, and what to use now.
    """
    name = class_path.rpartition(".")[2]
    if name in REPLACED_CLASSES:
        raise ValueError(
            f"{name} in {origin} is {REPLACED_CLASSES[name]} now. Change the config, or go on with "
            "the version of the code that wrote the checkpoint."
        )


def check_at_least(settings: object, least: float, *names: str) -> None:
    """Check some numbers of a dataclass, in its ``__post_init__``; None is left alone.

    Raises:
        ValueError: Names the first that is too small.
    """
    for name in names:
        found = getattr(settings, name)
        if found is not None and found < least:
            raise ValueError(f"{name}: expected at least {least}, found {found}.")


@overload
def to_plain(value: Mapping[str, object]) -> dict[str, object]: ...


@overload
def to_plain(value: object) -> object: ...


def to_plain(value: object) -> object:
    """Return ``value`` with every dataclass in it as a dictionary; all else stays as it is."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [to_plain(item) for item in value]
    return value


def from_plain(kind: object, value: object, where: str, default: object = None) -> object:
    """Build what ``to_plain`` flattened.

    Args:
        kind: The annotation of the value: a dataclass, an optional one, or any other type.
        value: A value from a checkpoint, or given in Python.
        where: Name of the value, for the message.
        default: Has the settings that ``value`` lacks; None for the dataclass's own defaults.

    Raises:
        ValueError: The dictionary has a key that the dataclass does not.
    """
    settings = _dataclass_of(kind)
    if settings is None or not isinstance(value, Mapping):
        return value
    kinds = typing.get_type_hints(settings)
    names = [f.name for f in dataclasses.fields(settings)]
    unknown = sorted(set(value) - set(names))
    if unknown:
        raise ValueError(f"{where}: expected the settings {names}, found {', '.join(unknown)}.")
    given = {key: from_plain(kinds[key], value[key], f"{where}.{key}") for key in value}
    others = {name: getattr(default, name) for name in names if isinstance(default, settings)}
    return settings(**{**others, **given})


def arguments_of(owner: type, stored: Mapping[str, object]) -> dict[str, Any]:
    """Return constructor arguments from stored ones, under the names that they have today.

    Args:
        owner: Class whose constructor is to be called; its ``renamed`` maps old names to new ones.
        stored: The arguments of a checkpoint, plain, perhaps written by an earlier version.

    Raises:
        ValueError: A group of settings has one that no version knows.
    """
    kinds, defaults = constructor_arguments(owner)
    return {
        name: from_plain(kinds.get(name), value, name, defaults.get(name))
        for name, value in with_new_names(owner, stored).items()
    }


@typing.runtime_checkable
class Upgrades(typing.Protocol):
    """A class whose settings of earlier versions need more than a new name."""

    def upgrade(self, given: Mapping[str, object]) -> Mapping[str, object]:
        """Return settings, under names of any version, with those changed that need it."""


def with_new_names(owner: type, given: Mapping[str, object]) -> dict[str, object]:
    """Return arguments with renamed ones moved to where they are today.

    A new name with dots is a setting inside a group: ``inner.num_steps``.
    """
    if isinstance(owner, Upgrades):
        given = owner.upgrade(given)
    renamed = renamed_by(owner)
    found = {name: value for name, value in given.items() if name not in renamed}
    for old in given.keys() & renamed.keys():
        *groups, last = renamed[old].split(".")
        place = found
        for group in groups:
            known = place.get(group)
            inside: dict[str, object] = dict(known) if isinstance(known, Mapping) else {}
            place[group] = inside
            place = inside
        place[last] = given[old]
    return found


def renamed_by(owner: type) -> dict[str, str]:
    """Return old name -> new name of a class's settings, those of its base classes included."""
    found: dict[str, str] = {}
    for base in reversed(owner.__mro__):
        found |= vars(base).get("renamed", {})
    return found


def constructor_arguments(owner: type) -> tuple[dict[str, object], dict[str, object]]:
    """Return annotations and defaults of all arguments that a class takes, by name.

    What a class hands on to its base classes as ``**arguments`` is among them.
    """
    kinds: dict[str, object] = {}
    defaults: dict[str, object] = {}
    for base in reversed(owner.__mro__):
        constructor = vars(base).get("__init__")
        if inspect.isfunction(constructor):
            kinds |= typing.get_type_hints(constructor)
            parameters = inspect.signature(constructor).parameters.values()
            defaults |= {p.name: p.default for p in parameters if p.default is not p.empty}
    return kinds, defaults


def _dataclass_of(kind: object) -> type | None:
    """Return the dataclass that an annotation names, alone or in a union; None without one."""
    for candidate in (kind, *typing.get_args(kind)):
        if isinstance(candidate, type) and dataclasses.is_dataclass(candidate):
            return candidate
    return None
