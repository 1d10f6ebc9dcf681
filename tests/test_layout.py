"""The shape of the repository: import directions, packages, file sizes, the README's command."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import callbacks
import datamodules
import offline_meta_rl

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("offline_meta_rl", "datamodules", "callbacks")

# Each layer imports only itself and those above it. Modules that are not named belong to the first.
LAYERS: list[set[str]] = [
    {"data", "storage", "functional", "networks", "envs"},
    {"cloning_losses", "export", "inner", "macaw_losses", "meta_gradient"},
    {
        "behaviour",
        "collect",
        "collect_script",
        "data_tools",
        "describe_data",
        "draw_sawyer",
        "experiments",
        "evaluation",
        "exploration_diagnosis",
        "exploration_film",
        "exploration_report",
        "exploration_summary",
        "explore",
        "film_strip",
        "fine_tuning",
        "pack_behaviour",
        "references",
        "rollout",
        "scripted",
        "untrained",
        "video",
    },
    {"methods"},
    {"datamodules", "callbacks"},
    {"cli", "entry", "__main__"},
]
SIMULATORS = {"gymnasium", "mujoco", "metaworld"}
WITHOUT_SIMULATOR = (
    "functional",
    "networks",
    "inner",
    "data",
    "storage",
    "export",
    "awr_learner",
    "online_replay",
    "pearl_learner",
    "methods.macaw",
    "methods.pearl",
    "methods.meta_bc",
    "methods.multitask_awr",
    "methods.base",
)


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part(module: str) -> str | None:
    """Return the name that LAYERS uses for a module, None for the root package."""
    names = module.split(".")
    if names[0] != "offline_meta_rl":
        return names[0]
    return names[1] if len(names) > 1 else None


def imports(path: Path, *, anywhere: bool) -> Iterator[str]:
    """Yield imported modules: at the top of the file or anywhere, without TYPE_CHECKING blocks."""
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            todo.extend(node.orelse)
        elif anywhere or not isinstance(node, ast.FunctionDef):
            todo.extend(ast.iter_child_nodes(node))


def own_modules(path: Path, *, anywhere: bool) -> set[str]:
    """Return this project's modules that a file imports."""
    known = {module_name(source) for source in sources()}
    found = set()
    for name in imports(path, anywhere=anywhere):
        if name in known:
            found.add(name)
        elif name.rpartition(".")[0] in known:
            found.add(name.rpartition(".")[0])
    return found


def layer(name: str) -> int:
    return next((level for level, names in enumerate(LAYERS) if name in names), 0)


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_go_one_way(path: Path) -> None:
    own = part(module_name(path))
    if own is None:
        return
    for imported in own_modules(path, anywhere=True):
        other = part(imported)
        if other is None:
            continue
        assert layer(other) <= layer(own), f"{path} imports {imported}, which is in a later layer"
        if own in LAYERS[4]:
            assert other == own or other not in LAYERS[4], f"{path} imports {imported}"


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_first_layers_do_without_lightning(path: Path) -> None:
    own = part(module_name(path))
    if own is not None and layer(own) < 2:
        assert "lightning" not in {name.split(".")[0] for name in imports(path, anywhere=True)}


@pytest.mark.parametrize("name", WITHOUT_SIMULATOR)
def test_adaptation_imports_no_simulator(name: str) -> None:
    paths = {module_name(path): path for path in sources()}
    todo, seen = [f"offline_meta_rl.{name}"], set()
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        top = {imported.split(".")[0] for imported in imports(paths[module], anywhere=False)}
        assert not top & SIMULATORS, f"offline_meta_rl.{name} reaches {module}, which imports {top}"
        todo += own_modules(paths[module], anywhere=False)


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
