"""What an experiment is: families, arms and scales.

An experiment is a folder with ``experiment.yaml`` and the overlays that only it uses. Scales,
aliases of configs and measured speeds are shared by all experiments: ``shared/shared.yaml`` beside
the folders, or else the shipped one. Names of configs are relative to the experiment's folder, or
else to ``configs``, without ``.yaml``; ``{family}`` in a name is replaced.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
        minutes: scale -> that it takes one core, about.
        scales: scale -> overrides.
    """

    command: str
    configs: tuple[str, ...]
    result: str
    minutes: Mapping[str, float] = field(default_factory=dict)
    scales: Mapping[str, Layer] = field(default_factory=dict)


@dataclass(frozen=True)
class Against:
    """A picture of scores against what varies between arms, such as the number of tasks.

    Attributes:
        label: of the horizontal axis.
        lines: label of a line -> place on the axis -> arm.
    """

    label: str
    lines: Mapping[str, Mapping[str, str]]


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
            ``dataset_checksum``, or where contexts come from: ``inner_slice``, ``stride``.
        metric: what is compared.
        after: commands that follow training.
        against: one more picture; None for none.
        aliases: name of a config -> name of the file, or names of the files, that it is.
        speeds: method -> family -> outer steps a second of one core, evaluations included.
        shared: the file of what experiments share; None for none. Configs are beside its folder.
        costs: overlay -> how many times the time of a step it takes.
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
    against: Against | None = None
    aliases: Mapping[str, str | list[str]] = field(default_factory=dict)
    speeds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    shared: Path | None = None

    def configs(self, name: str, family: str) -> list[Path]:
        """Return the file, or files, of a config's name; files that they include are not listed.

        Raises:
            FileNotFoundError: there is none; says where it was looked for.
        """
        wanted = name.format(family=family)
        names = self.aliases.get(wanted, wanted)
        return [self._config(each) for each in ([names] if isinstance(names, str) else names)]

    def _config(self, wanted: str) -> Path:
        folders = [self.folder, self.folder.parent.parent]
        folders += [self.shared.parents[2]] if self.shared else []
        for folder in folders:
            if (folder / f"{wanted}.yaml").is_file():
                return folder / f"{wanted}.yaml"
        raise FileNotFoundError(
            f"Experiment {self.name} needs the config {wanted}.yaml; it is in none of "
            f"{', '.join(map(str, dict.fromkeys(folders)))}. Add it, or choose other --arms and "
            "--families."
        )


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
