"""What a dataset holds, stage by stage, as a Markdown table.

The share of a return is its place between uniform random actions (0) and the mean action of the
best stage (1).
"""

import torch

from offline_meta_rl.behaviour.collect import collect, default_dataset_path
from offline_meta_rl.data.dataset import TaskDataset
from offline_meta_rl.data.description import policy_returns, stage_returns
from offline_meta_rl.envs import FAMILIES
from offline_meta_rl.reports.tables import markdown_table

HEADER = ("", "mean action", "share", "sampled actions (the data)", "share", "steps per episode")


def print_dataset(data: str) -> None:
    """Print a dataset's stages and reference returns as Markdown.

    The data of a built-in family are collected first, unless they are there.

    Args:
        data: A task family's short name, such as ``ant_dir``, or a dataset's folder.

    Raises:
        FileNotFoundError: It is neither.
    """
    if data in FAMILIES:
        family = FAMILIES[data]
        print(dataset_table(TaskDataset.open(collect(family, default_dataset_path(family)))))
    else:
        print(dataset_table(TaskDataset.open(data)))


def dataset_table(dataset: TaskDataset) -> str:
    """Return one Markdown row for each stage and each other reference, then what else is to say."""
    manifest = dataset.manifest
    references = {
        name: torch.tensor(values, dtype=torch.float64).mean().item()
        for name, values in policy_returns(manifest.reference_returns).items()
    }
    random, best = references["random"], references["best_behaviour"]
    returns = dataset.returns_to_go(1.0)[dataset.episodes["start"]]
    rows = []

    def share(value: float) -> str:
        return f"{round((value - random) / (best - random), 2) + 0.0:.2f}"  # no -0.00

    for index, name in enumerate(manifest.stages):
        mean = float(torch.tensor(stage_returns(manifest.reference_returns)[name]).mean())
        chosen = dataset.episodes["stage"] == index
        sampled = float(returns[chosen].mean())
        length = float(dataset.episodes["length"][chosen].float().mean())
        numbers = (f"{mean:.1f}", share(mean), f"{sampled:.1f}", share(sampled), f"{length:.0f}")
        rows.append([name, *numbers])
    for name, label in (("random", "random actions"), ("standing_still", "standing still")):
        if name in references:
            value = references[name]
            rows.append([label, f"{value:.1f}", share(value), "", "", ""])
    text = markdown_table(HEADER, rows)
    if "success" in references:
        shares = ", ".join(
            f"{value:.1%}" for value in policy_returns(manifest.reference_returns)["success"]
        )
        text += f"\n\nEpisodes of the script that succeed, by task: {shares}."
    worst = min(policy_returns(manifest.reference_returns)["best_behaviour"])
    fewest = min(manifest.num_transitions)
    return f"{text}\n\nBest stage on its worst task: {worst:.1f}. Transitions per task: {fewest}+."
