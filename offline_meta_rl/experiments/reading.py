"""Experiments from YAML: found by name, built by pydantic, mistakes named with file and key."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from offline_meta_rl.experiments.specification import Experiment, ExperimentFile, Shared

Section = TypeVar("Section")
Content = Mapping[str, object]


def experiments_folder() -> Path:
    """Return ``configs/experiments`` below the working directory, or else of this checkout.

    Raises:
        FileNotFoundError: Neither is there.
    """
    places = [root / "configs" / "experiments" for root in (Path.cwd(), Path(__file__).parents[2])]
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(
        f"No experiments at {places[0]} or {places[1]}. Run in a checkout of the repository, or "
        "name an experiment by the path of its experiment.yaml."
    )


def experiment_names() -> list[str]:
    """Return the names of all experiments."""
    return sorted(path.parent.name for path in experiments_folder().glob("*/experiment.yaml"))


def load_experiment(name: str) -> Experiment:
    """Read an experiment by its name, or by the path of an ``experiment.yaml``.

    Raises:
        ValueError: An unknown experiment (lists those that there are), or a malformed file.
    """
    path = Path(name)
    if path.is_dir():
        path = path / "experiment.yaml"
    elif path.suffix != ".yaml":
        path = experiments_folder() / name / "experiment.yaml"
    if not path.is_file():
        raise ValueError(
            f"Unknown experiment {name!r}: expected one of {', '.join(experiment_names())}, or the "
            "path of an experiment.yaml."
        )
    shared_path = _shared_path(path.parent)
    shared = _built(Shared, _read(shared_path), shared_path) if shared_path else Shared()
    content = dict(_read(path))
    content["scales"] = _joined_by_name(shared.scales, content.get("scales", {}))
    return Experiment(
        **vars(_built(ExperimentFile, content, path, shared_path)),
        name=path.parent.name,
        folder=path.parent.resolve(),
        shared_path=shared_path.resolve() if shared_path else None,
        aliases=shared.aliases,
        speeds=shared.speeds,
        costs=shared.costs,
    )


def _shared_path(folder: Path) -> Path | None:
    """Return what experiments share: beside the experiment's folder, or else the shipped file."""
    beside = folder.parent / "shared" / "shared.yaml"
    if beside.is_file():
        return beside
    try:
        shipped = experiments_folder() / "shared" / "shared.yaml"
    except FileNotFoundError:
        return None
    return shipped if shipped.is_file() else None


def _read(path: Path) -> Content:
    """Return the content of a YAML file.

    Raises:
        ValueError: It is not YAML, or not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}. Correct it.") from error
    if content is not None and not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected keys and values, found {content!r}.")
    return content or {}


def _joined_by_name(shared: object, own: object) -> object:
    """Return an experiment's own scales, or layers of scales, on top of the shared ones."""
    if not (isinstance(shared, Mapping) and isinstance(own, Mapping)):
        return own  # what is no mapping is for pydantic to name, here and below
    return {name: _joined(shared.get(name, {}), own.get(name, {})) for name in {**shared, **own}}


def _joined(base: object, top: object) -> object:
    """Return a scale or a layer on top of another: overlays follow, keys of ``top`` win."""
    if not (isinstance(base, Mapping) and isinstance(top, Mapping)):
        return top
    joined = {**base, **top}
    for key in base.keys() & top.keys():
        first, second = base[key], top[key]
        if key == "overlays" and isinstance(first, list) and isinstance(second, list):
            joined[key] = [*first, *second]
        elif key == "overrides" and isinstance(first, Mapping) and isinstance(second, Mapping):
            joined[key] = {**first, **second}
        elif key in ("methods", "families"):
            joined[key] = _joined_by_name(first, second)
    return joined


def _built(
    kind: type[Section], content: Content, path: Path, scales_of: Path | None = None
) -> Section:
    """Build a section from the content of a file.

    Args:
        kind: Dataclass to build.
        content: The content.
        path: The file.
        scales_of: Another file that scales come from too.

    Raises:
        ValueError: Names every mistake by its key, with what was expected and found.
    """
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        found = error.errors()
        mistakes = "; ".join(_explained(kind, mistake) for mistake in found)
        in_scales = any(mistake["loc"][:1] == ("scales",) for mistake in found)
        also = f" (scales also of {scales_of})" if scales_of and in_scales else ""
        raise ValueError(f"{path}{also}: {mistakes}. Correct the file.") from error


def _explained(kind: type, mistake: ErrorDetails) -> str:
    """Return one mistake in words."""
    *place, last = mistake["loc"] or ("",)
    if mistake["type"] in ("missing", "unexpected_keyword_argument"):
        what = "missing" if mistake["type"] == "missing" else "unknown"
        known = ", ".join(sorted(_keys_at(kind, place)))
        text = f"expected keys {known}; {what}: {last}"
        return f"{'.'.join(map(str, place))}: {text}" if place else text
    message = mistake["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    where = ".".join(map(str, mistake["loc"]))
    if mistake["type"] == "value_error":  # of a __post_init__, which says what it found
        return f"{where}: {message}" if where else message
    return f"{where}: {message}, found {mistake['input']!r}"


def _keys_at(kind: type, place: Sequence[str | int]) -> list[str]:
    """Return the keys of the section at a place within a section."""
    found: object = kind
    for part in place:
        if is_dataclass(found) and isinstance(found, type):
            found = get_type_hints(found)[str(part)]
        else:  # the element of Mapping[str, Arm] or tuple[Stage, ...]
            found = next(each for each in reversed(get_args(found)) if each is not Ellipsis)
        if type(None) in get_args(found):  # Against | None
            found = next(each for each in get_args(found) if is_dataclass(each))
    assert is_dataclass(found)
    return [each.name for each in fields(found)]
