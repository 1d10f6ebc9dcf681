"""Runs are skipped, continued, named and locked as promised; a killed experiment ends the same."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pytest
import torch
import yaml

from offline_meta_rl import cli
from offline_meta_rl.experiments.command import experiment_command
from offline_meta_rl.experiments.plan import Run, plan
from offline_meta_rl.experiments.reading import load_experiment
from offline_meta_rl.experiments.runner import Runner, Worker
from offline_meta_rl.experiments.states import (
    State,
    begin,
    end,
    measured_speeds,
    state_of,
    try_lock,
)
from offline_meta_rl.reports import results
from tests.experiments.sample import finish, plan_of, result, scores_of, write_experiment
from tests.methods import tiny

ROOT = Path(__file__).resolve().parents[2]


class Launched:
    """Stands for the processes: notes their arguments, leaves what a training leaves.

    Args:
        runs: of the plan.
        codes: name of a run -> exit codes of its processes, 0 from then on.
    """

    def __init__(self, runs: Sequence[Run], codes: Mapping[str, Sequence[int]] | None = None):
        self.runs = {str(run.folder): run for run in runs}
        self.codes = {name: list(values) for name, values in (codes or {}).items()}
        self.calls: list[tuple[str, list[str], Mapping[str, str]]] = []

    def __call__(
        self, arguments: Sequence[str], variables: Mapping[str, str], log: IO[str], kept: Any
    ) -> int:
        folder = next(f for f in self.runs if any(f in part for part in arguments))
        run = self.runs[folder]
        self.calls.append((run.name, list(arguments), variables))
        checkpoints = run.folder / "checkpoints"
        checkpoints.mkdir(exist_ok=True)
        (checkpoints / "last.ckpt").write_text("weights")
        waiting = self.codes.get(run.name, [])
        code = waiting.pop(0) if waiting else 0
        if code:
            log.write("Traceback\nValueError: the data is bad\n")
            return code
        if arguments[0] == "fit":
            (run.folder / "results.json").write_text(json.dumps(result(run, scores_of(run))))
        else:
            (run.folder / "more.json").write_text("{}")
        return 0


def go(runs: list[Run], launched: Launched, **options: Any) -> tuple[bool, str]:
    """Run a plan on two workers; return whether all is finished, and what was said."""
    said: list[str] = []
    places = [Worker(()), Worker(())]
    done = Runner(runs, places, launch=launched, say=said.append, **options).run()
    return done, "\n".join(said)


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return plan_of(write_experiment(tmp_path), tmp_path, families=["robot"], seeds=[0, 1])


def test_everything_runs_once(runs: list[Run]) -> None:
    launched = Launched(runs)
    done, said = go(runs, launched)
    assert done
    assert sorted(name for name, *_ in launched.calls) == sorted(run.name for run in runs)
    assert "4 of 4 runs are finished" in said
    assert {state_of(run) for run in runs} == {State.FINISHED}
    variables = {name: v for name, _, v in launched.calls}
    assert variables["robot/ours/seed_1"]["WANDB_RUN_GROUP"] == "small/robot/ours"
    assert len({v["WANDB_RUN_ID"] for v in variables.values()}) == 4
    assert {v["WANDB_RESUME"] for v in variables.values()} == {"allow"}
    assert go(runs, launched)[0]
    assert len(launched.calls) == 4  # finished runs are left alone


def test_a_bar_is_told_of_every_run_that_is_over(runs: list[Run]) -> None:
    ends: list[int] = []
    codes = {runs[0].name: [1], runs[1].name: [-9]}
    go(runs, Launched(runs, codes), ended=lambda: ends.append(1))
    assert len(ends) == 4
    go(runs, Launched(runs), ended=lambda: ends.append(1))
    assert len(ends) == 5  # what failed is left alone, what was interrupted is over now


@pytest.mark.parametrize("code", [-9, -15, 143])
def test_interrupted_runs_continue_from_their_last_checkpoint(runs: list[Run], code: int) -> None:
    launched = Launched(runs, {"robot/ours/seed_0": [code]})
    done, said = go(runs, launched)
    assert not done
    assert "robot/ours/seed_0: interrupted" in said
    assert state_of(runs[0]) == State.INTERRUPTED
    done, _ = go(runs, launched)
    assert done
    first, second = (call for call in launched.calls if call[0] == "robot/ours/seed_0")
    last = str(runs[0].folder / "checkpoints" / "last.ckpt")
    assert "--ckpt_path" not in first[1]
    assert second[1] == [*first[1], "--ckpt_path", last]
    assert second[2]["WANDB_RUN_ID"] == first[2]["WANDB_RUN_ID"]


def test_the_newest_checkpoint_is_taken(runs: list[Run]) -> None:
    folder = runs[0].folder / "checkpoints"
    folder.mkdir(parents=True)
    for age, name in ((20, "last.ckpt"), (10, "interrupted.ckpt")):
        (folder / name).write_text("")
        os.utime(folder / name, (1e9 - age, 1e9 - age))
    assert runs[0].checkpoint() == folder / "interrupted.ckpt"
    os.utime(folder / "last.ckpt")
    assert runs[0].checkpoint() == folder / "last.ckpt"


def test_failed_runs_are_named_and_tried_again_on_demand(runs: list[Run]) -> None:
    launched = Launched(runs, {"robot/theirs/seed_1": [1, 1]})
    done, said = go(runs, launched)
    assert not done
    assert "robot/theirs/seed_1 failed" in said
    assert "ValueError: the data is bad" in said
    assert "3 of 4 runs are finished" in said
    assert not go(runs, launched)[0]
    assert len(launched.calls) == 4  # not tried again
    assert not go(runs, launched, retry_failed=True)[0]
    assert go(runs, launched, retry_failed=True)[0]
    assert len(launched.calls) == 6


@pytest.mark.parametrize("step", [None, 0, 4])
def test_a_process_that_leaves_no_final_result_has_failed(
    runs: list[Run], step: int | None
) -> None:
    class TooEarly(Launched):
        def __call__(self, *given: Any) -> int:
            super().__call__(*given)
            run = next(iter(self.runs.values()))
            path = run.folder / "results.json"
            path.unlink()
            if step is not None:
                path.write_text(json.dumps(result(run, scores_of(run), global_step=step)))
            return 0

    done, said = go(runs[:1], TooEarly(runs[:1]))
    assert not done
    assert "Expected results and last.ckpt of step 8 in" in said
    assert state_of(runs[0]) == State.FAILED


def test_other_settings_are_refused(runs: list[Run], tmp_path: Path) -> None:
    go(runs, Launched(runs))
    changed = plan_of(
        write_experiment(tmp_path / "again"), tmp_path, seeds=[0], overrides={"y": 5}
    )[:1]
    with pytest.raises(ValueError, match=r"begun with other settings \(then --y=null; now --y=5\)"):
        Runner(changed, [Worker(())])
    runs[0].configs[0].write_text("model: {class_path: Macaw, init_args: {width: 3}}")
    with pytest.raises(ValueError, match=r"changed configs: ours_robot\.yaml"):
        Runner(runs, [Worker(())])


def test_a_process_that_only_looks_is_waited_for(
    runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    looking, also = (try_lock(runs[0].folder, shared=True) for _ in range(2))
    assert looking is not None
    assert also is not None
    also.close()
    monkeypatch.setattr(time, "sleep", lambda _: looking.close())
    done, said = go(runs[:1], Launched(runs[:1]))
    assert done
    assert "another process" not in said


def test_a_run_belongs_to_one_process(runs: list[Run]) -> None:
    begin(runs[0])
    lock = try_lock(runs[0].folder)
    assert lock is not None
    assert state_of(runs[0]) == State.RUNNING
    assert try_lock(runs[0].folder) is None
    launched = Launched(runs)
    done, _ = go(runs, launched)
    assert not done
    assert "robot/ours/seed_0" not in {name for name, *_ in launched.calls}
    lock.close()
    assert state_of(runs[0]) == State.INTERRUPTED  # its process ended without a word


def test_a_process_keeps_its_runs_lock_and_asks_nobody(
    runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "slow"
    script.write_text(
        "#!/bin/sh\n"
        'read answer || echo "no answer for $WANDB_RUN_GROUP: $*"\n'
        f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done\nexit 7\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    lock = try_lock(runs[0].folder)
    assert lock is not None
    codes: list[int] = []
    with open(tmp_path / "log.txt", "w") as log:
        runner = Runner([], [])
        given = (["fit"], {"WANDB_RUN_GROUP": "a/b"}, log, [lock.fileno()])
        thread = threading.Thread(target=lambda: codes.append(runner._process(*given)))
        thread.start()
        while not (tmp_path / "log.txt").read_text():
            time.sleep(0.02)
        lock.close()  # as if the runner had been killed
        assert try_lock(runs[0].folder) is None
        (tmp_path / "go").touch()
        thread.join()
    assert codes == [7]
    assert (tmp_path / "log.txt").read_text() == "no answer for a/b: -m offline_meta_rl fit\n"
    again = try_lock(runs[0].folder)
    assert again is not None
    again.close()


def test_commands_after_training(tmp_path: Path) -> None:
    after = [{"command": "test", "configs": ["all"], "result": "more.json"}]
    experiment = write_experiment(tmp_path, after=after)
    runs = plan_of(experiment, tmp_path, arms=["ours"], families=["robot"], seeds=[0])
    launched = Launched(runs, {runs[0].name: [0, 143]})  # the second command is interrupted
    assert not go(runs, launched)[0]
    assert go(runs, launched)[0]
    assert [arguments[0] for _, arguments, _ in launched.calls] == ["fit", "test", "test"]
    arguments = launched.calls[-1][1]
    assert arguments[1:3] == ["--ckpt_path", str(runs[0].folder / "checkpoints" / "last.ckpt")]


def test_speeds_are_measured(runs: list[Run]) -> None:
    finish(runs[0], scores_of(runs[0]))
    begin(runs[1])
    end(runs[1], 1, 60.0)
    assert measured_speeds(runs) == {"robot/ours": 8 / 60}
    begin(runs[2])
    end(runs[2], 143, 100.0)  # an interruption; its time counts too
    begin(runs[2])
    end(runs[2], 0, 20.0)
    assert measured_speeds(runs) == {"robot/ours": pytest.approx((8 / 60 + 8 / 120) / 2)}


def test_status_and_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = write_experiment(tmp_path)
    path, root = str(experiment.folder / "experiment.yaml"), str(tmp_path / "runs")
    runs = plan_of(experiment, tmp_path, seeds=[0])
    launched = Launched(runs, {"robot/theirs/seed_0": [1]})
    monkeypatch.setattr(Runner, "_process", lambda self, *given: launched(*given))
    selection = [path, "--scale", "tiny", "--root", root, "--seeds", "0"]
    experiment_command(["run", *selection, "--index", "2"])
    assert [name for name, *_ in launched.calls] == ["ant/ours/seed_0"]
    assert "1 runs of 4 outer steps, 1 to do" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--workers: expected at least 1, found 0"):
        experiment_command(["run", *selection, "--workers", "0"])
    with pytest.raises(SystemExit, match="1"):
        experiment_command(["run", *selection, "--workers", "1"])
    capsys.readouterr()
    experiment_command(["status", *selection])
    printed = capsys.readouterr().out
    assert "   1  failed       robot/theirs/seed_0" in printed
    assert "ValueError: the data is bad" in printed
    assert printed.count("finished") == 3


def tiny_experiment(folder: Path, steps: int) -> Path:
    """Write an experiment of one real method on a small dataset."""
    data = tiny.dataset(folder / "data")
    settings = tiny.config("Macaw", data, evaluate=True)
    settings["data"]["init_args"].pop("seed", None)
    own = folder / "configs" / "experiments" / "real"
    own.mkdir(parents=True)
    (own / "macaw.yaml").write_text(yaml.safe_dump(settings))
    content = {
        "title": "A real one",
        "families": ["robot"],
        "arms": {"macaw": {"label": "MACAW", "configs": ["macaw"]}},
        "scales": {"tiny": {"seeds": [0], "steps": steps, "evaluations": 10}},
    }
    (own / "experiment.yaml").write_text(yaml.safe_dump(content))
    return own / "experiment.yaml"


def test_a_killed_experiment_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Twenty evaluations in this process: their pictures would take more time than the training.
    monkeypatch.setattr(results, "learning_curve", lambda *_, **__: None)
    steps = 300
    path = tiny_experiment(tmp_path, steps)
    command = ["experiment", "run", str(path), "--scale", "tiny", "--root", str(tmp_path / "runs")]
    process = subprocess.Popen(
        [sys.executable, "-m", "offline_meta_rl", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    folder = tmp_path / "runs" / "real" / "tiny" / "robot" / "macaw" / "seed_0"
    checkpoint = folder / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 400
    while not checkpoint.is_file():
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "robot/macaw/seed_0: interrupted; the same command goes on" in said
    interrupted = torch.load(folder / "checkpoints" / "interrupted.ckpt", weights_only=True)
    assert 0 < interrupted["global_step"] < steps

    def in_this_process(
        self: Runner, arguments: Sequence[str], variables: Any, log: Any, kept: Any
    ) -> int:
        assert arguments[-1] == str(folder / "checkpoints" / "interrupted.ckpt")
        cli.run(list(arguments))
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "_process", in_this_process)
        experiment_command(command[1:])
    found = tiny.state(tiny.last(folder))
    assert found["global_step"] == steps
    whole = tmp_path / "whole"
    (run,) = plan(load_experiment(str(path)), "tiny", tmp_path / "runs")
    cli.run([part.replace(str(folder), str(whole)) for part in run.commands[0]])
    assert tiny.difference(found, tiny.state(tiny.last(whole))) is None
