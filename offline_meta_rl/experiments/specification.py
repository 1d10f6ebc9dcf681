"""What an experiment is: families, arms and scales; the layout of its YAML files.

An experiment is a folder with ``experiment.yaml`` and the overlays that only it uses. Scales,
aliases of configs and measured speeds are shared by all experiments: ``shared/shared.yaml`` beside
the folders, or else the shipped one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import ConfigDict

Metric: TypeAlias = Literal["after_normalised_return", "after_return"]


class _Section:
    """A mapping in a YAML file: no keys but its own; ``1`` is as good as ``"1"`` for a text."""

    __pydantic_config__ = ConfigDict(extra="forbid", coerce_numbers_to_str=True)


@dataclass(frozen=True)
class Layer(_Section):
    """What is put on top of an arm's configs.

    Attributes:
        overlays: Names of configs; later ones win.
        overrides: Dotted key, as on the command line -> value; wins over every config.
        steps: Outer steps; None for those of the scale.
    """

    overlays: tuple[str, ...] = ()
    overrides: Mapping[str, object] = field(default_factory=dict)
    steps: int | None = None


@dataclass(frozen=True)
class Scale(_Section):
    """How large an experiment is run.

    Attributes:
        seeds: Seeds of the runs.
        steps: Outer steps of a run.
        evaluations: Evaluations on held-out tasks during a run, besides the one before it.
        environment: Variables of the processes.
        overlays: Names of configs that every run gets.
        overrides: Dotted key -> value, for every run.
        methods: Class name of a method -> what its runs get.
        families: Task family -> what its runs get.
    """

    seeds: tuple[int, ...]
    steps: int
    evaluations: int = 20
    environment: Mapping[str, str] = field(default_factory=dict)
    overlays: tuple[str, ...] = ()
    overrides: Mapping[str, object] = field(default_factory=dict)
    methods: Mapping[str, Layer] = field(default_factory=dict)
    families: Mapping[str, Layer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: Fewer than one step or evaluation.
        """
        for name, value in {"steps": self.steps, "evaluations": self.evaluations}.items():
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, found {value}")

    def layers(self, method: str, family: str) -> list[Layer]:
        """Return what runs of a method on a family get, the most special last."""
        special = (self.methods.get(method, Layer()), self.families.get(family, Layer()))
        return [Layer(self.overlays, self.overrides), *special]


@dataclass(frozen=True)
class Arm(_Section):
    """One line of a figure.

    Attributes:
        label: Name in figures.
        configs: Names of the configs that make a whole one together; later ones win.
        overlays: Names of configs on top of those, and on top of the scale's.
        overrides: Dotted key -> value; wins over every config.
        scales: Scale -> what this arm gets there.
    """

    label: str
    configs: tuple[str, ...]
    overlays: tuple[str, ...] = ()
    overrides: Mapping[str, object] = field(default_factory=dict)
    scales: Mapping[str, Layer] = field(default_factory=dict)

    def layers(self, scale: str) -> list[Layer]:
        """Return what this arm's runs get at a scale, the most special last."""
        return [Layer(self.overlays, self.overrides), self.scales.get(scale, Layer())]


@dataclass(frozen=True)
class Stage(_Section):
    """A command that follows training, on the last checkpoint.

    Attributes:
        command: ``test``, or another subcommand of ``lightning`` that takes ``--ckpt_path``.
        configs: Names of its configs.
        result: File that it writes into the run's folder.
        minutes: Scale -> minutes that it takes one core, about.
        scales: Scale -> overrides.
    """

    command: str
    configs: tuple[str, ...]
    result: str
    minutes: Mapping[str, float] = field(default_factory=dict)
    scales: Mapping[str, Layer] = field(default_factory=dict)


@dataclass(frozen=True)
class Against(_Section):
    """A picture of scores against what varies between arms, such as the number of tasks.

    Attributes:
        label: Label of the horizontal axis.
        lines: Label of a line -> place on the axis -> arm.
    """

    label: str
    lines: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class ExperimentFile(_Section):
    """Content of ``experiment.yaml``, its scales joined with the shared ones.

    Attributes:
        title: One line.
        families: Task families, which replace ``{family}`` in names of configs.
        arms: Name -> arm; the first one is compared with the others.
        scales: Name, such as ``cpu`` -> scale.
        varies: Fields of the protocol that differ between arms on purpose, or
            ``dataset_checksum``, or where contexts come from: ``inner_slice``, ``stride``.
        metric: What is compared.
        after: Commands that follow training.
        against: One more picture; None for none.
    """

    title: str
    families: tuple[str, ...]
    arms: Mapping[str, Arm]
    scales: Mapping[str, Scale]
    varies: tuple[str, ...] = ()
    metric: Metric = "after_normalised_return"
    after: tuple[Stage, ...] = ()
    against: Against | None = None

    def __post_init__(self) -> None:
        """Check the names of scales and arms.

        Raises:
            ValueError: A name that is not defined; lists the valid ones.
        """
        used = {f"arms.{name}.scales": list(arm.scales) for name, arm in self.arms.items()}
        for stage in self.after:
            used[f"after: {stage.command}: scales"] = [*stage.scales, *stage.minutes]
        for where, names in used.items():
            _check_names(where, names, "scales", list(self.scales))
        if self.against:
            arms = [arm for line in self.against.lines.values() for arm in line.values()]
            _check_names("against.lines", arms, "arms", list(self.arms))


@dataclass(frozen=True)
class Shared(_Section):
    """Content of ``shared.yaml``: what experiments share.

    Attributes:
        scales: Name -> scale, or part of one.
        aliases: Name of a config -> name of the file, or names of the files, that it is.
        speeds: Method -> family -> outer steps a second of one core, evaluations included.
        costs: Overlay -> how many times the time of a step it takes.
    """

    scales: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    aliases: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    speeds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Experiment(ExperimentFile):
    """One figure or table.

    Attributes:
        name: Name of its folder.
        folder: Where its overlays are.
        shared_path: The file of what experiments share; None for none.
        aliases: Name of a config -> name of the file, or names of the files, that it is.
        speeds: Method -> family -> outer steps a second of one core, evaluations included.
        costs: Overlay -> how many times the time of a step it takes.
    """

    name: str
    folder: Path
    shared_path: Path | None = None
    aliases: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    speeds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)

    def configs(self, names: Sequence[str], family: str) -> list[Path]:
        """Return the files of configs' names; files that they include are not listed.

        They are looked for in the experiment's folder, in the folder two levels up, which is
        ``configs`` for a shipped experiment, and two levels above what experiments share.

        Args:
            names: Paths without ``.yaml``; ``{family}`` in them is replaced.
            family: Task family.

        Raises:
            FileNotFoundError: One is not there; says where it was looked for.
        """
        found: list[Path] = []
        for name in names:
            wanted = name.format(family=family)
            alias = self.aliases.get(wanted, wanted)
            files = (alias,) if isinstance(alias, str) else alias
            found += [self._config(each) for each in files]
        return found

    def _config(self, wanted: str) -> Path:
        folders = [self.folder, self.folder.parent.parent]
        folders += [self.shared_path.parents[2]] if self.shared_path else []
        for folder in folders:
            if (folder / f"{wanted}.yaml").is_file():
                return folder / f"{wanted}.yaml"
        raise FileNotFoundError(
            f"Experiment {self.name} needs the config {wanted}.yaml; it is in none of "
            f"{', '.join(map(str, dict.fromkeys(folders)))}. Add it, or choose other --arms and "
            "--families."
        )


def _check_names(where: str, names: Sequence[str], kind: str, known: Sequence[str]) -> None:
    unknown = [name for name in dict.fromkeys(names) if name not in known]
    if unknown:
        raise ValueError(
            f"{where}: expected {kind} {', '.join(known)}; unknown: {', '.join(unknown)}"
        )


def choose(kind: str, wanted: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Return the wanted names in their known order; all of them if none are given.

    Raises:
        ValueError: An unknown one; lists the valid ones.
    """
    unknown = [name for name in wanted or [] if name not in known]
    if unknown:
        raise ValueError(
            f"Unknown {kind} {', '.join(map(repr, unknown))}: expected {', '.join(known)}."
        )
    return [name for name in known if not wanted or name in wanted]
