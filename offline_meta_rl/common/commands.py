"""Command lines from typed functions: each argument is an option, the docstring is the help.

    def info(dataset: str, *, json: bool = False) -> None: ...

    Commands("lightning data", "Look at datasets.", {"info": info}).run(["info", "x", "--json"])

An argument without a default is positional, or a required option if it is keyword-only. A list
takes several values (``--seeds 0 1 2``), a bool that is False by default is a flag. An argument
that is a dataclass stands for its fields, so several commands can share options. A trailing
underscore is dropped: ``set_`` is ``--set``.
"""

import argparse
import contextlib
import dataclasses
import difflib
import inspect
import os
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import UnionType
from typing import TYPE_CHECKING

from offline_meta_rl.common.interruption import Interrupted

if TYPE_CHECKING:
    from _typeshed import SupportsWrite
    from jsonargparse import ArgumentParser

DEBUG_VARIABLE = "OFFLINE_META_RL_DEBUG"
PACKAGES = {"offline_meta_rl", "datamodules", "callbacks"}
Command = Callable[..., None]


@dataclasses.dataclass(frozen=True)
class Menu:
    """The words that may follow a program's name, in groups.

    Attributes:
        program: What to type before the word, such as ``lightning data``.
        purpose: One sentence about the program.
        groups: Title of a group -> word -> one line about it.
        example: Command lines to start from.
    """

    program: str
    purpose: str
    groups: Mapping[str, Mapping[str, str]]
    example: str = ""

    @property
    def words(self) -> list[str]:
        """All words."""
        return [word for group in self.groups.values() for word in group]

    def text(self) -> str:
        """Return the help: every word with its line, then the examples."""
        width = max(map(len, self.words)) + 3
        lines = [f"usage: {self.program} COMMAND ...", "", self.purpose]
        for title, group in self.groups.items():
            lines += ["", f"{title}:"]
            lines += [f"  {word:{width}}{line}" for word, line in group.items()]
        if self.example:
            lines += ["", "example:", *(f"  {line}" for line in self.example.splitlines())]
        lines += ["", f"`{self.program} COMMAND --help` lists the options of a command."]
        return "\n".join(lines)

    def choose(self, arguments: Sequence[str]) -> str:
        """Return the word that was given; print the help if it was asked for.

        Raises:
            SystemExit: The help was printed (0), or there is no such word (2).
        """
        given = arguments[0] if arguments else None
        if given in ("-h", "--help"):
            print(self.text())
            sys.exit(0)
        if given in self.words:
            return str(given)
        if given is None:
            print(self.text(), file=sys.stderr)
            sys.exit(2)
        near = difflib.get_close_matches(given, self.words, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        expected = f"{self.program}: expected one of {', '.join(self.words)}, found {given!r}."
        print(f"error: {expected}{hint}", file=sys.stderr)
        sys.exit(2)


@dataclasses.dataclass(frozen=True)
class Commands:
    """Typed functions as the commands of one program.

    Attributes:
        program: What to type before a command, such as ``lightning data``.
        purpose: One sentence about all of them.
        functions: Name of a command -> the function that it calls.
        example: Command lines to start from.
    """

    program: str
    purpose: str
    functions: Mapping[str, Command]
    example: str = ""

    @property
    def menu(self) -> Menu:
        """The list of commands, one line of each function's docstring."""
        lines = {name: _first_line(function) for name, function in self.functions.items()}
        return Menu(self.program, self.purpose, {"commands": lines}, self.example)

    def parser(self, name: str) -> "ArgumentParser":
        """Return the parser of one command."""
        function = self.functions[name]
        parser = _parser(f"{self.program} {name}", inspect.getdoc(function) or "")
        for option in _options(function):
            option.add_to(parser)
        return parser

    def run(self, arguments: Sequence[str]) -> None:
        """Call one command's function; errors about the input are one message.

        Args:
            arguments: The command's name and its options.

        Raises:
            SystemExit: After help, or with a message about what was given.
        """
        name = self.menu.choose(arguments)
        given = [_with_underscores(argument) for argument in arguments[1:]]
        found = self.parser(name).parse_args(given).as_dict()
        with one_message():
            _call(self.functions[name], found)
            sys.stdout.flush()


@contextlib.contextmanager
def one_message(also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn errors about the input into one message without a traceback.

    Args:
        also: Errors of libraries whose message says all that a user needs.

    Raises:
        SystemExit: With the message; for a signal 128 + its number.
    """
    try:
        yield
    except BrokenPipeError:  # what reads the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on where it stopped")
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        sys.exit(128 + interrupted.signal_number)
    except Exception as error:
        # Raised by this project's code: on purpose, so the message says all.
        if os.environ.get(DEBUG_VARIABLE) or not (
            isinstance(error, also) or raised_in_project(error)
        ):
            raise
        sys.exit(f"error: {error}\n(set {DEBUG_VARIABLE}=1 for the traceback)")


def raised_in_project(error: BaseException) -> bool:
    """Return whether this project's code raised an error, so that its message says all."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = frame.tb_frame.f_globals.get("__name__", "") if frame is not None else ""
    return module.split(".")[0] in PACKAGES


class Brief(argparse.ArgumentParser):
    """Makes a parser answer a mistake with the mistake, not with all its options."""

    def print_usage(self, file: "SupportsWrite[str] | None" = None) -> None:
        """Print the usage only where it was asked for."""
        if file is not sys.stderr:
            super().print_usage(file)


def _parser(program: str, docstring: str) -> "ArgumentParser":
    # jsonargparse takes 0.1 s to import; a list of commands does not need it.
    from jsonargparse import ArgumentParser

    class Parser(Brief, ArgumentParser):
        pass

    return Parser(
        prog=program,
        description=docstring.partition("\n\nArgs:")[0],
        formatter_class=argparse.HelpFormatter,
    )


@dataclasses.dataclass(frozen=True)
class _Option:
    """One option of a command."""

    name: str
    kind: object
    default: object
    positional: bool
    help: str

    @property
    def flag(self) -> str:
        word = self.name.rstrip("_")
        return word if self.positional else f"--{word}"

    def add_to(self, parser: "ArgumentParser") -> None:
        """Add the option to a parser.

        Left to itself jsonargparse shows ``(type: str | null, default: null)`` for an option that
        is left out most of the time; so None is taken out of its type, and needs no mention.
        """
        kind, several = _element(self.kind)
        required = self.default is inspect.Parameter.empty
        default, text = None if required else self.default, self.help
        if default is False:
            parser.add_argument(self.flag, action="store_true", help=text)
            return
        if default is not None:
            text += f" Default: {default}."
        if self.positional:
            parser.add_argument(self.flag, type=kind, nargs="+" if several else None, help=text)
        elif several:  # both `--seeds 0 1` and `--seeds 0 --seeds 1`
            parser.add_argument(
                self.flag,
                type=kind,
                nargs="+",
                action="extend",
                default=default,
                required=required,
                help=text,
            )
        else:
            parser.add_argument(self.flag, type=kind, default=default, required=required, help=text)


def _options(owner: Callable[..., object]) -> Iterator[_Option]:
    """Yield the options of a function, or of a dataclass that several functions share."""
    import docstring_parser

    documented = docstring_parser.parse(inspect.getdoc(owner) or "").params
    helps = {each.arg_name: (each.description or "").replace("\n", " ") for each in documented}
    kinds = _kinds(owner)
    for name, parameter in inspect.signature(owner).parameters.items():
        kind = kinds[name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from _options(kind)
            continue
        required = parameter.default is inspect.Parameter.empty
        positional = required and parameter.kind is not inspect.Parameter.KEYWORD_ONLY
        text = helps.get(name, "").replace("%", "%%")
        yield _Option(name, kind, parameter.default, positional, text)


def _call(function: Command, found: Mapping[str, object]) -> None:
    """Call a function with parsed options, after putting its dataclasses together."""
    arguments: dict[str, object] = {}
    for name, kind in _kinds(function).items():
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            names = [field.name for field in dataclasses.fields(kind)]
            arguments[name] = kind(**{each: found[each.rstrip("_")] for each in names})
        elif name != "return":
            arguments[name] = found[name.rstrip("_")]
    function(**arguments)


def _kinds(owner: Callable[..., object]) -> dict[str, object]:
    """Return the annotations of a function's arguments, or of a dataclass's fields."""
    return typing.get_type_hints(owner)


def _element(kind: object) -> tuple[object, bool]:
    """Return the type of one value without None, and whether there may be several of them."""
    parts = [part for part in typing.get_args(kind) if part is not type(None)]
    if typing.get_origin(kind) in (UnionType, typing.Union) and len(parts) == 1:
        kind = parts[0]
    if typing.get_origin(kind) is list:
        return typing.get_args(kind)[0], True
    return kind, False


def _first_line(function: Command) -> str:
    return (inspect.getdoc(function) or "").splitlines()[0]


def _with_underscores(argument: str) -> str:
    """Return ``--task-seed`` as ``--task_seed``: both are understood."""
    if not argument.startswith("--"):
        return argument
    name, separator, value = argument.removeprefix("--").partition("=")
    return f"--{name.replace('-', '_')}{separator}{value}"
