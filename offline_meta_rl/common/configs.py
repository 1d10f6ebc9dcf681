"""Configs that build on others.

    # configs/macaw_ant.yaml
    include: [families/ant.yaml, methods/macaw.yaml]
    trainer:
      default_root_dir: runs/macaw_ant

The command reads the included files first, in their order, then the file itself: a later value
wins. Names are relative to the folder of the file that includes them.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

INCLUDE = "include"
OPTION = "--config"
_KEY = re.compile(rf"^{INCLUDE}:.*\n?(?:[ \t-].*\n?)*", flags=re.MULTILINE)


def expand(arguments: Sequence[str], folder: Path) -> list[str]:
    """Return arguments in which every ``--config`` is preceded by what its file includes.

    Args:
        arguments: Words of the command line.
        folder: Where copies of the files that include others are written, without that key.

    Raises:
        ValueError: A circle, a missing file, or names that are no list.
    """
    expanded: list[str] = []
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        name, separator, value = argument.partition("=")
        if name != OPTION or (not separator and position + 1 == len(arguments)):
            expanded.append(argument)
            position += 1
            continue
        position += 1 if separator else 2
        given = value if separator else arguments[position - 1]
        for path in with_includes(Path(given)) if Path(given).is_file() else [Path(given)]:
            expanded += [OPTION, str(_without_key(path, folder))]
    return expanded


def with_includes(path: Path, including: tuple[Path, ...] = ()) -> list[Path]:
    """Return a config and all that it includes, in the order in which they are read.

    Args:
        path: Path of the config.
        including: Configs that include it, the outermost first.

    Raises:
        ValueError: A circle, a missing file, or names that are no list.
    """
    chain = (*including, path.resolve())
    if path.resolve() in including:
        raise ValueError(
            f"Configs include each other in a circle: {' -> '.join(map(str, chain))}. Remove one "
            f"of the names under {INCLUDE}."
        )
    files: list[Path] = []
    for name in _included(path):
        other = path.parent / name
        if not other.is_file():
            raise ValueError(f"{path} includes {name}, which is not a file: expected {other}.")
        files += with_includes(other, chain)
    return [*files, path]


def _included(path: Path) -> list[str]:
    """Return the names under ``include``, as written."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return []  # the parser says what is wrong with the file
    names = content.get(INCLUDE, []) if isinstance(content, dict) else []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{path}: expected a list of files under {INCLUDE}, such as [methods/macaw.yaml], "
            f"found {names!r}."
        )
    return names


def _without_key(path: Path, folder: Path) -> Path:
    """Return the file, or a copy without the key that only this module understands."""
    if not path.is_file() or not _included(path):
        return path
    # The text is copied, not parsed and written: the parser reads numbers by rules of its own.
    number = len(list(folder.iterdir()))
    copy = folder / f"{number}_{path.name}"
    copy.write_text(_KEY.sub("", path.read_text(encoding="utf-8"), count=1), encoding="utf-8")
    return copy
