"""What docs/add_a_task_family.md tells a user to do works as written."""

import json
import re
import subprocess
import sys
from pathlib import Path

from offline_meta_rl.data.dataset import TaskDataset

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add_a_task_family.md"


def write_blocks(folder: Path) -> list[str]:
    """Write every code block that begins with a file name; return the names."""
    names = []
    blocks = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for name, code in blocks:
        (folder / name).write_text(code)
        names.append(name)
    return names


def test_a_family_from_outside_trains_and_evaluates(tmp_path: Path) -> None:
    assert write_blocks(tmp_path) == ["targets.py", "write_targets.py", "macaw_targets.yaml"]
    subprocess.run([sys.executable, "write_targets.py"], cwd=tmp_path, check=True)
    dataset = TaskDataset.open(tmp_path / "targets_data", verify=True)
    assert dataset.manifest.num_transitions == [4 * 20 * 20] * 6
    assert dataset.split() == ([0, 1, 3, 4], [2, 5])
    returns = dataset.manifest.reference_returns
    assert all(a < b for a, b in zip(returns["random"], returns["best_behaviour"], strict=True))
    short = ["--trainer.max_steps=4", "--trainer.val_check_interval=4", "--trainer.logger=false"]
    command = [sys.executable, "-m", "offline_meta_rl", "fit", "--config", "macaw_targets.yaml"]
    result = subprocess.run([*command, *short], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    results = json.loads((tmp_path / "runs" / "macaw_targets" / "results.json").read_text())
    assert set(results["after_adaptation"]["per_task"]) == {"2", "5"}
    assert results["dataset_checksum"] == dataset.checksum
