"""The one command: its doors, and what is imported behind each."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from offline_meta_rl import cli
from offline_meta_rl.behaviour.command import COMMANDS as BEHAVIOUR
from offline_meta_rl.data_tools.command import COMMANDS as DATA
from offline_meta_rl.experiments.command import COMMANDS as EXPERIMENT
from offline_meta_rl.main import DOORS, main
from offline_meta_rl.reports.command import COMMANDS as REPORT
from tests.helpers import make_dataset

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "lightning", "tensordict", "mujoco", "gymnasium", "matplotlib", "scipy")
WITH_COMMANDS = {"data": DATA, "behaviour": BEHAVIOUR, "experiment": EXPERIMENT, "report": REPORT}


def test_help_shows_every_door_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["-h"]):
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
    out = capsys.readouterr().out
    places = [out.index(f"\n{title}:\n") for title in ("train and use", "data", "compare")]
    for door, group in {"finetune": 0, "fit": 0, "data": 1, "behaviour": 1, "report": 2}.items():
        after = out.index(f"\n  {door} ")
        assert places[group] < after < [*places, len(out)][group + 1]
    assert "lightning fit --config configs/quickstart.yaml" in out


def test_there_is_a_door_for_all_that_lightning_does() -> None:
    own = {*cli.CommandLine.subcommands()}
    assert set(DOORS.words) == {*own, "finetune", *WITH_COMMANDS}


@pytest.mark.parametrize("door", WITH_COMMANDS)
def test_each_door_lists_its_commands(door: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([door, "--help"])
    out = capsys.readouterr().out
    assert f"usage: lightning {door} COMMAND" in out
    for name in WITH_COMMANDS[door].functions:
        assert f"\n  {name} " in out
        with pytest.raises(SystemExit, match="0"):
            main([door, name, "--help"])
        assert f"usage: lightning {door} {name}" in capsys.readouterr().out


def test_an_unknown_door_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["tset"])
    assert "found 'tset'. Did you mean test?" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "usage: lightning COMMAND" in capsys.readouterr().err


def test_light_commands_import_nothing_heavy(tmp_path: Path) -> None:
    """``import torch`` alone takes more than the second in which these have to answer."""
    dataset = str(make_dataset(tmp_path / "a"))
    other = str(make_dataset(tmp_path / "b", seed=1))
    commands = [
        ["--help"],
        *([door, "--help"] for door in WITH_COMMANDS),
        *(
            [door, name, "--help"]
            for door, each in WITH_COMMANDS.items()
            for name in each.functions
        ),
        ["data", "info", dataset],
        ["data", "info", dataset, "--json"],
        ["data", "split", dataset, str(tmp_path / "part"), "--tasks", "0"],
        ["data", "merge", dataset, other, "--into", str(tmp_path / "whole")],
        ["data", "convert", dataset, str(tmp_path / "copy")],
        ["experiment", "list"],
        ["experiment", "status", "figure3"],
    ]
    program = (
        "import json, sys\n"
        "from offline_meta_rl.main import main\n"
        "found = {}\n"
        f"for arguments in {commands!r}:\n"
        "    try:\n"
        "        main(arguments)\n"
        "    except SystemExit as exit:\n"
        "        assert exit.code in (0, None), (arguments, exit.code)\n"
        f"    heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    found[' '.join(arguments)] = heavy\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == len(commands)
    assert {name: heavy for name, heavy in found.items() if heavy} == {}
