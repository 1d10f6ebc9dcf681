"""Experiments are read from YAML, planned in a fixed order, and mistakes are named."""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from offline_meta_rl.common.configs import with_includes
from offline_meta_rl.experiments import reading, runner
from offline_meta_rl.experiments.command import COMMANDS, experiment_command
from offline_meta_rl.experiments.plan import estimate_hours, plan
from offline_meta_rl.experiments.reading import experiment_names, load_experiment
from offline_meta_rl.experiments.specification import Layer
from tests.experiments.sample import plan_of, write_experiment
from tests.helpers import merged

PAPER = {
    "figure3": ({"point_robot", "cheetah_dir", "cheetah_vel", "walker", "ant"}, 5),
    "table1": ({"cheetah_vel", "walker", "ant"}, 3),
    "figure4": ({"cheetah_vel"}, 3),
    "figure5_quality": ({"cheetah_vel"}, 6),
    "figure5_weight_transform": ({"cheetah_vel"}, 4),
    "figure5_sparsity": ({"cheetah_vel"}, 20),
    "figure6": ({"cheetah_dir", "walker", "ant"}, 4),
}
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def files(arguments: tuple[str, ...]) -> list[str]:
    """Return the configs of a command, by name."""
    given = [b for a, b in pairwise(arguments) if a == "--config"]
    return [Path(path).stem for path in given]


def options(arguments: tuple[str, ...]) -> dict[str, str]:
    return dict(part[2:].split("=", 1) for part in arguments if "=" in part)


def test_every_figure_and_table_is_there() -> None:
    assert set(experiment_names()) == set(PAPER)
    for name, (families, arms) in PAPER.items():
        experiment = load_experiment(name)
        assert set(experiment.families) == families
        assert len(experiment.arms) == arms
        assert list(experiment.scales) == ["smoke", "cpu", "paper"]
        assert experiment.scales["cpu"].steps == 5000
        assert experiment.scales["paper"].seeds == (0, 1, 2, 3)


@pytest.mark.parametrize("name", sorted(PAPER))
def test_every_overlay_is_used_and_every_key_exists(name: str) -> None:
    experiment = load_experiment(name)
    named = {config for arm in experiment.arms.values() for config in arm.overlays}
    named |= {
        o for arm in experiment.arms.values() for s in arm.scales.values() for o in s.overlays
    }
    unused = {path.stem for path in experiment.folder.glob("*.yaml")} - named - {"experiment"}
    assert unused <= {"authors_data"}  # a variant, to be put in place of another one
    for path in experiment.folder.glob("*.yaml"):
        if path.stem != "experiment":
            assert set(yaml.safe_load(path.read_text())) <= {"model", "data", "trainer"}
    for arm in experiment.arms:
        for family in experiment.families:
            for scale in experiment.scales:
                plan(experiment, scale, Path("runs"), arms=[arm], families=[family])


@pytest.mark.parametrize("name", sorted(PAPER))
def test_arms_are_given_the_same_data(name: str) -> None:
    experiment = load_experiment(name)
    for family in experiment.families:
        found = {}
        for name, arm in experiment.arms.items():
            paths = experiment.configs(arm.configs, family)
            base = merged(file for path in paths for file in with_includes(path))
            keys = ("env", "path", "collection")
            found[name] = [base["data"]["init_args"].get(key) for key in keys]
        first = next(iter(found.values()))
        assert {arm: data for arm, data in found.items() if data != first} == {}


@pytest.fixture
def experiment(tmp_path: Path) -> Any:
    return write_experiment(tmp_path)


def test_order_of_runs_and_layers(experiment: Any, tmp_path: Path) -> None:
    runs = plan_of(experiment, tmp_path)
    assert [run.name for run in runs[:3]] == [
        "robot/ours/seed_0",
        "robot/theirs/seed_0",
        "robot/ours/seed_1",
    ]
    assert len(runs) == 12
    ours, ant = runs[0].commands[0], runs[-2].commands[0]
    assert files(ours) == ["ours_robot", "all", "of_method", "of_arm", "of_arm_and_scale"]
    assert files(ant) == [
        *("ours_ant", "all", "of_method", "of_family", "of_arm", "of_arm_and_scale")
    ]
    assert options(ours)["x"] == "3"
    assert options(runs[1].commands[0])["x"] == "1"
    assert options(ours)["y"] == "null"
    assert options(ours)["trainer.max_steps"] == "8"
    assert options(ours)["trainer.val_check_interval"] == "4"
    assert options(ant)["trainer.max_steps"] == "4"
    assert (options(ant)["seed_everything"], options(ant)["data.init_args.seed"]) == ("2", "2")
    assert runs[0].environment["WANDB_RUN_GROUP"] == "small/robot/ours"
    assert runs[0].environment["WANDB_TAGS"] == "small,tiny,robot,ours"


def test_selection(experiment: Any, tmp_path: Path) -> None:
    runs = plan_of(
        experiment, tmp_path, arms=["theirs"], families=["ant"], seeds=[7], overrides={"y": [1, 2]}
    )
    assert [run.name for run in runs] == ["ant/theirs/seed_7"]
    assert options(runs[0].commands[0])["y"] == "[1, 2]"


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"arms": ["ours", "nobody"]}, "Unknown arm 'nobody': expected ours, theirs"),
        ({"families": ["dog"]}, "Unknown family 'dog': expected robot, ant"),
    ],
)
def test_unknown_names_list_the_valid_ones(
    selection: dict[str, Any], message: str, experiment: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(experiment, tmp_path, **selection)


def test_unknown_scale_experiment_and_config(experiment: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Unknown scale 'huge': expected tiny"):
        plan(experiment, "huge", tmp_path)
    with pytest.raises(ValueError, match=r"Unknown experiment 'figure9': expected one of figure3"):
        load_experiment("figure9")
    (tmp_path / "configs" / "theirs_ant.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"small needs the config theirs_ant\.yaml; it is"):
        plan_of(experiment, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrik": "x"}, r"unknown: metrik"),
        (
            {"against": {"label": "x", "lines": {"a": {1: "b"}}}},
            r"against\.lines: expected arms ours, theirs; unknown: b",
        ),
        ({"metric": "loss"}, r"metric: expected '.*' or '.*', found 'loss'"),
        ({"arms": {"a": {"configs": []}}}, r"arms\.a: expected keys configs, .*; missing: label"),
        ({"scales": {"tiny": {"seeds": [0]}}}, r"scales\.tiny: expected keys .*; missing: steps"),
        (
            {"arms": {"a": {"label": "A", "configs": [], "scales": {"tinny": {}}}}},
            r"arms\.a\.scales: expected scales tiny; unknown: tinny",
        ),
        (
            {"after": [{"command": "x", "configs": [], "result": "y", "minutes": {"big": 1}}]},
            r"after: x: scales: expected scales tiny; unknown: big",
        ),
        (
            {"scales": {"tiny": {"seeds": [0], "steps": 1, "methods": {"A": {"b": 1}}}}},
            r"yaml \(scales also of .*shared\.yaml\): scales\.tiny\.methods\.A: .*; unknown: b",
        ),
        ({"scales": {"tiny": {"seeds": [0], "steps": 0}}}, "steps: expected at least 1, found 0"),
        ({"scales": {"tiny": None}}, r"scales\.tiny: expected a dictionary .*, found None"),
        ({"families": "ant", "arms": 3}, r"families: .*found 'ant'; arms: .*, found 3"),
        (
            {"after": [{"command": "x", "configs": [], "result": "y", "minute": {}}]},
            r"after\.0: expected keys command, .*; unknown: minute",
        ),
        (
            {"against": {"label": "x", "line": {}, "lines": {}}},
            r"against: expected keys label, lines; unknown: line",
        ),
        (
            {"arms": {"a": {"label": "A", "configs": [], "scales": {"tiny": {"steps": "many"}}}}},
            r"arms\.a\.scales\.tiny\.steps: expected a valid integer.*, found 'many'",
        ),
    ],
)
def test_malformed_experiments(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_experiment(tmp_path, **changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [("title: [", "is not YAML: .*Correct it"), ("- 1", r"expected keys and values, found \[1\]")],
)
def test_other_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_experiment(str(path))


def test_own_scales_lie_on_top_of_the_shared_ones(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    folder = tmp_path / "configs" / "experiments"
    shared = {
        "seeds": [7],
        "steps": 1,
        "environment": {"A": 1},
        "overlays": ["of_arm"],
        "overrides": {"x": 5, "z": {"deep": 1}},
        "methods": {"Macaw": {"overlays": ["of_family"], "steps": 3}, "Pearl": {"steps": 2}},
    }
    content = {"scales": {"tiny": shared, "other": shared}}
    (folder / "shared" / "shared.yaml").write_text(yaml.safe_dump(content))
    scales = load_experiment(str(folder / "small")).scales
    assert set(scales) == {"tiny", "other"}
    tiny = scales["tiny"]
    assert (tiny.seeds, tiny.steps, tiny.environment) == ((0, 1, 2), 8, {"A": "1"})
    assert tiny.overlays == ("of_arm", "all")
    assert tiny.overrides == {"x": 1, "y": None, "z": {"deep": 1}}
    assert tiny.methods["Macaw"] == Layer(("of_family", "of_method"), {"x": 2}, 3)
    assert tiny.methods["Pearl"] == Layer(steps=2)
    assert scales["other"].seeds == (7,)


def test_several_configs_make_a_whole_one(tmp_path: Path) -> None:
    arm = {"label": "A", "configs": ["methods/{family}", "families/{family}", "ours_{family}"]}
    experiment = write_experiment(tmp_path, arms={"a": arm | {"overlays": ["of_arm"]}})
    for kind, content in (("methods", {"model": {"class_path": "CQL"}}), ("families", {})):
        path = tmp_path / "configs" / kind / "robot.yaml"
        path.parent.mkdir()
        path.write_text(yaml.safe_dump(content))
    run, *_ = plan_of(experiment, tmp_path, families=["robot"])
    assert run.method == "Macaw"  # of ours_robot, which wins
    assert files(run.commands[0]) == ["robot", "robot", "ours_robot", "all", "of_method", "of_arm"]
    settings = run.settings()
    names = ["methods/robot.yaml", "families/robot.yaml", "ours_robot.yaml"]
    assert list(settings["configs"])[:3] == names  # two files of one name are two files
    assert settings["commands"][0][1:6:2] == ["--config"] * 3
    assert settings["commands"][0][2:7:2] == names
    (tmp_path / "configs" / "ours_robot.yaml").write_text("{}")
    run, *_ = plan_of(experiment, tmp_path, families=["robot"])
    assert run.method == "CQL"
    (tmp_path / "configs" / "methods" / "robot.yaml").write_text("{}")
    with pytest.raises(ValueError, match=r"arm a of small: expected model\.class_path in one of"):
        plan_of(experiment, tmp_path, families=["robot"])


@pytest.mark.parametrize("by_folder", [True, False])
def test_an_experiment_may_lie_anywhere(by_folder: bool, tmp_path: Path) -> None:
    path = tmp_path / "mine" / "experiment.yaml"
    path.parent.mkdir()
    arm = {"label": "MACAW", "configs": ["macaw_{family}"], "overrides": {"x": 1}}
    path.write_text(yaml.safe_dump({"title": "Mine", "families": ["ant"], "arms": {"macaw": arm}}))
    experiment = load_experiment(str(path.parent if by_folder else path))
    (first, *_) = plan(experiment, "cpu", tmp_path)
    assert experiment.name == "mine"
    names = ("families/ant.yaml", "methods/macaw.yaml", "macaw_ant.yaml")
    assert first.configs == tuple(CONFIGS / name for name in names)
    assert "--x=1" in first.commands[0]


def test_a_plan_refuses_what_it_decides_itself(experiment: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer\.max_steps: expected other overrides"):
        plan_of(experiment, tmp_path, overrides={"trainer.max_steps": 2})
    with pytest.raises(ValueError, match=r"Expected every seed once, found 0, 0, 1"):
        plan_of(experiment, tmp_path, seeds=[0, 0, 1])


def test_overlays_lie_on_top_of_every_arm(experiment: Any, tmp_path: Path) -> None:
    runs = plan_of(experiment, tmp_path, overlays=["of_family"])
    assert {files(run.commands[0])[-1] for run in runs} == {"of_family"}
    with pytest.raises(FileNotFoundError, match=r"needs the config nothing\.yaml"):
        plan_of(experiment, tmp_path, overlays=["nothing"])


def test_estimate(experiment: Any, tmp_path: Path) -> None:
    runs = plan_of(experiment, tmp_path, families=["robot"], seeds=[0, 1])
    speeds = {"Macaw": {"robot": 2.0}}
    hours, unknown = estimate_hours(runs, speeds, {}, workers=1)
    assert hours == pytest.approx(2 * 8 / 2 / 3600)
    assert unknown == ["robot/theirs"]
    ants = plan_of(experiment, tmp_path, families=["ant"], arms=["ours"], seeds=[0])
    hours, _ = estimate_hours(ants, {"Macaw": {"robot": 2.0, "cheetah": 0.5}}, {}, workers=1)
    assert hours == pytest.approx(4 / 0.5 / 3600)  # as the slowest family that is known
    measured = {"robot/theirs": 1.0, "robot/ours": 4.0}
    hours, unknown = estimate_hours(runs, speeds, measured, workers=2)
    assert hours == pytest.approx((2 * 8 / 4 + 2 * 8 / 1) / 2 / 3600)
    assert unknown == []
    hours, _ = estimate_hours(runs[1:2], {}, measured, workers=9)
    assert hours == pytest.approx(8 / 3600)  # one run does not get faster


def test_overlays_and_commands_after_training_cost_time(tmp_path: Path) -> None:
    after = [
        {"command": "test", "configs": [], "result": "a.json", "minutes": {"tiny": 3}},
        {"command": "test", "configs": [], "result": "b.json"},
    ]
    experiment = write_experiment(tmp_path, after=after)
    costly = replace(experiment, costs={"of_arm": 5.0, "all": 2.0, "elsewhere": 7.0})
    runs = plan_of(costly, tmp_path, families=["robot"], arms=["ours"], seeds=[0])
    hours, _ = estimate_hours(runs, {"Macaw": {"robot": 2.0}}, {}, workers=1)
    assert hours == pytest.approx((5 * 2 * 8 / 2 + 3 * 60) / 3600)


def test_commands_print_plans_and_sweeps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "available_cores", lambda: [4, 5])
    monkeypatch.setattr(runner, "visible_gpus", list)
    experiment_command(["list"])
    assert "figure5_sparsity: Figure 5, right" in capsys.readouterr().out
    experiment_command(
        ["plan", "figure3", "--arms", "macaw", "--families", "walker", "--seeds", "4", "5"]
    )
    printed = capsys.readouterr().out
    assert "2 runs of 5000 outer steps, 2 to do, 2 at a time" in printed
    assert "about 0.1 hours" in printed
    assert "1: walker/macaw/seed_5" in printed
    assert f"fit --config {CONFIGS / 'macaw_walker.yaml'}" in printed
    selection = ["--arms", "macaw", "--families", "walker", "--seeds", "4", "5"]
    experiment_command(["sweep", "figure3", *selection, "--output", "sweep.yaml"])
    sweep = yaml.safe_load(Path("sweep.yaml").read_text())
    assert sweep["parameters"] == {"index": {"values": [0, 1]}}
    given = [part.replace("${args}", "--index=1") for part in sweep["command"][2:]]
    options = specification_of(given)
    assert options.index == 1
    assert (options.arms, options.families, options.seeds) == (["macaw"], ["walker"], [4, 5])


def specification_of(arguments: list[str]) -> Any:
    name, *options = arguments
    return COMMANDS.parser(name).parse_args(options)


def test_bad_options_are_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="error: Unknown experiment 'figure9'"):
        experiment_command(["run", "figure9"])
    one = ["--arms", "macaw", "--families", "ant", "--seeds", "0"]
    with pytest.raises(SystemExit, match="--index: expected 0 to 0, found 3"):
        experiment_command(["run", "figure3", *one, "--index", "3"])
    with pytest.raises(SystemExit, match="--set: expected KEY=VALUE, found 'x'"):
        experiment_command(["plan", "figure3", "--arms", "macaw", "--set", "x"])


def test_no_experiments_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reading, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    with pytest.raises(FileNotFoundError, match="Run in a checkout of the repository"):
        load_experiment("figure3")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    arguments = [sys.executable, "-m", "offline_meta_rl", "experiment", "list"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0
