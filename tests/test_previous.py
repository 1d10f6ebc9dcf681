"""Configs and checkpoints of earlier versions load, or are refused by the new names."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from offline_meta_rl import cli
from offline_meta_rl.renamed import check_names, options

CONFIG = Path(__file__).parent / "previous" / "multitask_awr_walker.yaml"
"""What ``lightning fit --print_config`` printed before settings were in groups."""


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Return the config that a command would run with."""
    with pytest.raises(SystemExit, match="0"):
        cli.run([*arguments, "--print_config"])
    found: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return found


def test_the_config_in_an_old_checkpoint_gets_todays_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "old.ckpt"
    torch.save({"config": CONFIG.read_text()}, checkpoint)
    found = printed(["test", "--ckpt_path", str(checkpoint)], capsys)
    data = found["data"]["init_args"]
    assert data["batches"] == {
        "tasks": 5,
        "inner_size": 32,
        "outer_size": 256,
        "disjoint": True,
        "contiguous": False,
        "stride": 3,
        "inner_slice": ["stage_3", "expert"],
        "outer_slice": ["expert"],
        "updates": 2,
    }
    assert data["storage"] == {
        "device": "auto",
        "sampling": "chunks",
        "chunk_size": 64,
        "chunks_per_task": 16,
        "prefetch": None,
    }
    assert data["collection"] == {
        "seed": 2,
        "task_seed": 1,
        "transitions_per_stage": 8000,
        "untrained_episodes": 3,
    }
    (evaluate,) = found["trainer"]["callbacks"]
    assert evaluate["init_args"]["protocol"] == {
        "split": "half",
        "tasks": "test",
        "context_source": "own",
        "context_size": 256,
        "context_slice": None,
        "adaptation_steps": [20, 1, 5],
        "episodes": 10,
        "stochastic": False,
        "seed": 4,
    }
    assert set(evaluate["init_args"]) == {
        *("protocol", "name", "at_start", "num_threads", "video", "results_file")
    }


def test_an_old_config_is_refused_by_one_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="have new names") as caught:
        cli.run(["fit", "--config", str(CONFIG)])
    for renaming in (
        "data.inner_batch_size is data.batches.inner_size now",
        "data.sampling is data.storage.sampling now",
        "data.collect_seed is data.collection.seed now",
        "Evaluate.episodes is Evaluate.protocol.episodes now",
    ):
        assert renaming in str(caught.value)
    assert str(CONFIG) in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--data.tasks_per_batch=3", "data.tasks_per_batch is data.batches.tasks now"),
        (
            "--data.init_args.inner_slice.size=8",
            "data.inner_slice.size is data.batches.inner_slice.size now",
        ),
    ],
)
def test_old_options_are_refused(argument: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cli.run(["fit", "--data", "TaskBuffers", argument])


def test_settings_of_unknown_classes_are_left_alone() -> None:
    config = {"data": {"init_args": {"stride": 2}}, "trainer": {"callbacks": {"episodes": 2}}}
    check_names(config, "a file", {})
    assert options(["--data.stride", "2", "--trainer.max_steps=3"]) == {
        "data": {"init_args": {"stride": None}}
    }
