"""The two stages of the Reflective Explorer: what each learns, beliefs between them, resuming."""

import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import offline_meta_rl
from callbacks.interrupt import Interrupted
from datamodules.meta_trajectories import MetaTrajectories
from offline_meta_rl import cli
from offline_meta_rl.common.settings import arguments_of
from offline_meta_rl.methods.reflective_explorer import FILTER_CHECKPOINT, ReflectiveExplorer
from tests.image_data import make_image_dataset
from tests.methods import tiny

pytestmark = [  # about resuming in another folder, which is the test
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]
METHOD = "ReflectiveExplorer"
FILTER_STEPS = 5


def settings(data_path: Path, **trainer: Any) -> dict[str, Any]:
    """Return the config of five updates of a filter of its own, and ten of the policy."""
    found = tiny.config(METHOD, data_path, **trainer)
    found["model"]["init_args"] |= {"filter_from": None, "filter_steps": FILTER_STEPS}
    found["checkpoint"]["save_top_k"] = -1
    return found


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.dataset(tmp_path_factory.mktemp("explorer"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data_path: Path) -> Path:
    """A run of both stages; every checkpoint is kept."""
    folder = tmp_path_factory.mktemp("run")
    tiny.fit(settings(data_path), folder)
    return folder


def checkpoint(run: Path, step: int) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(run / "checkpoints" / f"step_{step}.ckpt", weights_only=True)
    return found


def changed(first: Mapping[str, Any], second: Mapping[str, Any]) -> set[str]:
    """Return which parts of the explorer differ."""
    names = (name for name in first if not torch.equal(first[name], second[name]))
    return {".".join(name.split(".")[:2]) for name in names}


def test_each_stage_trains_its_own_part(run: Path) -> None:
    filtering = checkpoint(run / "filter", 1), tiny.last(run / "filter")
    assert filtering[1]["global_step"] == FILTER_STEPS
    assert filtering[1]["method"].endswith(".BeliefFilter")
    assert changed(*(each["state_dict"] for each in filtering))
    first, last = checkpoint(run, 1), tiny.last(run)
    assert last["global_step"] == 10
    policy = changed(first["state_dict"], last["state_dict"])
    assert policy == {"agent.actor", "agent.critics", "agent.targets"}
    for name, value in filtering[1]["state_dict"].items():
        assert torch.equal(last["state_dict"][name], value), name


def test_the_filter_s_run_is_what_it_is_alone(run: Path, data_path: Path, tmp_path: Path) -> None:
    own = tiny.config("BeliefFilter", data_path, max_steps=FILTER_STEPS)
    found = tiny.fit(own, tmp_path)
    assert tiny.difference(tiny.state(found), tiny.state(tiny.last(run / "filter"))) is None


def test_a_trained_filter_is_not_trained_again(run: Path, data_path: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "filter", tmp_path / "filter")
    before = (tmp_path / FILTER_CHECKPOINT).stat().st_mtime_ns
    (beliefs,) = (tmp_path / "filter" / "beliefs").glob("*.pt")
    computed = beliefs.stat().st_mtime_ns
    moved = settings(data_path)
    moved["model"]["init_args"]["losses"]["conservatism"]["weight"] = 0.0  # of the policy alone
    tiny.fit(moved, tmp_path)
    assert (tmp_path / FILTER_CHECKPOINT).stat().st_mtime_ns == before
    assert beliefs.stat().st_mtime_ns == computed
    assert tiny.last(tmp_path)["global_step"] == 10


@pytest.mark.parametrize(
    ("change", "other"),
    [
        ({"model": {"filter": {"reward_std": 0.3}}}, "model.filter.reward_std is 0.3"),
        ({"model": {"filter_steps": 4}}, "trainer.max_steps is 4"),
        ({"data": {"seed": 1}}, "data.seed is 1"),
    ],
)
def test_a_filter_with_other_settings_is_trained_anew(
    change: dict[str, Any],
    other: str,
    run: Path,
    data_path: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(run / "filter", tmp_path / "filter")
    wanted = settings(data_path)
    for part, values in change.items():
        arguments = wanted[part]["init_args"]
        for name, value in values.items():
            merged = {**arguments[name], **value} if isinstance(value, dict) else value
            arguments[name] = merged
    tiny.fit(wanted, tmp_path)
    assert other in caplog.text
    found, theirs = (tiny.last(folder / "filter")["state_dict"] for folder in (tmp_path, run))
    assert tiny.difference(found, theirs) is not None


def test_a_filter_of_other_data_is_refused(run: Path, tmp_path: Path) -> None:
    data_path = tiny.dataset(tmp_path)
    wanted = settings(data_path)
    tiny.fit(wanted, tmp_path / "run")
    shutil.rmtree(tmp_path / "images")
    make_image_dataset(tmp_path / "images", length=(6, 4, 5, 6), seed=9)
    with pytest.raises(ValueError, match=r"trained on data with checksum .*Pass the data it was"):
        tiny.fit(wanted, tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_filter_goes_on_with_the_same_command(
    number: signal.Signals, run: Path, data_path: Path, tmp_path: Path
) -> None:
    cut = settings(data_path)
    sender = {"step": 3, "number": int(number), "place": "before"}
    cut["trainer"]["callbacks"] = [
        {"class_path": "tests.methods.tiny.SignalAt", "init_args": sender}
    ]
    tiny.write(cut, tmp_path)
    with pytest.raises(
        Interrupted, match=r"after step 3 of the filter.*\n *lightning fit "
    ) as told:
        cli.run(tiny.command(tmp_path))
    assert str(tmp_path / "given.yaml") in str(told.value)  # the same command
    assert told.value.signal_number == number
    saved = tmp_path / "filter" / "checkpoints" / "interrupted.ckpt"
    assert torch.load(saved, weights_only=True)["global_step"] == 3
    assert not (tmp_path / "checkpoints").exists()
    found = tiny.fit(settings(data_path), tmp_path)
    for folder in ("filter", "."):
        again, whole = (tiny.state(tiny.last(root / folder)) for root in (tmp_path, run))
        assert tiny.difference(again, whole) is None, folder
    assert found["global_step"] == 10


@pytest.mark.parametrize("step", [1, 6])
def test_a_policy_is_resumed_where_no_filter_is(
    step: int, run: Path, data_path: Path, tmp_path: Path
) -> None:
    path = run / "checkpoints" / f"step_{step}.ckpt"
    found = tiny.fit(settings(data_path), tmp_path, "--ckpt_path", str(path))
    assert tiny.difference(tiny.state(found), tiny.state(tiny.last(run))) is None
    assert not (tmp_path / "filter" / "checkpoints").exists()


def restored(run: Path, data_path: Path) -> tuple[ReflectiveExplorer, MetaTrajectories]:
    """Return the trained module and its data."""
    module = offline_meta_rl.load(run / "checkpoints" / "last.ckpt", method=METHOD)
    assert isinstance(module, ReflectiveExplorer)
    given = settings(data_path)["data"]["init_args"]
    data = MetaTrajectories(**arguments_of(MetaTrajectories, given))
    data.setup("validate")
    return module, data


def test_stepping_through_a_meta_trajectory_gives_its_beliefs(run: Path, data_path: Path) -> None:
    module, data = restored(run, data_path)
    batch = data.held_out_item()["held_out"]
    whole = batch[batch["mask"].all(dim=1)]
    assert len(whole)
    explorer = module.explorer
    noise = torch.randn(*whole["mask"].shape, explorer.noise_size)
    with torch.no_grad():
        expected = module.filter.beliefs(whole, noise)
    state = explorer.begin(len(whole))
    for step in range(whole["mask"].shape[1]):
        parts = (whole[name][:, step] for name in ("observation", "action", "reward"))
        state, belief = explorer.observe(state, *parts, noise[:, step])
        torch.testing.assert_close(belief, expected[:, step], rtol=1e-4, atol=1e-5)
        action = explorer.act(belief)
        standardised = (belief - module.mean) / module.spread
        assert torch.equal(action, module.agent.act(standardised))
        assert not torch.equal(action, explorer.act(belief, torch.ones_like(action)))


def test_the_beliefs_are_standardised_as_in_training(
    run: Path, data_path: Path, tmp_path: Path
) -> None:
    module, data = restored(run, data_path)
    mean, spread = data.serve_beliefs(module.filter, tmp_path)
    assert torch.equal(module.mean, mean)
    assert torch.equal(module.spread, spread)


@pytest.mark.parametrize("source", [FILTER_CHECKPOINT, Path("checkpoints") / "last.ckpt"])
def test_another_run_s_filter_and_beliefs_are_used(
    source: Path, run: Path, data_path: Path, tmp_path: Path
) -> None:
    other = settings(data_path)
    other["model"]["init_args"]["filter_from"] = str(run / source)
    other["model"]["init_args"]["losses"]["conservatism"]["weight"] = 0.0
    found = tiny.fit(other, tmp_path)
    theirs = tiny.last(run)["state_dict"]
    assert found["global_step"] == 10
    same = {"filter", "mean", "spread"}
    for name, value in found["state_dict"].items():
        assert torch.equal(value, theirs[name]) == (name.split(".")[0] in same), name
    assert not (tmp_path / "filter").exists()
    half = {**other, "trainer": {**other["trainer"], "max_steps": 7}}
    tiny.fit(half, tmp_path / "half")
    path = tmp_path / "half" / "checkpoints" / "last.ckpt"
    resumed = tiny.fit(other, tmp_path / "half", "--ckpt_path", str(path))
    assert tiny.difference(tiny.state(resumed), tiny.state(found)) is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"filter_from": "nowhere.ckpt"}, FileNotFoundError, "no checkpoint at nowhere.ckpt"),
        (
            {"filter": {**tiny.FILTER, "image_size": 7}},
            ValueError,
            r"has other sizes: decoder.* expected .* the same --model.filter",
        ),
    ],
)
def test_a_filter_that_cannot_be_used(
    change: dict[str, Any],
    error: type[Exception],
    message: str,
    run: Path,
    data_path: Path,
    tmp_path: Path,
) -> None:
    other = settings(data_path)
    other["model"]["init_args"] |= {"filter_from": str(run / FILTER_CHECKPOINT), **change}
    with pytest.raises(error, match=message):
        tiny.fit(other, tmp_path)


def test_a_filter_that_is_not_trained_yet(run: Path, data_path: Path, tmp_path: Path) -> None:
    other = settings(data_path)
    path = run / "filter" / "checkpoints" / "step_4.ckpt"
    other["model"]["init_args"]["filter_from"] = str(path)
    with pytest.raises(ValueError, match="has had 4 of 5 updates"):
        tiny.fit(other, tmp_path)
    content = {"method": "other.Method", "state_dict": {"other": torch.ones(1)}}
    torch.save(content, tmp_path / "other.ckpt")
    other["model"]["init_args"]["filter_from"] = str(tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="expected a checkpoint of a BeliefFilter or a Reflective"):
        tiny.fit(other, tmp_path)


@pytest.mark.parametrize(
    "data",
    [{"updates_per_batch": 2}, {"beliefs": {"updates_per_batch": 3}}],
    ids=["filter", "policy"],
)
def test_runs_that_end_within_a_batch_are_refused(
    data: dict[str, Any], data_path: Path, tmp_path: Path
) -> None:
    uneven = settings(data_path, val_check_interval=1)
    arguments = uneven["data"]["init_args"]
    for name, value in data.items():
        arguments[name] = {**arguments[name], **value} if isinstance(value, dict) else value
    uneven["checkpoint"] = {"every_n_train_steps": 6}
    with pytest.raises(
        ValueError, match=r"max_steps: expected a multiple of the \d updates of a batch"
    ):
        tiny.fit(uneven, tmp_path)


def test_several_updates_in_a_batch_change_nothing(
    run: Path, data_path: Path, tmp_path: Path
) -> None:
    several = settings(data_path, val_check_interval=1)
    arguments = several["data"]["init_args"]
    arguments |= {
        "updates_per_batch": 5,
        "beliefs": {**arguments["beliefs"], "updates_per_batch": 5},
    }
    several["checkpoint"]["every_n_train_steps"] = 5
    found = tiny.fit(several, tmp_path)
    for part in ("state_dict", "optimizer_states", "global_step"):
        assert tiny.difference(found[part], tiny.last(run)[part]) is None


def test_learning_rates_fall_in_each_stage(data_path: Path, tmp_path: Path) -> None:
    falling = settings(data_path)
    falling["model"]["init_args"] |= {
        "filter_learning": {"final_learning_rate": 0.5},
        "learning": {"final_learning_rate": 0.5},
    }
    tiny.fit(falling, tmp_path)
    assert rates(tmp_path / "filter", 1) == pytest.approx([0.9e-4])  # a fifth of the way to half
    assert rates(tmp_path / "filter", 5) == pytest.approx([0.5e-4])
    assert rates(tmp_path, 2) == pytest.approx([0.9e-4, 2.7e-4])
    assert rates(tmp_path, 10) == pytest.approx([0.5e-4, 1.5e-4])


def rates(run: Path, step: int) -> list[float]:
    """Return the learning rates of a checkpoint's parameter groups."""
    (state,) = checkpoint(run, step)["optimizer_states"]
    return [group["lr"] for group in state["param_groups"]]


def test_validation_measures_the_filter(data_path: Path, tmp_path: Path) -> None:
    tiny.write(tiny.config("BeliefFilter", data_path, max_steps=4), tmp_path)
    metrics = cli.run(tiny.command(tmp_path)).trainer.callback_metrics
    terms = {"loss", "elbo", "image", "reward", "kl", "prior_reward"}
    assert {f"val/{name}" for name in terms} <= set(metrics)
    assert {"train/loss", "train/elbo", "train/kl"} <= set(metrics)
    assert "train/critic" not in metrics


def test_an_explorer_does_not_adapt(run: Path, data_path: Path) -> None:
    module, data = restored(run, data_path)
    with pytest.raises(TypeError, match="ReflectiveExplorer does not adapt to a context"):
        module.adapt_tasks(data.held_out_item()["fit"])
