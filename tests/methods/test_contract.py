"""What every method promises, whatever it computes: one body for all of them.

Methods are found in ``offline_meta_rl.methods``; ``tests/methods/tiny.py`` makes them small.
"""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from offline_meta_rl import cli
from tests import helpers
from tests.helpers import make_dataset
from tests.methods import tiny

every_method = pytest.mark.parametrize("method", tiny.METHODS)
on_task_buffers = pytest.mark.parametrize("method", tiny.ON_TASK_BUFFERS)
pytestmark = [  # about resuming in another folder, without Evaluate; no state is lost by it
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]
PLAIN = (str, int, float, bool, type(None), torch.Tensor, torch.Size, torch.dtype, torch.device)


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.dataset(tmp_path_factory.mktemp("contract"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data_path: Path) -> dict[str, Path]:
    """Folders of one uninterrupted run of each method, with the checkpoint of every step."""
    folders = {}
    for method in tiny.METHODS:
        folders[method] = tmp_path_factory.mktemp(method)
        settings = tiny.config(method, data_path, evaluate=True)
        settings["checkpoint"]["save_top_k"] = -1
        tiny.fit(settings, folders[method])
    return folders


def test_methods_are_found() -> None:
    assert {"Macaw", "SAC", "SAC_per_task"} <= set(tiny.METHODS)
    assert "MetaModule" not in tiny.METHODS


@every_method
def test_training_moves_every_parameter(method: str, runs: dict[str, Path]) -> None:
    first = torch.load(runs[method] / "checkpoints" / "step_1.ckpt", weights_only=True)
    last = tiny.last(runs[method])
    assert last["global_step"] == 10
    names = [name for name, p in build(method).named_parameters() if p.requires_grad]
    moved = [n for n in names if not torch.equal(first["state_dict"][n], last["state_dict"][n])]
    assert moved == names


@every_method
def test_same_seed_gives_the_same_bits_evaluated_or_not(
    method: str, runs: dict[str, Path], data_path: Path, tmp_path: Path
) -> None:
    again = tiny.fit(tiny.config(method, data_path), tmp_path)
    assert tiny.difference(tiny.state(again), tiny.state(tiny.last(runs[method]))) is None
    other = tiny.config(method, data_path, max_steps=1) | {"seed_everything": 6}
    first = torch.load(runs[method] / "checkpoints" / "step_1.ckpt", weights_only=True)
    found = tiny.fit(other, tmp_path / "other")
    assert tiny.difference(found["state_dict"], first["state_dict"]) is not None


@every_method
@pytest.mark.parametrize("step", [4, 6, 9], ids=["validation", "epoch_end", "mid_epoch"])
def test_resumed_from_any_step_equals_uninterrupted(
    method: str, step: int, runs: dict[str, Path], data_path: Path, tmp_path: Path
) -> None:
    checkpoint = runs[method] / "checkpoints" / f"step_{step}.ckpt"
    settings = tiny.config(method, data_path, evaluate=step == 4)
    resumed = tiny.fit(settings, tmp_path, "--ckpt_path", str(checkpoint))
    assert tiny.difference(tiny.state(resumed), tiny.state(tiny.last(runs[method]))) is None


@on_task_buffers
def test_training_does_not_go_on_with_other_data(
    method: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    sizes = {"num_tasks": 7, "observation_size": 2, "action_size": 2}
    other = make_dataset(tmp_path / "other", seed=1, **sizes)
    checkpoint = runs[method] / "checkpoints" / "step_4.ckpt"
    with pytest.raises(ValueError, match=r"trained on data with checksum .*Pass the data it was"):
        tiny.fit(tiny.config(method, other), tmp_path, "--ckpt_path", str(checkpoint))


@every_method
def test_n_steps_and_n_more_equal_2n(
    method: str, runs: dict[str, Path], data_path: Path, tmp_path: Path
) -> None:
    half = tiny.fit(tiny.config(method, data_path, max_steps=5), tmp_path)
    assert half["global_step"] == 5
    path = tmp_path / "checkpoints" / "last.ckpt"
    whole = tiny.fit(tiny.config(method, data_path), tmp_path / "more", "--ckpt_path", str(path))
    assert tiny.difference(tiny.state(whole), tiny.state(tiny.last(runs[method]))) is None


def not_plain(value: Any, where: str = "") -> list[str]:
    """Return where a nested value is no plain container, number, text or tensor."""
    if isinstance(value, dict):
        parts: Any = value.items()
    elif isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        parts = enumerate(value)
    else:
        return [] if type(value) in PLAIN else [f"{where}: {type(value)}"]
    return [found for key, part in parts for found in not_plain(part, f"{where}.{key}")]


@every_method
def test_checkpoint_holds_plain_types(method: str, runs: dict[str, Path]) -> None:
    checkpoint = tiny.last(runs[method])  # read with weights_only=True
    assert not_plain(checkpoint) == []
    assert checkpoint["method"].endswith(f".{tiny.class_name(method)}")
    assert not_plain({"a": [object()]}) == [".a.0: <class 'object'>"]


@every_method
def test_memory_stays_flat(method: str, data_path: Path, tmp_path: Path) -> None:
    settings = tiny.config(method, data_path, max_steps=600, log_every_n_steps=50)
    settings["trainer"] |= {"val_check_interval": 10_000, "callbacks": []}
    settings["data"]["init_args"]["steps_per_epoch"] = 50
    settings["checkpoint"] = {"every_n_train_steps": 50}
    record = {"class_path": "tests.methods.tiny.RecordMemory", "init_args": {"steps": [100, 600]}}
    settings["trainer"]["callbacks"] = [record]
    tiny.write(settings, tmp_path)
    trainer = cli.run(tiny.command(tmp_path)).trainer
    (recorder,) = (c for c in trainer.callbacks if isinstance(c, tiny.RecordMemory))
    before, after = recorder.bytes
    assert after - before < 8 * 2**20


@every_method
def test_nan_stops_the_training_and_leaves_the_last_checkpoint(
    method: str, data_path: Path, tmp_path: Path
) -> None:
    settings = tiny.config(method, data_path)
    poison = {"class_path": "tests.methods.tiny.PoisonAt", "init_args": {"step": 3}}
    settings["trainer"]["callbacks"].append(poison)
    with pytest.raises(
        FloatingPointError, match=r"is nan at outer step 3; first parameter with NaN or inf: \w+"
    ):
        tiny.fit(settings, tmp_path)
    checkpoint = tiny.last(tmp_path)
    assert checkpoint["global_step"] == 2
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


@every_method
def test_what_is_not_finite_is_not_saved(method: str, runs: dict[str, Path]) -> None:
    module = build(method)
    name, parameter = next(iter(module.named_parameters()))
    parameter.data.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match=f"{name} holds NaN or inf .* no checkpoint"):
        module.on_save_checkpoint({})


@every_method
def test_checkpoint_of_another_method_is_refused(
    method: str, runs: dict[str, Path], data_path: Path, tmp_path: Path
) -> None:
    checkpoint = tiny.last(runs[method]) | {"method": "elsewhere.Other"}
    torch.save(checkpoint, tmp_path / "other.ckpt")
    settings, name = tiny.config(method, data_path), tiny.class_name(method)
    with pytest.raises(
        ValueError, match=rf"Expected a checkpoint of .*\.{name}, found one of elsewhere\.Other"
    ):
        tiny.fit(settings, tmp_path, "--ckpt_path", str(tmp_path / "other.ckpt"))


@pytest.mark.parametrize(
    ("method", "name"),
    [(method, name) for method in tiny.METHODS for name in tiny.sizes(method)],
)
def test_sizes_that_do_not_fit_the_data_are_refused(
    method: str, name: str, data_path: Path, tmp_path: Path
) -> None:
    settings = tiny.config(method, data_path)
    right = settings["model"]["init_args"][name]
    settings["model"]["init_args"][name] = [1, 2, 3] if isinstance(right, list) else 3
    with pytest.raises(ValueError, match=rf"built for {name} .*3.?, the data has .* Set --model"):
        tiny.fit(settings, tmp_path)


@every_method
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_inference_mode_is_refused(method: str, stage: str, tmp_path: Path) -> None:
    trainer = lightning.Trainer(
        inference_mode=True,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    with pytest.raises(ValueError, match="inference_mode to be false, found true"):
        getattr(trainer, stage)(build(method), [{}])


@on_task_buffers
def test_validation_inside_fit_has_gradients_in_any_mode(
    method: str, data_path: Path, tmp_path: Path
) -> None:
    settings = tiny.config(method, data_path, inference_mode=True)
    settings["trainer"] |= {"max_steps": 1, "val_check_interval": 1}
    tiny.write(settings, tmp_path)
    metrics = cli.run(tiny.command(tmp_path)).trainer.callback_metrics
    held_out = [value for name, value in metrics.items() if name.startswith("val/")]
    assert held_out
    assert torch.stack(held_out).isfinite().all()


@on_task_buffers
def test_updates_per_batch_changes_nothing_but_speed(
    method: str, runs: dict[str, Path], data_path: Path, tmp_path: Path
) -> None:
    settings = tiny.config(method, data_path)
    settings["data"]["init_args"]["batches"]["updates"] = 5
    settings["trainer"]["val_check_interval"] = 1
    settings["checkpoint"] = {"every_n_train_steps": 10}
    found = tiny.fit(settings, tmp_path)
    for part in ("state_dict", "optimizer_states", "global_step"):
        assert tiny.difference(found[part], tiny.last(runs[method])[part]) is None


def build(method: str) -> Any:
    """Return an untrained module."""
    settings = tiny.config(method, Path())["model"]["init_args"]
    name = tiny.class_name(method)
    (found,) = (c for c in tiny.method_classes() if c.__name__ == name)
    return helpers.build(found, **settings)
