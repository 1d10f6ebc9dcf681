"""What an experiment is: families, arms and scales, read from YAML and checked by name.

An experiment is a folder with ``experiment.yaml`` and the overlays that only it uses. Scales,
aliases of configs and measured speeds are shared by all experiments: ``shared/shared.yaml`` beside
the folders. Names of configs are relative to the experiment's folder, or else to ``configs``,
without ``.yaml``; ``{family}`` in a name is replaced.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

METRICS = ("after_normalised_return", "after_return")


@dataclass(frozen=True)
class Layer:
    """What is put on top of an arm's first config.

    Attributes:
        overlays: names of configs, later ones win.
        overrides: dotted key of the command line -> value.
        steps: outer steps; None for those of the scale.
    """

    overlays: tuple[str, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None


@dataclass(frozen=True)
class Scale:
    """How large an experiment is run.

    Attributes:
        name: ``smoke``, ``cpu``, ``paper``.
        seeds: of the runs.
        steps: outer steps of a run.
        evaluations: of held-out tasks during a run, besides the one before it.
        environment: variables of the processes.
        all: what every run gets.
        methods: class name of a method -> what its runs get.
        families: family -> what its runs get.
    """

    name: str
    seeds: tuple[int, ...]
    steps: int
    evaluations: int = 20
    environment: Mapping[str, str] = field(default_factory=dict)
    all: Layer = Layer()
    methods: Mapping[str, Layer] = field(default_factory=dict)
    families: Mapping[str, Layer] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """One line of a figure.

    Attributes:
        name: as on the command line and in paths.
        label: as in figures.
        configs: names; the first one is a whole config, the others are overlays.
        overrides: dotted key -> value.
        scales: scale -> what this arm gets there.
    """

    name: str
    label: str
    configs: tuple[str, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    scales: Mapping[str, Layer] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A command that follows training, on the last checkpoint.

    Attributes:
        command: ``test``, or another subcommand of ``lightning`` that takes ``--ckpt_path``.
        configs: names of its configs.
        result: file that it writes into the run's folder.
        scales: scale -> overrides.
    """

    command: str
    configs: tuple[str, ...]
    result: str
    scales: Mapping[str, Layer] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """One figure or table.

    Attributes:
        name: of its folder.
        folder: where its overlays are.
        title: one line.
        families: task families, as in names of configs.
        arms: name -> arm; the first one is compared with the others.
        scales: name -> scale.
        varies: fields of the protocol that differ between arms on purpose, or
            ``dataset_checksum``.
        metric: what is compared.
        after: commands that follow training.
        aliases: name of a config -> name of the file that it is.
        speeds: method -> family -> outer steps a second of one core, evaluations included.
    """

    name: str
    folder: Path
    title: str
    families: tuple[str, ...]
    arms: Mapping[str, Arm]
    scales: Mapping[str, Scale]
    varies: tuple[str, ...] = ()
    metric: str = METRICS[0]
    after: tuple[Stage, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    speeds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def config(self, name: str, family: str) -> Path:
        """Return the file of a config's name.

        Raises:
            FileNotFoundError: there is none; says where it was looked for.
        """
        wanted = name.format(family=family)
        wanted = self.aliases.get(wanted, wanted)
        folders = (self.folder, self.folder.parent.parent)
        for folder in folders:
            if (folder / f"{wanted}.yaml").is_file():
                return folder / f"{wanted}.yaml"
        raise FileNotFoundError(
            f"Experiment {self.name} needs the config {wanted}.yaml; it is neither in {folders[0]} "
            f"nor in {folders[1]}. Add it, or choose other --arms and --families."
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
    if path.suffix != ".yaml":
        path = experiments_folder() / name / "experiment.yaml"
    if not path.is_file():
        raise ValueError(
            f"Unknown experiment {name!r}: expected one of {', '.join(experiment_names())}, or the "
            "path of an experiment.yaml."
        )
    shared_path = path.parent.parent / "shared" / "shared.yaml"
    shared = _read(shared_path) if shared_path.is_file() else {}
    content = _read(path)
    known = {"title", "families", "arms", "scales", "varies", "metric", "after"}
    _check_keys(content, known, {"title", "families", "arms"}, str(path))
    _check_keys(shared, {"scales", "aliases", "speeds"}, set(), str(shared_path))
    experiment = Experiment(
        name=path.parent.name,
        folder=path.parent.resolve(),
        title=content["title"],
        families=tuple(content["families"]),
        arms={key: _arm(key, value, path) for key, value in content["arms"].items()},
        scales=_scales(shared.get("scales", {}), content.get("scales", {}), path),
        varies=tuple(content.get("varies", ())),
        metric=content.get("metric", METRICS[0]),
        after=tuple(_stage(value, path) for value in content.get("after", ())),
        aliases=shared.get("aliases", {}),
        speeds=shared.get("speeds", {}),
    )
    if experiment.metric not in METRICS:
        raise ValueError(f"{path}: metric: expected one of {METRICS}, found {experiment.metric!r}.")
    return experiment


def choose(kind: str, wanted: list[str] | None, known: list[str]) -> list[str]:
    """Return the wanted names in their known order; all of them if none are given.

    Raises:
        ValueError: an unknown one; lists the valid ones.
    """
    unknown = [name for name in wanted or [] if name not in known]
    if unknown:
        raise ValueError(
            f"Unknown {kind} {', '.join(map(repr, unknown))}: expected {', '.join(known)}."
        )
    return [name for name in known if not wanted or name in wanted]


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
    _check_keys(content, {*needed, "scales"}, needed, f"{path}: after")
    scales = {key: _layer(value, path) for key, value in content.get("scales", {}).items()}
    return Stage(content["command"], tuple(content["configs"]), content["result"], scales)


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
