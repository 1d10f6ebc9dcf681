"""Meta-episodes while training and testing: files, numbers, resuming, warnings."""

import json
from pathlib import Path
from typing import Any

import lightning
import pytest

from callbacks.evaluate_exploration import EvaluateExploration
from callbacks.watch_beliefs import WatchBeliefs
from offline_meta_rl import cli
from tests.methods import tiny
from tests.small_module import CountingData, Small

pytestmark = [  # about resuming in another folder, which is the test
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]
EVALUATE = {"meta_episodes": 6, "validation_meta_episodes": 4, "film": 2}
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drawers") / "dataset"


def settings(data_path: Path, **evaluate: Any) -> dict[str, Any]:
    """Return the config of three updates of the filter and three of the policy, on real drawers."""
    found = tiny.config("ReflectiveExplorer", data_path, max_steps=3, val_check_interval=2)
    found["model"]["init_args"] |= {"filter_from": None, "filter_steps": 3}
    found["model"]["init_args"].pop("observation_shape")
    found["data"]["init_args"] |= {
        "env": "two_drawer_lite",
        "path": str(data_path),
        "collection": {"transitions_per_stage": 120},
    }
    found["trainer"]["callbacks"] = [
        {"class_path": "WatchBeliefs", "init_args": {"rows": 2, "images": 5}},
        {"class_path": "EvaluateExploration", "init_args": {**EVALUATE, **evaluate}},
    ]
    found["best"] = {"monitor": "explore/success_after_1"}
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data_path: Path) -> Path:
    folder = tmp_path_factory.mktemp("run")
    tiny.fit(settings(data_path), folder)
    return folder


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_a_run_leaves_what_is_promised(run: Path) -> None:
    found = results(run)
    assert [point["exploration_episodes"] for point in found["points"]] == [0, 1]
    for point in found["points"]:
        assert point["success"]["count"] == 6
        assert set(point["success_by_task"]) == {"0", "1"}
        assert {"opened_any", "nearest_of_opened"} <= set(point)
    assert [point["step"] for point in found["history"]] == [2, 3]
    assert found["protocol"] == {
        "tasks": [0, 1],
        "meta_episodes": 6,
        "num_episodes": 2,
        "trained_episodes": 2,
        "sample_actions": False,
        "seed": 0,
        "diverged": 0,
    }
    assert found["seed"] == 5
    assert found["global_step"] == 3
    assert len(found["dataset_checksum"]) == 32
    assert found["config"]["model"]["filter_steps"] == 3
    assert 0 < found["processor_time"] < 10 * found["wall_time"]
    diagnosis = found["diagnosis"]
    assert 0 <= diagnosis["before_any_reward"]["accuracy"] <= 1
    assert diagnosis["before_any_reward"]["achievable"] == 0.5
    assert found["film"].startswith("explore_film.")
    assert (run / found["film"]).stat().st_size > 0
    for name in ("success", "diagnosis", "filter/probe"):
        assert (run / f"{name}.png").read_bytes().startswith(PNG)


def test_the_filter_is_watched_in_its_own_run(run: Path) -> None:
    pictures = sorted(path.name for path in (run / "filter" / "reconstructions").iterdir())
    assert pictures == ["step_2.png", "step_3.png"]
    assert not (run / "reconstructions").exists()
    found = results(run / "filter")
    assert [point["step"] for point in found["history"]] == [2, 3]
    names = {"episode_0/before_reward", "episode_1/before_reward"}
    assert all(set(point["probe"]) == names for point in found["history"])
    places = ("first", "before_reward", "last")
    every = {f"episode_{episode}/{place}" for episode in range(2) for place in places}
    assert set(found["probe"]) == every | {f"{name}_achievable" for name in every}
    assert found["method"].endswith(".BeliefFilter")
    assert found["seed"] == 5
    assert 0 < found["processor_time"] < 10 * found["wall_time"]
    # The policy's run evaluates with the same filter and says the same of it.
    assert results(run)["diagnosis"]["probe"] == found["probe"]


def test_testing_gives_the_numbers_of_the_training_s_end(run: Path, tmp_path: Path) -> None:
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    cli.run(["test", "--ckpt_path", checkpoint, f"--trainer.default_root_dir={tmp_path}"])
    first, second = results(run), results(tmp_path)
    for key in ("points", "protocol", "global_step", "diagnosis", "dataset_checksum"):
        assert second[key] == first[key], key
    assert second["history"] == first["history"]


def test_evaluation_changes_nothing_and_its_curve_survives_a_resume(
    run: Path, data_path: Path, tmp_path: Path
) -> None:
    plain = settings(data_path)
    plain["trainer"]["callbacks"] = []
    alone = tiny.fit(plain, tmp_path / "alone")
    assert tiny.difference(tiny.state(alone), tiny.state(tiny.last(run))) is None
    half = settings(data_path)
    half["trainer"]["max_steps"] = 2
    tiny.fit(half, tmp_path / "half")
    checkpoint = tmp_path / "half" / "checkpoints" / "last.ckpt"
    tiny.fit(settings(data_path), tmp_path / "half", "--ckpt_path", str(checkpoint))
    first, second = results(run), results(tmp_path / "half")
    for key in ("points", "diagnosis"):
        assert second[key] == first[key], key
    # The evaluation at the end of the first half is the full one.
    assert [point["step"] for point in second["history"]] == [2, 3]


def test_more_episodes_than_trained_on_are_warned_of(data_path: Path, tmp_path: Path) -> None:
    config = settings(data_path, num_episodes=3, film=0)
    config["trainer"] |= {"max_steps": 1, "val_check_interval": 1}
    with pytest.warns(UserWarning, match="of 3 episodes are evaluated, .* trained on 2: beyond"):
        tiny.fit(config, tmp_path)
    assert len(results(tmp_path)["points"]) == 3


@pytest.mark.parametrize("callback", [EvaluateExploration(), WatchBeliefs()])
def test_other_methods_are_refused(callback: lightning.Callback, tmp_path: Path) -> None:
    trainer = lightning.Trainer(
        default_root_dir=tmp_path,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=1,
    )
    with pytest.raises(TypeError, match=f"{type(callback).__name__} needs a method .* Small"):
        trainer.fit(Small(), CountingData())


def test_pictures_go_to_weights_and_biases(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, int] = {}

    def keep(trainer: lightning.Trainer, key: str, path: Path) -> None:
        assert path.read_bytes().startswith(PNG)
        seen[key] = trainer.global_step

    for module in ("watch_beliefs", "evaluate_exploration"):
        monkeypatch.setattr(f"callbacks.{module}.to_wandb", keep)
    tiny.fit(settings(data_path, film=0), tmp_path)
    assert seen == {
        "probe/figure": 3,
        "filter/reconstructions": 3,
        "explore/success_figure": 3,
        "explore/diagnosis_figure": 3,
    }
