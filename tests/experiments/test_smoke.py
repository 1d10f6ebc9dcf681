"""``--scale smoke`` of every experiment, in this process: small networks, short episodes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pytest
import yaml

from offline_meta_rl import cli, finetune
from offline_meta_rl.envs import FAMILIES
from offline_meta_rl.experiments.gather import gather
from offline_meta_rl.experiments.plan import Run, plan
from offline_meta_rl.experiments.reading import experiment_names, load_experiment
from offline_meta_rl.experiments.report import write_report
from offline_meta_rl.experiments.runner import Runner, Worker
from offline_meta_rl.reports import results
from offline_meta_rl.reports.curves import learning_curve
from tests.helpers import merged, on_top
from tests.test_configs import HORIZON, SMALL

TRANSITIONS = 15  # of each stage in each task
FINE_TUNING = {
    "context_size": 8,
    "environment_steps": 10,
    "batch_size": 4,
    "comparison_episodes": 2,
}
ARMS = {"figure5_sparsity": "_3"}  # the fewest tasks


def smoke_plan(name: str, root: Path) -> list[Run]:
    """Return the runs of an experiment's first family; its other families have tests of configs."""
    experiment = load_experiment(name)
    overrides: dict[str, Any] = {
        "data.init_args.batches.inner_size": 4,
        "data.init_args.batches.outer_size": 4,
        "data.init_args.collection.transitions_per_stage": TRANSITIONS,
        "trainer.logger": False,
    }
    if name == "figure5_quality":
        slices = (
            "data.init_args.batches.inner_slice.size",
            "data.init_args.batches.outer_slice.size",
        )
        overrides |= dict.fromkeys(slices, TRANSITIONS)
    runs: list[Run] = []
    for arm in experiment.arms:
        if arm.endswith(ARMS.get(name, "")):
            families = [experiment.families[0]]
            chosen = {"arms": [arm], "families": families, "overrides": overrides}
            runs += plan(experiment, "smoke", root, **chosen)
    return runs


def shrunken(run: Run, folder: Path) -> Path:
    """Write an overlay with small networks and evaluations."""
    base = merged(run.configs)
    callbacks = [
        {**each, "init_args": on_top(each.get("init_args", {}), SMALL.get(each["class_path"], {}))}
        for each in base["trainer"]["callbacks"]
    ]
    path = folder / f"{run.arm}.yaml"
    model = {"init_args": SMALL[run.method]}
    path.write_text(yaml.safe_dump({"model": model, "trainer": {"callbacks": callbacks}}))
    return path


def whole_learning_curve(history: list[Any], *given: Any, **options: Any) -> None:
    """Draw the picture after the last evaluation only: pictures take half of an evaluation."""
    if len(history) > 1:
        learning_curve(history, *given, **options)


@pytest.mark.mujoco
@pytest.mark.parametrize("name", experiment_names())
def test_smoke(
    name: str, tmp_path: Path, shared_data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFLINE_META_RL_DATA", str(shared_data_root))
    monkeypatch.setattr(results, "learning_curve", whole_learning_curve)
    runs = smoke_plan(name, tmp_path)
    assert runs
    family = FAMILIES[merged(runs[0].configs)["data"]["init_args"]["env"]]
    monkeypatch.setattr(type(family), "horizon", HORIZON)
    overlays = {str(run.folder): shrunken(run, tmp_path) for run in runs}

    def launch(
        arguments: Sequence[str], variables: Mapping[str, str], log: IO[str], kept: Any
    ) -> int:
        if arguments[0] == "finetune":
            shorter = [f"--finetune.{name}={value}" for name, value in FINE_TUNING.items()]
            finetune.run_finetune([*arguments[1:], *shorter])
            return 0
        overlay = next(path for f, path in overlays.items() if any(f in a for a in arguments))
        configs = 1 + 2 * arguments.count("--config")  # the overlay goes after them
        cli.run([*arguments[:configs], "--config", str(overlay), *arguments[configs:]])
        return 0

    said: list[str] = []
    assert Runner(runs, [Worker(())], launch=launch, say=said.append).run(), said
    for run in runs:
        assert (run.folder / "learning_curve.png").is_file()
    page = write_report(gather(load_experiment(name), runs), tmp_path / "report")
    assert page.is_file()
    labels = {run.label for run in runs}
    text = page.with_suffix(".md").read_text()
    assert all(f"| {label} | 1 |" in text for label in labels)


@pytest.mark.parametrize(
    ("name", "scale", "arm", "family", "expected"),
    [
        (
            "figure3",
            "cpu",
            "macaw",
            "cheetah_dir",
            {"batches.tasks": None, "batches.outer_slice": ["expert"], "max_steps": 5000},
        ),
        (
            "figure3",
            "paper",
            "macaw",
            "walker",
            {
                "outer.policy_learning_rate": 1e-4,
                "batches.inner_slice": None,
                "collection.transitions_per_stage": 100000,
            },
        ),
        (
            "figure4",
            "paper",
            "macaw",
            "cheetah_vel",
            {
                "batches.inner_slice": ["untrained"],
                "batches.outer_slice": ["stage_0", "stage_1", "stage_2", "stage_3", "expert"],
                "collection.untrained_episodes": 30,
                "outer.final_learning_rate": 1.0,
            },
        ),
        (
            "figure5_quality",
            "cpu",
            "macaw_middle",
            "cheetah_vel",
            {"batches.inner_slice": {"stage": "middle", "size": 4000, "centre": 0.5}},
        ),
        (
            "figure5_quality",
            "paper",
            "macaw_first",
            "cheetah_vel",
            {
                "batches.inner_slice": {"stage": "first", "size": 100000, "centre": 0.5},
                "batches.outer_slice": {"stage": "last", "size": 100000, "centre": 0.5},
                "awr.temperature": 1.0,
            },
        ),
        (
            "figure5_sparsity",
            "cpu",
            "macaw_3",
            "cheetah_vel",
            {"split": "sixteenth", "batches.tasks": 3, "collection.transitions_per_stage": 28000},
        ),
    ],
)
def test_scales_come_to_what_their_pages_say(
    name: str,
    scale: str,
    arm: str,
    family: str,
    expected: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    experiment = load_experiment(name)
    (run,) = plan(experiment, scale, tmp_path, arms=[arm], families=[family], seeds=[3])
    with pytest.raises(SystemExit, match="0"):
        cli.run([*run.commands[0], "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    found = {
        **printed["trainer"],
        **{
            f"{group}.{name}": value
            for part in ("model", "data")
            for group, given in printed[part]["init_args"].items()
            if isinstance(given, dict)
            for name, value in given.items()
        },
        **printed["data"]["init_args"],
    }
    assert {key: found[key] for key in expected} == expected
    assert (printed["seed_everything"], found["seed"]) == (3, 3)
