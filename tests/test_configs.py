"""Every YAML in ``configs`` trains, evaluates and saves, on data small enough for a test."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from datamodules import LifetimeBuffers
from offline_meta_rl import cli
from offline_meta_rl.common.configs import with_includes
from offline_meta_rl.data.contracts import DataSizes
from offline_meta_rl.data.writer import DatasetWriter
from offline_meta_rl.envs import FAMILIES
from offline_meta_rl.envs.base import TaskFamily
from offline_meta_rl.envs.rendering import use_working_gl
from offline_meta_rl.envs.scripted import ScriptedFamily
from tests.helpers import build, make_episodes, merged, on_top

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
CONTROLS = ["explorer_no_cql", "explorer_no_expl"]  # overlays on the configs of explorers
NO_RUNS = ["defaults", "explorer_sawyer_cpu", "explorer_three_drawers", *CONTROLS]
SHARED = yaml.safe_load((CONFIGS / "experiments" / "shared" / "shared.yaml").read_text())
PAIRS = {name: files for name, files in SHARED["aliases"].items() if isinstance(files, list)}
"""Pairs of a family and a method that need no file of their own."""
FILES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in NO_RUNS)
BEHAVIOUR = sorted(f"behaviour/{path.stem}" for path in CONFIGS.glob("behaviour/*.yaml"))
RUNS = sorted([*FILES, *PAIRS, *BEHAVIOUR])
OVERLAYS = sorted(path.stem for path in CONFIGS.glob("ablations/*.yaml"))
BASES = {"pearl_regularised": "pearl_point_robot"}  # what an overlay is for, unless the quick start
BOOTSTRAPPED = ["terminal_observation", "terminal_discount"]
DATA_OF_THEIR_OWN: dict[str, dict[str, Any]] = {
    "meta_bc": {},
    "multitask_awr": {"fields": ["observation", "action", "return_to_go", *BOOTSTRAPPED]},
}
ADAPTING = ["Macaw", "MetaBehaviourCloning", "MultitaskAWR", "Pearl"]
HORIZON = 5
SMALL = {
    "TaskBuffers": {"batches": {"inner_size": 4, "outer_size": 4}},
    "OnlineBuffer": {
        "capacity": 1000,
        "replay": {"warmup_steps": 2, "batch_size": 4, "updates_per_step": 6},
    },
    "LifetimeBuffers": {"lifetime_steps": 60, "replay": {"warmup_steps": 2, "batch_size": 4}},
    "CQL": {"network": {"width": 8}},
    "Macaw": {"network": {"width": 8, "head_width": 4, "latent_size": 3}, "compile": False},
    "Pearl": {
        "network": {"width": 8},
        "encoder": {"width": 8, "latent_size": 2},
        "compile": False,
    },
    "MetaBehaviourCloning": {"network": {"width": 8, "latent_size": 3}, "compile": False},
    "MultitaskAWR": {"network": {"width": 8}, "compile": False},
    "SAC": {"network": {"width": 8}},
    "Evaluate": {"protocol": {"episodes": 1, "context_size": 8}},
    "BehaviourLearning": {"every_n_steps": 3},
    "BehaviourSnapshots": {},
    "MetaTrajectories": {
        "num_episodes": 2,
        "batch_size": 2,
        "beliefs": {"count": 6, "batch_size": 4},
        "held_out": {"count": 4},
        "collection": {"transitions_per_stage": 40},
    },
    "ReflectiveExplorer": {
        "filter_steps": 3,
        "filter": {
            "recurrent": {"random_size": 3, "deterministic_size": 4, "hidden_size": 6},
            "image_size": 4,
            "hidden_size": 6,
        },
        "network": {"width": 8},
    },
    "EvaluateExploration": {"meta_episodes": 2, "validation_meta_episodes": 2},
    "WatchBeliefs": {"rows": 1, "images": 3},
    "WatchPosterior": {"contexts": 2, "context_size": 8},
}


def read(name: str) -> dict[str, Any]:
    """Return the config of a name, with what its files include."""
    names = PAIRS.get(name, [name])
    files = [file for each in names for file in with_includes(CONFIGS / f"{each}.yaml")]
    return merged(files)


def family_of(config: dict[str, Any]) -> TaskFamily:
    arguments = config["data"]["init_args"]
    return FAMILIES[arguments.get("env") or arguments["family"]]


def write_dataset(family: TaskFamily, path: Path) -> None:
    """Write 24 random episodes for each task of a family."""
    description = family.describe(0, ["stage_0", "stage_3", "expert"])
    writer = DatasetWriter(path, replace(description, horizon=HORIZON), {"seed": 0})
    lengths = [HORIZON] * 24
    for task in range(family.num_tasks):
        sizes = (family.observation_size, family.action_size)
        transitions = make_episodes(lengths, HORIZON, *sizes, seed=task)
        writer.write_task(task, transitions, stage=[0] * 8 + [1] * 8 + [2] * 8, length=lengths)
    tasks = family.num_tasks
    writer.commit({"random": np.zeros(tasks), "best_behaviour": np.ones(tasks)})


def needs(family: TaskFamily) -> None:
    """Skip a test whose family needs what is not installed."""
    if family.name == "two_drawer_sawyer":
        pytest.importorskip("metaworld")
        if not use_working_gl():
            pytest.skip("no EGL and no OSMesa on this machine")


def shrink(part: dict[str, Any]) -> None:
    """Give a class of a config arguments that suit a test."""
    part["init_args"] = on_top(part.get("init_args", {}), SMALL[part["class_path"]])


def run(config: dict[str, Any], folder: Path, *overlays: Path) -> Path:
    """Train six steps with the shrunken config; return the run's folder."""
    root = folder / "run"
    if config["data"]["class_path"] == "TaskBuffers":
        write_dataset(family_of(config), folder / "dataset")
        config["data"]["init_args"]["path"] = str(folder / "dataset")
    for part in (config["model"], config["data"], *config["trainer"]["callbacks"]):
        shrink(part)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    files = [argument for path in overlays for argument in ("--config", str(path))]
    cli.main(
        [
            *("fit", "--config", str(folder / "config.yaml"), *files),
            *("--trainer.max_steps=6", "--trainer.val_check_interval=1"),
            *("--trainer.logger=false", f"--trainer.default_root_dir={root}"),
            "--checkpoint.every_n_train_steps=6",
        ]
    )
    return root


@pytest.mark.mujoco
@pytest.mark.parametrize("name", RUNS)
def test_config_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read(name)
    needs(family_of(config))
    if not isinstance(family_of(config), ScriptedFamily):  # whose episodes need their length
        monkeypatch.setattr(type(family_of(config)), "horizon", HORIZON)
    root = run(config, tmp_path)
    checkpoint = torch.load(root / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6
    if config["model"]["class_path"] in ADAPTING:
        assert (root / "results.json").is_file()
        assert (root / "checkpoints" / "best.ckpt").is_file()
    if config["model"]["class_path"] == "ReflectiveExplorer":
        assert [point["step"] for point in results_of(root)["history"]] == [1, 2, 3, 4, 5, 6]
        assert [point["step"] for point in results_of(root / "filter")["history"]] == [1, 2, 3]
        assert (root / "checkpoints" / "best.ckpt").is_file()


def holds(found: Any, wanted: Any) -> bool:
    """Whether ``found`` is what is wanted; of a group of settings, whether it has those wanted."""
    if isinstance(wanted, dict):
        return all(holds(found[name], value) for name, value in wanted.items())
    return bool(found == wanted)


def results_of(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "results.json").read_text())
    return found


@pytest.mark.parametrize("name", CONTROLS)
def test_control_differs_in_one_thing(name: str, tmp_path: Path) -> None:
    config = read("explorer_two_drawer_lite")
    ours = run(config, tmp_path)
    overlay = CONFIGS / f"{name}.yaml"
    assert len(overlay.read_text().splitlines()) == 3
    arguments = [
        *("fit", "--config", str(tmp_path / "config.yaml"), "--config", str(overlay)),
        *("--trainer.max_steps=6", "--trainer.val_check_interval=6", "--trainer.logger=false"),
        f"--trainer.default_root_dir={tmp_path}/control",
    ]
    filter_from = str(ours / "filter" / "checkpoints" / "last.ckpt")
    if name == "explorer_no_cql":
        arguments += [f"--model.init_args.filter_from={filter_from}"]
    cli.main(arguments)
    first, second = (results_of(root)["config"] for root in (ours, tmp_path / "control"))
    wanted = {
        "explorer_no_expl": {"data.exploration": False},
        "explorer_no_cql": {
            "model.losses.conservatism.weight": 0.0,
            "model.filter_from": filter_from,
        },
    }
    assert differences(first, second) == wanted[name]


def differences(first: dict[str, Any], second: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Return the second one's settings that differ, by their dotted names."""
    found = {}
    for name in first:
        if isinstance(first[name], dict):
            found |= differences(first[name], second[name], f"{where}{name}.")
        elif first[name] != second[name]:
            found[f"{where}{name}"] = second[name]
    return found


def test_overlay_for_a_cpu_fits_the_sawyer_s_config(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["explorer_two_drawer_sawyer", "explorer_sawyer_cpu"]
    files = [argument for name in names for argument in ("--config", f"{CONFIGS / name}.yaml")]
    with pytest.raises(SystemExit, match="0"):
        cli.main(["fit", *files, "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    base, overlay = (read(name) for name in names)
    for part in ("model", "data"):
        wanted = on_top(base[part]["init_args"], overlay[part]["init_args"])
        assert holds(printed[part]["init_args"], wanted)


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlay_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = CONFIGS.glob(f"*/{name}.yaml")
    wanted = yaml.safe_load(path.read_text())
    for part in wanted.get("trainer", {}).get("callbacks", []):
        shrink(part)
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump(wanted))
    config = read(BASES.get(name, "quickstart"))
    monkeypatch.setattr(type(family_of(config)), "horizon", HORIZON)
    root = run(config, tmp_path, overlay)
    stored = yaml.safe_load((root / "config.yaml").read_text())
    for part in wanted.get("trainer", {}).get("callbacks", []):
        results = json.loads((root / part["init_args"]["results_file"]).read_text())
        assert holds(results["protocol"], part["init_args"]["protocol"])
    for part in ("model", "data"):
        for key, value in wanted.get(part, {}).get("init_args", {}).items():
            assert holds(stored[part]["init_args"][key], value)


@pytest.mark.parametrize("name", ["cheetah_dir", "cheetah_vel", "ant", "walker", "point_robot"])
@pytest.mark.parametrize("method", ["meta_bc", "multitask_awr"])
def test_baselines_have_the_data_of_macaw(method: str, name: str) -> None:
    macaw = read("quickstart" if name == "point_robot" else f"macaw_{name}")
    baseline = read(f"{method}_{name}")
    different = dict(DATA_OF_THEIR_OWN[method])
    if (method, name) == ("multitask_awr", "point_robot"):
        different["discount"] = 0.65
    assert baseline["data"]["class_path"] == macaw["data"]["class_path"]
    assert baseline["data"]["init_args"] == macaw["data"]["init_args"] | different


@pytest.mark.parametrize("name", RUNS)
def test_sizes_come_from_the_data(name: str) -> None:
    config = read(name)
    arguments = (config["model"].get("init_args") or {}).keys()
    assert not arguments & {*DataSizes.names(), "one_hot_tasks"}


@pytest.mark.parametrize("name", [name for name in RUNS if name.endswith("_per_task")])
def test_training_of_agents_ends_with_their_lifetimes(name: str) -> None:
    config = read(name)
    data = build(LifetimeBuffers, **config["data"]["init_args"])
    assert config["trainer"]["max_steps"] == data.planned_updates


def test_every_run_has_its_own_folder() -> None:
    folders = [read(name)["trainer"]["default_root_dir"] for name in FILES]
    assert folders == [f"runs/{name}" for name in FILES]


def test_defaults_hold_for_every_run() -> None:
    trainer = read("defaults")["trainer"]
    assert trainer["inference_mode"] is False
    assert trainer["num_sanity_val_steps"] == 0
