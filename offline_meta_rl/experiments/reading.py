"""Experiments from YAML: found by name, checked key by key."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from offline_meta_rl.experiments.specification import (
    METRICS,
    Against,
    Arm,
    Experiment,
    Layer,
    Scale,
    Stage,
)


def experiments_folder() -> Path:
    """Return ``configs/experiments`` below the working directory, or else of this checkout.

    Raises:
        FileNotFoundError: neither is there.
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
        ValueError: unknown experiment (lists those that there are), or a malformed file.
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
    shared_path = _shared(path.parent)
    shared = _read(shared_path) if shared_path else {}
    content = _read(path)
    known = {"title", "families", "arms", "scales", "varies", "metric", "after", "against"}
    _check_keys(content, known, {"title", "families", "arms"}, str(path))
    _check_keys(shared, {"scales", "aliases", "speeds", "costs"}, set(), str(shared_path))
    experiment = Experiment(
        name=path.parent.name,
        folder=path.parent.resolve(),
        shared=shared_path.resolve() if shared_path else None,
        title=content["title"],
        families=tuple(content["families"]),
        arms={key: _arm(key, value, path) for key, value in content["arms"].items()},
        scales=_scales(shared.get("scales", {}), content.get("scales", {}), path),
        varies=tuple(content.get("varies", ())),
        metric=content.get("metric", METRICS[0]),
        after=tuple(_stage(value, path) for value in content.get("after", ())),
        against=_against(content["against"], content["arms"], path)
        if "against" in content
        else None,
        aliases=shared.get("aliases", {}),
        speeds=shared.get("speeds", {}),
        costs=shared.get("costs", {}),
    )
    if experiment.metric not in METRICS:
        raise ValueError(f"{path}: metric: expected one of {METRICS}, found {experiment.metric!r}.")
    used = [(f"arm {arm.name}", list(arm.scales)) for arm in experiment.arms.values()]
    used += [(f"after: {each.command}", [*each.scales, *each.minutes]) for each in experiment.after]
    for where, names in used:
        scales = dict.fromkeys(names)
        _check_keys(scales, set(experiment.scales), set(), f"{path}: {where}: scales")
    return experiment


def _shared(folder: Path) -> Path | None:
    """Return what experiments share: beside the experiment's folder, or else the shipped file."""
    beside = folder.parent / "shared" / "shared.yaml"
    if beside.is_file():
        return beside
    try:
        shipped = experiments_folder() / "shared" / "shared.yaml"
    except FileNotFoundError:
        return None
    return shipped if shipped.is_file() else None


def _scales(shared: Any, own: Any, path: Path) -> dict[str, Scale]:
    scales = {}
    for name in {**shared, **own}:
        base, top = shared.get(name, {}), own.get(name, {})
        for part in (base, top):
            known = {"seeds", "steps", "evaluations", "environment", "methods", "families"}
            _check_keys(part, {*known, "overlays", "overrides"}, set(), f"{path}: scale {name}")
        merged = {**base, **top}
        _check_keys(merged, set(merged), {"seeds", "steps"}, f"{path}: scale {name}")
        scales[name] = Scale(
            name=name,
            seeds=tuple(merged["seeds"]),
            steps=int(merged["steps"]),
            evaluations=int(merged.get("evaluations", 20)),
            environment={k: str(v) for k, v in merged.get("environment", {}).items()},
            all=_joined(*(_layer(_whole(part), path) for part in (base, top))),
            methods=_layers(base, top, "methods", path),
            families=_layers(base, top, "families", path),
        )
    return scales


def _whole(part: Any) -> dict[str, Any]:
    """Return what a scale gives to every run."""
    return {key: value for key, value in part.items() if key in ("overlays", "overrides")}


def _layers(base: Any, top: Any, key: str, path: Path) -> dict[str, Layer]:
    first, second = base.get(key, {}), top.get(key, {})
    return {
        name: _joined(_layer(first.get(name, {}), path), _layer(second.get(name, {}), path))
        for name in {**first, **second}
    }


def _layer(content: Any, path: Path) -> Layer:
    _check_keys(content, {"overlays", "overrides", "steps"}, set(), f"{path}: a layer")
    overlays, overrides = tuple(content.get("overlays", ())), dict(content.get("overrides", {}))
    return Layer(overlays, overrides, content.get("steps"))


def _joined(first: Layer, second: Layer) -> Layer:
    overrides = {**first.overrides, **second.overrides}
    steps = first.steps if second.steps is None else second.steps
    return Layer((*first.overlays, *second.overlays), overrides, steps)


def _arm(name: str, content: Any, path: Path) -> Arm:
    where = f"{path}: arm {name}"
    _check_keys(content, {"label", "configs", "overrides", "scales"}, {"label", "configs"}, where)
    scales = {key: _layer(value, path) for key, value in content.get("scales", {}).items()}
    configs, overrides = tuple(content["configs"]), dict(content.get("overrides", {}))
    return Arm(name, content["label"], configs, overrides, scales)


def _stage(content: Any, path: Path) -> Stage:
    needed = {"command", "configs", "result"}
    _check_keys(content, {*needed, "minutes", "scales"}, needed, f"{path}: after")
    scales = {key: _layer(value, path) for key, value in content.get("scales", {}).items()}
    return Stage(
        content["command"],
        tuple(content["configs"]),
        content["result"],
        content.get("minutes", {}),
        scales,
    )


def _against(content: Any, arms: Any, path: Path) -> Against:
    _check_keys(content, {"label", "lines"}, {"label", "lines"}, f"{path}: against")
    lines = {
        str(name): {str(place): arm for place, arm in line.items()}
        for name, line in content["lines"].items()
    }
    unknown = {arm for line in lines.values() for arm in line.values()} - set(arms)
    if unknown:
        raise ValueError(
            f"{path}: against: unknown arms {', '.join(sorted(unknown))}: expected "
            f"{', '.join(arms)}."
        )
    return Against(content["label"], lines)


def _check_keys(content: Any, known: set[str], needed: set[str], where: str) -> None:
    if not isinstance(content, Mapping):
        raise ValueError(f"{where}: expected keys {', '.join(sorted(known))}, found {content!r}.")
    unknown, missing = set(content) - known, needed - set(content)
    if unknown or missing:
        raise ValueError(
            f"{where}: expected keys {', '.join(sorted(known))}; unknown: "
            f"{', '.join(sorted(map(str, unknown))) or 'none'}, missing: "
            f"{', '.join(sorted(missing)) or 'none'}."
        )


def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text()) or {}
