"""The documentation says what is there: links, pictures, paths, names, messages and commands."""

import contextlib
import dataclasses
import importlib
import inspect
import io
import re
import runpy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningDataModule

from offline_meta_rl import cli, finetune
from offline_meta_rl.behaviour.command import COMMANDS as BEHAVIOUR
from offline_meta_rl.common.configs import expand
from offline_meta_rl.data_tools.command import COMMANDS as DATA
from offline_meta_rl.experiments.command import COMMANDS as EXPERIMENT
from offline_meta_rl.launch import check_settings, import_classes, subclasses
from offline_meta_rl.main import DOORS
from offline_meta_rl.methods.base import MetaModule
from offline_meta_rl.reports.command import COMMANDS as REPORT
from tests.docs import pages
from tests.test_layout import ORDER

KNOWN_FOLDERS = ("offline_meta_rl/", "datamodules/", "callbacks/", "configs/", "docs/", "tests/")
WRITTEN_BY_THE_READER = ("my_changes.yaml", "my_config.yaml", "finetune.yaml")
OWN_CLASSES = ("my_method.NoisyMacaw", "noisy_macaw.NoisyMacaw")  # test_method.py runs them


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_links_and_pictures_are_there(page: Path) -> None:
    broken = []
    for path, anchor in pages.links(page):
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            broken.append(path)
        elif anchor and anchor not in pages.anchors(target):
            broken.append(f"{path}#{anchor}")
    assert not broken


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_named_files_are_there(page: Path) -> None:
    missing = []
    for code in pages.inline_code(page):
        path = code.split("::")[0]
        plain = re.fullmatch(r"[\w./-]+", path) and path.startswith(KNOWN_FOLDERS)
        gymnasium_id = re.search(r"-v\d+$", path)
        if plain and not gymnasium_id and not (pages.ROOT / path).exists():
            missing.append(path)
    assert not missing


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_named_functions_are_there(page: Path) -> None:
    # ``data`` alone begins the names of settings: ``data.tasks_per_batch``.
    packages = "|".join(set(ORDER[: ORDER.index("datamodules")]) - {"data"})
    for code in pages.inline_code(page):
        if re.fullmatch(rf"offline_meta_rl(\.\w+)+|({packages})(\.[a-z]\w+)(\.\w+)+", code):
            assert _find(f"offline_meta_rl.{code.removeprefix('offline_meta_rl.')}"), code


@pytest.mark.parametrize("page", sorted((pages.DOCS / "api").glob("*.md")), ids=pages.name)
def test_the_reference_is_of_what_is_there(page: Path) -> None:
    named = re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    assert named
    assert len(set(named)) == len(named), "a module stands here twice"
    assert [name for name in named if not _find(name)] == []


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_named_settings_are_there(page: Path) -> None:
    import_classes()
    known = {MetaModule: "model", LightningDataModule: "data", Callback: "callbacks"}
    settings = {
        f"{part}.{name}"
        for base, part in known.items()
        for owner in subclasses(base)
        for name in _settings(inspect.signature(owner).parameters.values())
    }
    groups = {name.split(".")[1] for name in settings if name.count(".") > 1}
    for code in pages.inline_code(page):
        name = code.split(":")[0].split(" ")[0].removeprefix("--")
        if not re.fullmatch(rf"(model|data)(\.\w+)+|({'|'.join(groups)})(\.\w+)+", name):
            continue
        if name.endswith((".help", ".py")):
            continue
        parts = [part for part in name.split(".") if part != "init_args"]
        given = ".".join(parts if parts[0] in known.values() else ["", *parts])
        found = any(setting.endswith(given) for setting in settings)
        assert found or _find(f"offline_meta_rl.{name}"), code


def _settings(parameters: Iterable[inspect.Parameter]) -> Iterator[str]:
    """Yield the names of a constructor's settings, those inside groups too."""
    for parameter in parameters:
        yield parameter.name
        for name in _fields(parameter.default):
            yield f"{parameter.name}.{name}"


def _fields(group: object) -> Iterator[str]:
    """Yield the names of a group's settings; none for what is no group."""
    if dataclasses.is_dataclass(group):
        for field in dataclasses.fields(group):
            yield field.name
            for name in _fields(getattr(group, field.name)):
                yield f"{field.name}.{name}"


def _find(dotted: str) -> bool:
    """Whether a module, or something in a module, has this name."""
    names = dotted.split(".")
    for count in range(len(names), 0, -1):
        try:
            found: object = importlib.import_module(".".join(names[:count]))
        except ModuleNotFoundError:
            continue
        try:
            for part in names[count:]:
                found = getattr(found, part)
        except AttributeError:
            return False
        return True
    return False


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_no_placeholder_is_left(page: Path) -> None:
    assert re.findall(r"\b[A-Z]+_(?:TABLE|PLACEHOLDER|HERE)\b|\bTODO\b", page.read_text()) == []


def test_every_page_is_in_the_menu() -> None:
    menu = re.findall(r"(\S+\.md)$", (pages.ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    there = [str(page.relative_to(pages.DOCS)) for page in pages.DOCS.rglob("*.md")]
    assert sorted(menu) == sorted(there)


def test_diagrams_are_what_their_script_draws() -> None:
    script = runpy.run_path(str(pages.DOCS / "images" / "draw.py"))
    for name, draw in script["PICTURES"].items():
        drawn = (pages.DOCS / "images" / name).read_text(encoding="utf-8")
        assert drawn == draw(), f"run python docs/images/draw.py: {name} is an old picture"


def test_the_table_of_packages_is_complete_and_in_order() -> None:
    text = (pages.DOCS / "architecture.md").read_text()
    table = text[text.index("<!-- packages -->") :].split("\n\n")[1]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == ORDER


def test_messages_of_the_troubleshooting_page_are_those_of_the_program() -> None:
    literals = pages.string_literals()
    messages = pages.blocks(pages.DOCS / "troubleshooting.md", "text")
    assert len(messages) > 10
    for message in messages:
        for part in re.split(r"\s*…\s*|(?<=\.) ", re.sub(r"\s+", " ", message)):
            words = part.strip(" .:,;()")
            assert any(words in literal for literal in literals), words


@pytest.mark.parametrize(
    ("words", "home"),
    [("R_random", "docs/glossary.md"), ("libegl1", "docs/troubleshooting.md")],
)
def test_a_definition_stands_once(words: str, home: str) -> None:
    assert [pages.name(page) for page in pages.PAGES if words in page.read_text()] == [home]


def test_commands_parse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every command of every page, with the run's config in place of a checkpoint."""
    parser = _parser(monkeypatch)
    problems = []
    for words, page in sorted(_unique_commands().items()):
        output = io.StringIO()
        arguments = expand(words, tmp_path)
        try:
            with contextlib.redirect_stderr(output):
                check_settings(arguments)
                parser.parse_args(arguments)
        except SystemExit:
            problems.append(f"{page}: {' '.join(words)}: {output.getvalue()[-500:]}")
        except ValueError as error:
            problems.append(f"{page}: {' '.join(words)}: {error}")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_commands_of_the_tools_parse(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command of a page that is not Lightning's own."""
    doors = {"data": DATA, "behaviour": BEHAVIOUR, "experiment": EXPERIMENT, "report": REPORT}
    for door, *words in pages.commands(page):
        parser = None
        if door == "finetune":
            words = [word for word in words if word not in ("--config", "finetune.yaml")]
            parser = finetune.parser()
        elif door in doors and words:
            assert words[0] in {*doors[door].functions, "--help"}
            if len(words) > 1:  # else it is mentioned without its options
                parser = doors[door].parser(words.pop(0))
        else:
            assert door in {*DOORS.words, "--help", "COMMAND"}
        if parser is not None and "--help" not in words:
            parser.parse_args(words)
    assert not capsys.readouterr().err


def _parser(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the parser of ``lightning fit`` and the others; making one takes a while."""
    made = []

    def keep(self: object, parser: Any, args: object) -> None:
        made.append(parser)
        raise SystemExit

    monkeypatch.setattr(cli.CommandLine, "parse_arguments", keep)
    with contextlib.suppress(SystemExit):
        cli.run([])
    return made[0]


def _unique_commands() -> dict[tuple[str, ...], str]:
    """Return commands of Lightning with the first page that has each."""
    found: dict[tuple[str, ...], str] = {}
    for page in pages.PAGES:
        for words in pages.commands(page):
            if words[0] in cli.CommandLine.subcommands() and len(words) > 1:
                for command in _with_config(words):
                    found.setdefault(command, pages.name(page))
    return found


def _with_config(words: list[str]) -> Iterator[tuple[str, ...]]:
    """Yield a command that needs neither a checkpoint nor files that the reader writes."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--ckpt_path":
            run = next(rest).split("/")[1]
            config = pages.ROOT / "configs" / f"{run}.yaml"
            given = config if config.is_file() else config.with_name("quickstart.yaml")
            kept[1:1] = ["--config", str(given)]
        elif word == "--config":
            file = next(rest)
            own = file in WRITTEN_BY_THE_READER or (pages.ROOT / file).is_file()
            assert own or any(_writes(page, file) for page in pages.PAGES), file
            base = "configs/quickstart.yaml" if not (pages.ROOT / file).is_file() else file
            kept += ["--config", str(pages.ROOT / base)]
        else:
            kept.append(word)
    if not {"--print_config", "--help", "--model.help", *OWN_CLASSES} & set(kept):
        yield tuple(kept)


def _writes(page: Path, file: str) -> bool:
    """Whether a page shows the content of a file that the reader writes."""
    return any(code.startswith(f"# {file}\n") for code in pages.blocks(page, "yaml"))
