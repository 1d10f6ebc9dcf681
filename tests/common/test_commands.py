"""Command lines from typed functions: what they accept, what they say."""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from offline_meta_rl.common.commands import DEBUG_VARIABLE, Commands, one_message
from offline_meta_rl.common.interruption import Interrupted, resume_command

SEEN: list[object] = []


@dataclass(frozen=True)
class Shared:
    """Options of several commands.

    Attributes:
        experiment: Name of an experiment.
        seeds: Seeds to take.
        set_: KEY=VALUE pairs.
    """

    experiment: str
    seeds: list[int] | None = None
    set_: list[str] | None = None


def plain(
    source: str,
    target: Path,
    *,
    form: Literal["a", "b"] = "a",
    share: float | None = None,
    task_seed: int = 0,
    json: bool = False,
) -> None:
    """Do something plain.

    It takes a while.

    Args:
        source: Where from; 100% of it.
        target: Where to.
        form: Which form.
        share: How much.
        task_seed: Which tasks.
        json: Print JSON.
    """
    SEEN[:] = [source, target, form, share, task_seed, json]


def many(names: list[str], *, into: str) -> None:
    """Join many.

    Args:
        names: What to join.
        into: Where to.
    """
    SEEN[:] = [names, into]


def shared(selection: Shared, *, index: int | None = None) -> None:
    """Select.

    Args:
        selection: Which runs.
        index: One of them.
    """
    SEEN[:] = [selection, index]


def repeated(*, arm: list[str]) -> None:
    """Repeat an option.

    Args:
        arm: One for each arm.
    """
    SEEN[:] = [arm]


COMMANDS = Commands(
    "tool",
    "A tool.",
    {"plain": plain, "many": many, "shared": shared, "repeated": repeated},
    example="tool plain a b",
)

CALLS: dict[tuple[str, ...], list[object]] = {
    ("plain", "x", "y"): ["x", Path("y"), "a", None, 0, False],
    ("plain", "7", "null", "--form", "b", "--share=0.5", "--task_seed", "3", "--json"): [
        *("7", Path("null"), "b", 0.5, 3, True),
    ],
    ("plain", "x", "y", "--task-seed=3"): ["x", Path("y"), "a", None, 3, False],
    ("many", "a", "b", "--into", "c"): [["a", "b"], "c"],
    ("many", "--into", "c", "a"): [["a"], "c"],
    ("shared", "e"): [Shared("e"), None],
    ("shared", "e", "--seeds", "0", "1", "--set", "a.b=1", "c=[2]", "--index=0"): [
        *(Shared("e", [0, 1], ["a.b=1", "c=[2]"]), 0),
    ],
    ("shared", "e", "--seeds", "0", "--seeds", "1"): [Shared("e", [0, 1]), None],
    ("repeated", "--arm", "a=1", "--arm=b=2"): [["a=1", "b=2"]],
}


@pytest.mark.parametrize("arguments", CALLS, ids=" ".join)
def test_arguments_reach_the_function(arguments: tuple[str, ...]) -> None:
    COMMANDS.run(arguments)
    assert CALLS[arguments] == SEEN


REFUSED = {
    ("plain", "x"): "the following arguments are required: target",
    (
        "plain",
        "x",
        "y",
        "--form",
        "c",
    ): r"form.*Literal\['a', 'b'\]. Got value: c",
    ("plain", "x", "y", "--task_seed", "1.5"): "Expected a .*int.*1.5",
    ("plain", "x", "y", "--nothing"): "unrecognized arguments: --nothing",
    ("many", "x"): "required: into",
    ("repeated",): "required: arm",
    ("many", "--into", "x"): "required: names",
    ("plian",): r"expected one of plain, many, shared, repeated, found 'plian'. Did you mean plain",
    ("anything",): r"expected one of plain, many, shared, repeated, found 'anything'\.\n",
    (): "usage: tool COMMAND",
}


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_mistakes_are_named_in_a_few_lines(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        COMMANDS.run(arguments)
    out, said = capsys.readouterr()
    assert not out
    if arguments:
        assert len(said.splitlines()) < 4
    with pytest.raises(ValueError, match=f"(?s){REFUSED[arguments]}"):
        raise ValueError(said)


def test_the_list_of_commands_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        COMMANDS.run(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert "  plain      Do something plain." in lines
    assert "  repeated   Repeat an option." in lines
    assert "  tool plain a b" in lines


def test_help_is_the_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        COMMANDS.run(["plain", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("usage: tool plain")
    assert "Do something plain. It takes a while. positional" in text
    assert "source Where from; 100% of it." in text
    assert "--form {a,b} Which form. Default: a." in text
    assert "--share SHARE How much. --task_seed TASK_SEED Which tasks. Default: 0." in text


def raising(error: BaseException, module: str) -> Callable[[], None]:
    """Return a function of a module that raises."""
    scope: dict[str, object] = {"__name__": module, "error": error}
    exec("def fail(): raise error", scope)
    fail = scope["fail"]
    assert callable(fail)
    return fail


def test_errors_of_this_project_are_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    fail = raising(ValueError("expected a, found b"), "callbacks.some")
    message = f"error: expected a, found b\n.set {DEBUG_VARIABLE}=1 for the traceback"
    with pytest.raises(SystemExit, match=message), one_message():
        fail()
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    with pytest.raises(ValueError, match="expected a, found b"), one_message():
        fail()


def test_errors_of_others_keep_their_traceback_unless_they_say_all() -> None:
    fail = raising(KeyError("x"), "elsewhere")
    with pytest.raises(KeyError, match="x"), one_message():
        fail()
    with pytest.raises(SystemExit, match="error: 'x'"), one_message(also=(KeyError,)):
        fail()


def test_interruptions_say_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="interrupted; the same command goes on"), one_message():
        raise KeyboardInterrupt
    command = resume_command("fit", Path("x.ckpt"))
    with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)), one_message():
        raise Interrupted("step 3", command, signal.SIGTERM)
    said = capsys.readouterr().err
    assert "after step 3" in said
    assert "lightning fit --ckpt_path x.ckpt" in said
