"""What the README and docs/add_a_method.md tell a user to do works as written."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

import offline_meta_rl
from offline_meta_rl import cli
from tests.helpers import make_dataset

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "add_a_method.md"
SHORT = ["--trainer.max_steps=4", "--trainer.val_check_interval=4", "--trainer.logger=false"]


def blocks(page: Path) -> dict[str, str]:
    """Return the code blocks that begin with a file name."""
    found = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", page.read_text(), re.DOTALL)
    return dict(found)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory with the page's files and a small dataset."""
    for name, code in blocks(PAGE).items():
        (tmp_path / name).write_text(code)
    make_dataset(
        tmp_path / "small",
        num_tasks=8,
        test_tasks=(6, 7),
        episodes_per_stage=4,
        horizon=20,
        observation_size=2,
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("cloning", "noisy_macaw"):
        sys.modules.pop(name, None)


def test_the_readme_shows_the_same_subclass() -> None:
    shown = blocks(ROOT / "README.md")["my_method.py"]
    assert shown == blocks(PAGE)["noisy_macaw.py"]
    body = shown[shown.index("class") :].splitlines()
    assert len([line for line in body if line.strip()]) <= 10


def test_a_method_from_nothing_trains_evaluates_and_adapts(folder: Path) -> None:
    sizes = ["--data.batches.inner_size=16", "--data.batches.outer_size=16", "--data.path=small"]
    command = ["fit", "--config", "cloning.yaml", *sizes, *SHORT]
    short = folder / "short.yaml"
    protocol = {"episodes": 1, "context_size": 16}
    callback = {"class_path": "Evaluate", "init_args": {"protocol": protocol}}
    short.write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    cli.main([*command, "--config", str(short)])
    results = json.loads((folder / "runs" / "cloning" / "results.json").read_text())
    assert results["method"] == "cloning.Cloning"
    assert set(results["after_adaptation"]["per_task"]) == {"6", "7"}
    method = offline_meta_rl.load(folder / "runs" / "cloning" / "checkpoints" / "last.ckpt")
    context = {
        "observation": torch.randn(16, 2),
        "action": torch.zeros(16, 2),
        "return_to_go": torch.zeros(16),
    }
    distances = [
        method.adapt(context, steps)(context["observation"]).square().mean().item()
        for steps in (0, 5, 50)
    ]
    assert distances[0] > distances[1] > distances[2]  # it learns to imitate the context


def test_a_subclass_trains_and_keeps_its_argument(folder: Path) -> None:
    small = ["--model.network.width=8", "--model.network.latent_size=3", "--model.noise=0.5"]
    batches = ["--data.batches.inner_size=16", "--data.batches.outer_size=16", "--data.path=small"]
    quickstart = str(ROOT / "configs" / "quickstart.yaml")
    command = ["fit", "--config", quickstart, "--model", "noisy_macaw.NoisyMacaw"]
    empty = ["--trainer.callbacks=null", "--checkpoint.every_n_train_steps=4"]
    cli.main([*command, *small, *batches, *empty, *SHORT])
    (path,) = folder.glob("runs/*/checkpoints/last.ckpt")
    method = offline_meta_rl.load(path)
    assert type(method).__name__ == "NoisyMacaw"
    assert method.noise == 0.5
    assert method.settings.network.width == 8


def test_predict_needs_no_simulator(folder: Path) -> None:
    arguments = ["fit", "--model=Macaw", "--model.observation_size=2", "--model.action_size=2"]
    arguments += ["--model.network.width=8", "--model.network.latent_size=3", "--data=TaskBuffers"]
    arguments += ["--data.env=point_robot", "--data.path=small", "--trainer.default_root_dir=run"]
    arguments += ["--data.batches.inner_size=16", "--data.batches.outer_size=16"]
    cli.main([*arguments, *SHORT])
    make_dataset(folder / "new", num_tasks=2, test_tasks=(1,), observation_size=2, seed=5)
    code = (
        "import sys; sys.modules.update(mujoco=None, gymnasium=None)\n"
        "from offline_meta_rl.cli import main\n"
        "main(['predict', '--ckpt_path', 'run/checkpoints/last.ckpt', '--data.path', 'new'])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    written = {path.name for path in (folder / "run" / "policies" / "task_1").iterdir()}
    assert written == {"policy.pt", "policy.pt2"}
