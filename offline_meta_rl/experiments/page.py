"""One report in three forms: PNGs, Markdown, and an HTML page that needs no other file.

The page's template is ``page.html``.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from offline_meta_rl.reports.tables import markdown_table


@dataclass(frozen=True)
class Heading:
    """A line above what follows; level 1 is the title."""

    kind: ClassVar[str] = "heading"
    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; ``note`` makes it stand out."""

    kind: ClassVar[str] = "text"
    text: str
    note: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells below a header."""

    kind: ClassVar[str] = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A PNG beside the report, with what it shows."""

    kind: ClassVar[str] = "picture"
    path: Path
    caption: str


Block = Heading | Text | Table | Picture


def write_page(blocks: Sequence[Block], folder: Path) -> Path:
    """Write ``report.md`` and ``report.html``.

    Args:
        blocks: Content of the report; the first heading is the page's title.
        folder: Where the pictures lie already.

    Returns:
        The path of the HTML page, which has the pictures in itself and opens without a network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text("\n\n".join(map(_markdown, blocks)) + "\n")
    title = next(block.text for block in blocks if isinstance(block, Heading))
    page = folder / "report.html"
    page.write_text(_environment().get_template("page.html").render(title=title, blocks=blocks))
    return page


def _environment() -> Environment:
    """Return what the template needs; everything it is given is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"with_code": _with_code, "base64": _base64}
    environment.tests["numeric"] = _numeric
    return environment


def _with_code(text: str) -> Markup:
    """Return a text whose parts between backticks are code."""
    # Escaped before the tags are added, so that these are all the tags there are.
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _numeric(cell: str) -> bool:
    return re.match(r"-?\d", cell) is not None


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Text(text, note):
            return f"> {text.replace(chr(10), chr(10) + '> ')}" if note else text
        case Table(header, rows):
            return markdown_table(header, rows)
        case Picture(path, caption):
            return f"![{caption}]({path.name})\n\n*{caption}*"


def definition_table(entries: Mapping[str, str]) -> Table:
    """Return a table of names and values."""
    return Table(("", ""), [(name, value) for name, value in entries.items()])
