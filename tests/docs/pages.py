"""Reads the documentation: pages, links, code blocks and the commands in them."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md")))
SOURCES = tuple(
    sorted(
        path
        for package in ("offline_meta_rl", "datamodules", "callbacks")
        for path in (ROOT / package).rglob("*.py")
    )
)
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:^|&& |srun |[A-Z_]+=\w+ )((?:lightning|python -m offline_meta_rl) .*)")


def name(page: Path) -> str:
    """Return a page's path in the repository."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the code blocks of some languages."""
    found = FENCE.findall(page.read_text())
    return [code for language, code in found if language in languages]


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return FENCE.sub("", page.read_text())


def inline_code(page: Path) -> list[str]:
    """Return what is in backticks, on one line each."""
    return [re.sub(r"\s+", " ", code) for code in re.findall(r"`([^`]+)`", prose(page))]


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Yield path and anchor of each relative link and picture."""
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(page))):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor


def anchors(page: Path) -> set[str]:
    """Return the anchors that MkDocs gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {
        re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())
        for heading in plain
    }


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each complete ``lightning`` command, in blocks and in the text."""
    lines = [*inline_code(page)]
    for code in blocks(page, "bash"):
        lines += re.sub(r"\\\n\s*", " ", code).splitlines()
    for line in lines:
        found = COMMAND.match(line) or COMMAND.search(line)
        if found is None or re.search(r"\$|…|<|\.\.\.", found[1].split(" #")[0]):
            continue
        words = shlex.split(found[1], comments=True)
        if len(words) > 1:
            yield words[1:] if words[0] == "lightning" else words[3:]


@cache
def string_literals() -> tuple[str, ...]:
    """Return every string in the sources; a value put into one splits it in two."""
    return tuple(
        re.sub(r"\s+", " ", node.value)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
