"""A small experiment on disk, and result files as finished runs leave them."""

import json
from pathlib import Path
from typing import Any

import yaml

from offline_meta_rl.experiments.plan import Run, plan
from offline_meta_rl.experiments.reading import load_experiment
from offline_meta_rl.experiments.specification import Experiment
from offline_meta_rl.experiments.states import begin, end

TASKS = ("3", "5")
STEPS = 8
CHECKSUM = "c0ffee"


def write_experiment(folder: Path, **changes: Any) -> Experiment:
    """Write an experiment of two arms and two families below ``folder/configs``."""
    own = folder / "configs" / "experiments" / "small"
    own.mkdir(parents=True)
    for name, method in (("ours", "Macaw"), ("theirs", "CQL")):
        for family in ("robot", "ant"):
            content = {"model": {"class_path": method}}
            (own.parents[1] / f"{name}_{family}.yaml").write_text(yaml.safe_dump(content))
    for name in ("all", "of_method", "of_family", "of_arm", "of_arm_and_scale"):
        (own / f"{name}.yaml").write_text("{}")
    content = {
        "title": "Ours against theirs",
        "families": ["robot", "ant"],
        "arms": {
            "ours": {
                "label": "Ours",
                "configs": ["ours_{family}"],
                "overlays": ["of_arm"],
                "scales": {"tiny": {"overlays": ["of_arm_and_scale"], "overrides": {"x": 3}}},
            },
            "theirs": {"label": "Theirs", "configs": ["theirs_{family}"]},
        },
        "scales": {
            "tiny": {
                "seeds": [0, 1, 2],
                "steps": STEPS,
                "evaluations": 2,
                "overlays": ["all"],
                "overrides": {"x": 1, "y": None},
                "methods": {"Macaw": {"overlays": ["of_method"], "overrides": {"x": 2}}},
                "families": {"ant": {"overlays": ["of_family"], "steps": 4}},
            }
        },
        **changes,
    }
    (own / "experiment.yaml").write_text(yaml.safe_dump(content))
    (own.parent / "shared").mkdir()
    (own.parent / "shared" / "shared.yaml").write_text("{}")
    return load_experiment(str(own / "experiment.yaml"))


def plan_of(experiment: Experiment, folder: Path, **selection: Any) -> list[Run]:
    """Return the plan at the small scale."""
    return plan(experiment, "tiny", folder / "runs", **selection)


def result(run: Run, scores: list[list[float]], **changes: Any) -> dict[str, Any]:
    """Return a result file's content; ``scores`` are normalised returns at each evaluation [P][T].

    The return is ten times the normalised return.
    """
    last = dict(zip(TASKS, scores[-1], strict=True))
    after = {
        "return": 10 * sum(scores[-1]) / len(TASKS),
        "per_task": {t: {"return": 10 * v, "normalised_return": v} for t, v in last.items()},
    }
    history = [
        {
            "step": place * run.steps // (len(scores) - 1),
            "after_normalised_return_per_task": dict(zip(TASKS, values, strict=True)),
            "after_return_per_task": {t: 10 * v for t, v in zip(TASKS, values, strict=True)},
        }
        for place, values in enumerate(scores)
    ]
    content = {
        "after_adaptation": after,
        "history": history,
        "method": f"offline_meta_rl.methods.{run.method}",
        "seed": run.seed,
        "global_step": run.steps,
        "protocol": {"split": "default", "episodes": 10, "adaptation_steps": [1]},
        "dataset_checksum": CHECKSUM + run.family,
        "environment": {"id": run.family},
        "commit": "abc",
        "config": {"model": {"temperature": 1.0}, "data": {"seed": run.seed}},
        "references": {"random": {"return": 0.0}, "best_behaviour": {"return": 10.0}},
    }
    return {**content, **changes}


def finish(run: Run, scores: list[list[float]], **changes: Any) -> None:
    """Leave a run's folder as a finished run does."""
    begin(run)
    (run.folder / "results.json").write_text(json.dumps(result(run, scores, **changes)))
    end(run, 0, 60.0)


def scores_of(run: Run) -> list[list[float]]:
    """Return scores that differ between arms and seeds; the middle evaluation is the best."""
    level = (0.8 if run.arm == "ours" else 0.3) + 0.01 * run.seed
    return [[0.0, 0.0], [level + 0.1, level + 0.2], [level, level + 0.1]]
