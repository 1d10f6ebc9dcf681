"""The two stages of the Reflective Explorer: what each learns, the cache, another run's filter."""

from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.meta_trajectories import MetaTrajectories
from offline_meta_rl import cli
from offline_meta_rl.methods.reflective_explorer import ReflectiveExplorer
from tests.methods import tiny

METHOD = "ReflectiveExplorer"


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.dataset(tmp_path_factory.mktemp("explorer"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data_path: Path) -> Path:
    """A run of five updates of the filter and five of the policy; every checkpoint is kept."""
    settings = tiny.config(METHOD, data_path)
    settings["checkpoint"]["save_top_k"] = -1
    folder = tmp_path_factory.mktemp("run")
    tiny.fit(settings, folder)
    return folder


def checkpoint(run: Path, step: int) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(run / "checkpoints" / f"step_{step}.ckpt", weights_only=True)
    return found["state_dict"]


def changed(first: dict[str, Any], second: dict[str, Any]) -> set[str]:
    """Return which parts of the explorer differ."""
    names = (name for name in first if not torch.equal(first[name], second[name]))
    return {".".join(name.split(".")[1:3]) for name in names}


def test_each_stage_trains_its_own_part(run: Path) -> None:
    filtering = changed(checkpoint(run, 1), checkpoint(run, 4))
    assert filtering
    assert all(part.startswith("filter.") for part in filtering)
    policy = changed(checkpoint(run, 5), checkpoint(run, 9))
    assert policy == {"agent.actor", "agent.critics", "agent.targets"}
    assert {"mean", "spread"} <= changed(checkpoint(run, 4), checkpoint(run, 5))


def restored(run: Path, data_path: Path) -> tuple[ReflectiveExplorer, MetaTrajectories]:
    """Return the trained module and its data."""
    module = ReflectiveExplorer(**tiny.config(METHOD, data_path)["model"]["init_args"])
    module.load_state_dict(tiny.last(run)["state_dict"])
    data = MetaTrajectories(**tiny.config(METHOD, data_path)["data"]["init_args"])
    data.setup("validate")
    return module, data


def test_the_policy_sees_beliefs_of_mean_zero_and_spread_one(run: Path, data_path: Path) -> None:
    module, data = restored(run, data_path)
    served: list[Any] = []
    data.serve_beliefs = served.append  # type: ignore[method-assign]
    torch.manual_seed(5)  # of the run
    module._trainer = type("Trainer", (), {"datamodule": data, "global_step": 5})()  # type: ignore[assignment]
    mean, spread = module.explorer.mean.clone(), module.explorer.spread.clone()
    module.cache_beliefs()
    assert torch.equal(module.explorer.mean, mean)  # the same beliefs as in the run
    assert torch.equal(module.explorer.spread, spread)
    (cache,) = served
    assert cache.batch_size == (20,)
    valid = cache["belief"][cache["mask"]]
    torch.testing.assert_close(valid.mean(dim=0), torch.zeros_like(mean), atol=1e-4, rtol=0)
    torch.testing.assert_close(valid.std(dim=0), torch.ones_like(mean), atol=1e-3, rtol=0)


def test_stepping_through_a_meta_trajectory_gives_its_beliefs(run: Path, data_path: Path) -> None:
    module, data = restored(run, data_path)
    batch = next(iter(data.val_dataloader()))["held_out"]
    whole = batch[batch["mask"].all(dim=1)]
    assert len(whole)
    explorer, generator = module.explorer, torch.Generator().manual_seed(2)
    expected = explorer.beliefs(whole, torch.Generator().manual_seed(2))
    noise = explorer.noise_for(whole, generator)
    state = explorer.begin(len(whole))
    for step in range(whole["mask"].shape[1]):
        parts = (whole[name][:, step] for name in ("observation", "action", "reward"))
        state, belief = explorer.observe(state, *parts, noise[:, step])
        torch.testing.assert_close(belief, expected[:, step], rtol=1e-4, atol=1e-5)
        action = explorer.act(belief)
        assert torch.equal(action, explorer.agent.act(explorer.standardise(belief)))
        assert not torch.equal(action, explorer.act(belief, torch.ones_like(action)))


def with_filter_of(run: Path, data_path: Path, **model: Any) -> dict[str, Any]:
    settings = tiny.config(METHOD, data_path)
    path = run / "checkpoints" / "last.ckpt"
    settings["model"]["init_args"] |= {"filter_from": str(path), **model}
    return settings


def test_another_run_s_filter_and_beliefs_are_used(
    run: Path, data_path: Path, tmp_path: Path
) -> None:
    settings = with_filter_of(run, data_path, conservative_weight=0.0)
    found = tiny.fit(settings, tmp_path)
    theirs = tiny.last(run)["state_dict"]
    assert found["global_step"] == 5  # as many updates of the policy as there
    same = {"filter", "mean", "spread"}
    for name, value in found["state_dict"].items():
        part = name.split(".")[1]
        assert torch.equal(value, theirs[name]) == (part in same), name
    half = {**settings, "trainer": {**settings["trainer"], "max_steps": 7}}
    tiny.fit(half, tmp_path / "half")
    resumed = tiny.fit(
        settings, tmp_path / "half", "--ckpt_path", str(tmp_path / "half/checkpoints/last.ckpt")
    )
    assert tiny.difference(tiny.state(resumed), tiny.state(found)) is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"filter_from": "nowhere.ckpt"}, FileNotFoundError, "no checkpoint at nowhere.ckpt"),
        (
            {"image_size": 7},
            ValueError,
            r"has other sizes: decoder.* expected .* the same settings",
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
    with pytest.raises(error, match=message):
        tiny.fit(with_filter_of(run, data_path, **change), tmp_path)


def test_a_filter_that_is_not_trained_yet(run: Path, data_path: Path, tmp_path: Path) -> None:
    path = run / "checkpoints" / "step_4.ckpt"
    with pytest.raises(ValueError, match="has had 4 of 5 updates"):
        tiny.fit(with_filter_of(run, data_path, filter_from=str(path)), tmp_path)
    torch.save({"state_dict": {"other": torch.ones(1)}}, tmp_path / "other.ckpt")
    settings = with_filter_of(run, data_path, filter_from=str(tmp_path / "other.ckpt"))
    with pytest.raises(ValueError, match="expected a checkpoint of a Reflective Explorer"):
        tiny.fit(settings, tmp_path)


def test_stages_that_end_within_a_batch_are_refused(data_path: Path, tmp_path: Path) -> None:
    settings = tiny.config(METHOD, data_path, val_check_interval=1)
    settings["data"]["init_args"]["policy_updates_per_batch"] = 2
    settings["checkpoint"]["every_n_train_steps"] = 2
    with pytest.raises(ValueError, match="filter_steps: expected a multiple of policy_updates"):
        tiny.fit(settings, tmp_path)


def test_several_updates_in_a_batch_change_nothing(
    run: Path, data_path: Path, tmp_path: Path
) -> None:
    settings = tiny.config(METHOD, data_path, val_check_interval=1)
    settings["data"]["init_args"] |= {"updates_per_batch": 5, "policy_updates_per_batch": 5}
    settings["checkpoint"]["every_n_train_steps"] = 5
    found = tiny.fit(settings, tmp_path)
    for part in ("state_dict", "optimizer_states", "global_step"):
        assert tiny.difference(found[part], tiny.last(run)[part]) is None


def test_learning_rates_of_the_stages(run: Path) -> None:
    groups = {step: rates(run, step) for step in (1, 5, 9)}
    assert groups[1][0] == pytest.approx(0.9e-4)  # a fifth of the way to half
    assert groups[5][0] == groups[9][0] == pytest.approx(0.5e-4)
    assert groups[1][1:] == groups[9][1:] == [1e-4, 3e-4]


def test_the_policy_s_learning_rates_fall_in_its_own_stage(data_path: Path, tmp_path: Path) -> None:
    settings = tiny.config(METHOD, data_path)
    settings["checkpoint"]["save_top_k"] = -1
    settings["model"]["init_args"]["final_policy_learning_rate"] = 0.5
    tiny.fit(settings, tmp_path)
    groups = {step: rates(tmp_path, step) for step in (5, 9)}
    assert groups[5] == pytest.approx([0.5e-4, 1e-4, 3e-4])
    assert groups[9] == pytest.approx([0.5e-4, 0.6e-4, 1.8e-4])  # four fifths of the way to half


def rates(run: Path, step: int) -> list[float]:
    """Return the learning rates of filter, actor and critics after an update."""
    path = run / "checkpoints" / f"step_{step}.ckpt"
    (state,) = torch.load(path, weights_only=True)["optimizer_states"]
    return [group["lr"] for group in state["param_groups"]]


def test_validation_measures_the_filter(data_path: Path, tmp_path: Path) -> None:
    settings = tiny.config(METHOD, data_path, max_steps=4)
    tiny.write(settings, tmp_path)
    metrics = cli.run(tiny.command(tmp_path)).trainer.callback_metrics
    assert {"val/loss", "val/elbo", "val/image", "val/reward", "val/kl", "val/prior_reward"} <= set(
        metrics
    )
    assert {"train/loss", "train/elbo", "train/kl"} <= set(metrics)
    assert "train/critic" not in metrics
