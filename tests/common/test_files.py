"""The lock on a path, and JSON files: what other processes may rely on."""

import json
import logging
import multiprocessing
import threading
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest

from offline_meta_rl.common.files import path_lock, plain, read_json, write_json


def hold(path: Path, held: Event) -> None:
    """Take the lock and keep it until this process is killed."""
    with path_lock(path):
        held.set()
        threading.Event().wait()


def test_a_killed_process_gives_its_lock_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "folder" / "dataset"
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold, args=(path, held))
    process.start()
    assert held.wait(60)
    entered = threading.Event()

    def enter() -> None:
        with path_lock(path):
            entered.set()

    with caplog.at_level(logging.WARNING):
        waiting = threading.Thread(target=enter)
        waiting.start()
        assert not entered.wait(0.3)
        process.kill()
        waiting.join(60)
    assert entered.is_set()
    assert "Waiting for another process or thread that prepares" in caplog.text
    assert [file.name for file in path.parent.iterdir()] == ["dataset.lock"]


def test_an_error_gives_the_lock_back(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no luck"), path_lock(tmp_path / "a"):
        raise RuntimeError("no luck")
    entered = []

    def enter() -> None:
        with path_lock(tmp_path / "a"):
            entered.append(True)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(60)
    assert entered == [True]


def test_one_path_has_one_lock_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with path_lock("a"), path_lock(tmp_path / "a"):
        assert (tmp_path / "a.lock").is_file()


def test_json_files_hold_plain_types(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_json(path, {"x": np.float32(0.5), 3: (np.arange(2), {"y": float("nan")}), "p": path})
    assert json.loads(path.read_text()) == {"x": 0.5, "3": [[0, 1], {"y": None}], "p": str(path)}
    assert read_json(path)["x"] == 0.5
    assert read_json(tmp_path / "nowhere.json") == {}
    assert plain({float("inf"), 1.5}) in ([None, 1.5], [1.5, None])


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", r"a\.json is not JSON .*Delete it or restore it"), ("[1]", "expected a JSON object")],
)
def test_other_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "a.json")
