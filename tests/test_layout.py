"""The shape of the repository: import directions, rooms, file sizes, the README's command."""

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import callbacks
import datamodules
import offline_meta_rl

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("offline_meta_rl", "datamodules", "callbacks")

# A row imports only from rows above it and from itself; the datamodules and the callbacks do not
# know each other. There is no default: a package that is not in the table fails.
ORDER = (
    "common",
    "data",
    "networks",
    "losses",
    "envs",
    "evaluation",
    "behaviour",
    "data_tools",
    "reports",
    "finetuning",
    "methods",
    "datamodules",
    "callbacks",
    "experiments",
    "renamed",
    "launch",
    "stages",
    "cli",
    "finetune",
    "main",
    "__main__",
)
STRANGERS = {"datamodules", "callbacks"}
PLAIN = ORDER[: ORDER.index("losses") + 1]
"""Packages that import neither Lightning nor a simulator."""

SIMULATORS = {"gymnasium", "mujoco", "metaworld"}
WITHOUT_SIMULATOR = (
    "finetuning.awr",
    "finetuning.pearl",
    "finetuning.replay",
    "methods.base",
    "methods.loading",
    "methods.macaw",
    "methods.meta_bc",
    "methods.multitask_awr",
    "methods.pearl",
)
MOST_MODULES = 12
ROOMIER: dict[str, int] = {}
"""Folders with more modules than that; ``docs/decisions.md`` says why."""


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str | None:
    """Return the row of ORDER that a module stands in, None for the root package."""
    names = module.split(".")
    if names[0] != "offline_meta_rl":
        return names[0]
    return names[1] if len(names) > 1 else None


def imports(path: Path, *, lazy: bool = True) -> Iterator[str]:
    """Yield what a file imports; with ``lazy`` also inside functions and for types alone."""
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        if lazy or not isinstance(node, ast.FunctionDef):
            for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            inside = node.orelse if for_types and not lazy else ast.iter_child_nodes(node)
            todo.extend(inside)


def own_modules(path: Path, *, lazy: bool = True) -> set[str]:
    """Return this project's modules that a file imports."""
    known = {module_name(source) for source in sources()}
    found = set()
    for name in imports(path, lazy=lazy):
        for candidate in (name, name.rpartition(".")[0]):
            if candidate in known:
                found.add(candidate)
                break
    return found


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_go_one_way(path: Path) -> None:
    own = room(module_name(path))
    if own is None:
        return
    assert own in ORDER, f"{path} is in no package of the table"
    for imported in own_modules(path):
        other = room(imported)
        if other is None or other == own:
            continue
        assert other in ORDER, f"{imported} is in no package of the table"
        assert ORDER.index(other) < ORDER.index(own), f"{path} imports {imported}, a later package"
        assert {own, other} != STRANGERS, f"{path} imports {imported}"


def test_no_import_runs_in_a_circle() -> None:
    graph = {module_name(path): own_modules(path) for path in sources()}
    # Whoever imports nothing that is left cannot be part of a circle.
    while leaves := {name for name, imported in graph.items() if not imported & graph.keys()}:
        graph = {name: imported for name, imported in graph.items() if name not in leaves}
    assert not graph


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_plain_packages_import_no_lightning_and_no_simulator(path: Path) -> None:
    if room(module_name(path)) in PLAIN:
        top = {name.split(".")[0] for name in imports(path)}
        assert not top & {"lightning", *SIMULATORS}


@pytest.mark.parametrize("name", WITHOUT_SIMULATOR)
def test_adaptation_imports_no_simulator(name: str) -> None:
    paths = {module_name(path): path for path in sources()}
    todo, seen = [f"offline_meta_rl.{name}"], set()
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        top = {imported.split(".")[0] for imported in imports(paths[module], lazy=False)}
        assert not top & SIMULATORS, f"offline_meta_rl.{name} reaches {module}, which imports {top}"
        todo += own_modules(paths[module], lazy=False)


def test_no_folder_is_crowded() -> None:
    modules = Counter(path.parent for path in sources() if path.name != "__init__.py")
    crowded = {
        str(folder.relative_to(ROOT)): count
        for folder, count in modules.items()
        if count > MOST_MODULES
    }
    assert crowded == ROOMIER


def test_packages_are_this_checkout() -> None:
    for package in (offline_meta_rl, datamodules, callbacks):
        assert package.__file__ is not None
        folder = Path(package.__file__).parent
        assert folder.parent == ROOT, f"{package.__name__} is shadowed by {folder}"
        assert (folder / "py.typed").is_file()


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in sources()}
    too_long = {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > 350}
    assert not too_long


def test_ci_runs_the_command_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    match = re.search(r"grep -m 1 -E '([^']+)'", (ROOT / ".ci" / "run").read_text())
    assert match is not None
    commands = re.findall(match.group(1), readme, flags=re.MULTILINE)
    assert len(commands) == 1
    assert f"```bash\n{commands[0]}\n```" in readme
    found = subprocess.run(
        ["grep", "-E", match.group(1), "README.md"], cwd=ROOT, capture_output=True, text=True
    )
    assert found.stdout.splitlines() == commands


def test_constraints_pin_every_dependency_once() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins)
    names = [re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower() for pin in pins]
    assert len(set(names)) == len(names)
    declared = re.findall(
        r'"([A-Za-z0-9_-]+)(?:\[[a-z]+\])?>=', (ROOT / "pyproject.toml").read_text()
    )
    missing = {re.sub("_", "-", name).lower() for name in declared} - set(names)
    assert not missing
