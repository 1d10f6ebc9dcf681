"""One report in three forms: PNGs, Markdown, and an HTML page that needs no other file."""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;
color:#222}table{border-collapse:collapse;margin:1em 0;font-variant-numeric:tabular-nums}
td,th{border:1px solid #ccc;padding:.25em .6em;text-align:right}td.number{white-space:nowrap}
td:first-child,th:first-child{text-align:left}th{background:#f3f3f3}img{max-width:100%}pre{white-space:pre-wrap}
.note{background:#fff4d6;border-left:4px solid #e69f00;padding:.4em .8em;margin:.6em 0}
figure{margin:1.5em 0}figcaption{color:#555;font-size:90%}"""


@dataclass(frozen=True)
class Heading:
    """A line above what follows; level 1 is the title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; ``note`` makes it stand out."""

    text: str
    note: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells below a header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A PNG beside the report, with what it shows."""

    path: Path
    caption: str


Block = Heading | Text | Table | Picture


def write_page(blocks: Sequence[Block], folder: Path) -> Path:
    """Write ``report.md`` and ``report.html``; the pictures lie in the same folder already.

    Returns:
        The path of the HTML page, which has the pictures in itself and opens without a network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text("\n\n".join(map(_markdown, blocks)) + "\n")
    titles = [block.text for block in blocks if isinstance(block, Heading)]
    page = folder / "report.html"
    page.write_text(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f"<title>{html.escape(titles[0])}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(map(_html, blocks))
        + "\n</body></html>\n"
    )
    return page


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


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; a bar within a cell is escaped."""
    lines = [list(header), ["---"] * len(header), *map(list, rows)]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Text(text, note):
            tag = "pre" if "\n" in text else "p"
            kind = ' class="note"' if note else ""
            written = re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(text))
            return f"<{tag}{kind}>{written}</{tag}>"
        case Table(header, rows):
            parts = [_row(header, "th"), *(_row(row, "td") for row in rows)]
            return "<table>\n" + "\n".join(parts) + "\n</table>"
        case Picture(path, caption):
            code = base64.b64encode(path.read_bytes()).decode()
            return (
                f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{code}">'
                f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            )


def _row(cells: Sequence[str], tag: str) -> str:
    kinds = [' class="number"' if tag == "td" and re.match(r"-?\d", cell) else "" for cell in cells]
    written = (
        f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True)
    )
    return f"<tr>{''.join(written)}</tr>"


def definition_table(entries: Mapping[str, str]) -> Table:
    """Return a table of names and values."""
    return Table(("", ""), [(name, value) for name, value in entries.items()])
