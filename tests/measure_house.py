"""Measure how the code is built: ``python tests/measure_house.py`` prints one row.

Everything is read from the source of the three packages, nothing is run.
"""

import ast
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("offline_meta_rl", "datamodules", "callbacks")
SHAPE = re.compile(r"\[[A-Z][\w ,+*()'-]*\]")
"""A shape in a docstring: [T, B]."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


@dataclass(frozen=True)
class House:
    """What is measured.

    Attributes:
        files: Modules.
        lines: Median, 90th percentile and largest number of lines of a file.
        function_lines: Median and 90th percentile of a function's lines, without its docstring.
        typed: Share of functions with all annotations.
        documented: Share of public functions, methods and classes with a docstring.
        with_shapes: Share of these docstrings that name a shape.
        any_per_1000: ``Any`` in annotations and imports, for 1000 lines.
        comments_per_1000: Comment lines inside functions, for 1000 lines.
        largest_folder: Modules of the fullest folder.
        defined_twice: Public functions and classes of one name in several modules.
        public_names: How many public functions and classes there are.
        most_arguments: Arguments of the constructor with the most.
    """

    files: int
    lines: tuple[float, float, int]
    function_lines: tuple[float, float]
    typed: float
    documented: float
    with_shapes: float
    any_per_1000: float
    comments_per_1000: float
    largest_folder: int
    defined_twice: tuple[str, ...]
    public_names: int
    most_arguments: int

    def row(self) -> str:
        """Return one row of a Markdown table."""
        middle, high, largest = self.lines
        cells = (
            self.files,
            f"{middle:.0f} / {high:.0f} / {largest}",
            f"{self.function_lines[0]:.0f} / {self.function_lines[1]:.0f}",
            f"{self.typed:.0%}",
            f"{self.documented:.0%}",
            f"{self.with_shapes:.0%}",
            f"{self.any_per_1000:.1f}",
            f"{self.comments_per_1000:.1f}",
            self.largest_folder,
            f"{len(self.defined_twice)} of {self.public_names}",
            self.most_arguments,
        )
        return f"| {' | '.join(map(str, cells))} |"


HEADER = """| files | lines per file: median / p90 / max | function: median / p90 | typed \
| public docstrings | with shapes | `Any` per 1000 lines | comment lines per 1000 \
| largest flat folder | public names defined twice | most constructor arguments |
|---|---|---|---|---|---|---|---|---|---|---|"""


def measure(root: Path = ROOT) -> House:
    """Measure a checkout."""
    paths = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
    trees = {path: ast.parse(path.read_text()) for path in paths}
    lengths = [len(path.read_text().splitlines()) for path in paths]
    functions = [node for tree in trees.values() for node in functions_of(tree)]
    public = [node for tree in trees.values() for node in public_definitions(tree)]
    docstrings = [text for node in public if (text := ast.get_docstring(node))]
    names = Counter(node.name for tree in trees.values() for node in top_level(tree))
    folders = Counter(path.parent for path in paths if path.name != "__init__.py")
    thousands = sum(lengths) / 1000
    return House(
        files=len(paths),
        lines=(median(lengths), percentile(lengths, 0.9), max(lengths)),
        function_lines=(
            median(lines := [function_length(node) for node in functions]),
            percentile(lines, 0.9),
        ),
        typed=sum(map(is_typed, functions)) / len(functions),
        documented=len(docstrings) / len(public),
        with_shapes=sum(SHAPE.search(text) is not None for text in docstrings) / len(docstrings),
        any_per_1000=sum(map(count_any, trees.values())) / thousands,
        comments_per_1000=sum(count_comments(path, trees[path]) for path in paths) / thousands,
        largest_folder=max(folders.values()),
        defined_twice=tuple(sorted(name for name, count in names.items() if count > 1)),
        public_names=len(names),
        most_arguments=max(
            len(node.args.args) + len(node.args.kwonlyargs) - 1
            for node in functions
            if node.name == "__init__"
        ),
    )


def percentile(values: list[int], share: float) -> int:
    """Return the smallest value that a share of all values does not exceed."""
    return sorted(values)[round(share * (len(values) - 1))]


def functions_of(tree: ast.AST) -> Iterator[Function]:
    """Yield all functions, methods and inner ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def top_level(tree: ast.Module) -> Iterator[Definition]:
    """Yield a module's public functions and classes."""
    for node in tree.body:
        if isinstance(node, Definition) and not (node.name.startswith("_") or is_overload(node)):
            yield node


def public_definitions(tree: ast.Module) -> Iterator[Definition]:
    """Yield a module's public functions and classes, and the public methods of these."""
    for node in top_level(tree):
        yield node
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if (
                    isinstance(member, Function)
                    and not member.name.startswith("_")
                    and not is_setter(member)
                ):
                    yield member


def is_overload(node: Definition) -> bool:
    """Whether a definition only tells a type checker one more way to call the function below it."""
    return any(isinstance(each, ast.Name) and each.id == "overload" for each in node.decorator_list)


def is_setter(node: Function) -> bool:
    """Whether a function sets a property, which its getter documents."""
    return any(
        isinstance(each, ast.Attribute) and each.attr == "setter" for each in node.decorator_list
    )


def function_length(node: Function) -> int:
    """Return a function's lines without decorators and docstring."""
    first, length = node.body[0], node.end_lineno - node.lineno + 1
    if ast.get_docstring(node) is not None:
        length -= first.end_lineno - first.lineno + 1
    return length


def is_typed(node: Function) -> bool:
    """Whether every argument but ``self`` and ``cls``, and the result, are annotated."""
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    arguments += [extra for extra in (node.args.vararg, node.args.kwarg) if extra]
    given = all(each.annotation for each in arguments if each.arg not in ("self", "cls"))
    return given and node.returns is not None


def count_any(tree: ast.Module) -> int:
    """Count ``Any`` where it is imported and where it is used."""
    used = sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(tree))
    imported = sum(
        alias.name == "Any"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    )
    return used + imported


def count_comments(path: Path, tree: ast.Module) -> int:
    """Count the comments inside functions, those for tools left out."""
    inside = {
        line for node in functions_of(tree) for line in range(node.lineno, node.end_lineno + 1)
    }
    with open(path, "rb") as stream:
        return sum(
            token.type == tokenize.COMMENT
            and token.start[0] in inside
            and token.line.lstrip().startswith("#")
            for token in tokenize.tokenize(stream.readline)
        )


if __name__ == "__main__":
    print(HEADER)
    print(measure(Path(sys.argv[1]).resolve() if sys.argv[1:] else ROOT).row())
