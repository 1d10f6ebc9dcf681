"""Print what a dataset holds, stage by stage, as a Markdown table.

``lightning report dataset ant_dir`` collects the data of a built-in family first, unless it is
there; ``lightning report dataset FOLDER`` reads any dataset. The share of a return is its place
between uniform random actions (0) and the mean action of the best stage (1).
"""

import torch

from offline_meta_rl.data.dataset import TaskDataset


def describe(dataset: TaskDataset) -> str:
    """Return a Markdown table: one row for each stage, then the other reference returns."""
    manifest = dataset.manifest
    references = {
        name: torch.tensor(values, dtype=torch.float64).mean().item()
        for name, values in manifest.reference_returns.items()
        if name != "stages"
    }
    random, best = references["random"], references["best_behaviour"]
    returns = dataset.returns_to_go(1.0)[dataset.episodes["start"]]
    lines = [
        "| | mean action | share | sampled actions (the data) | share | steps per episode |",
        "|---|---|---|---|---|---|",
    ]

    def share(value: float) -> str:
        return f"{round((value - random) / (best - random), 2) + 0.0:.2f}"  # no -0.00

    for index, name in enumerate(manifest.stages):
        mean = float(torch.tensor(manifest.reference_returns["stages"][name]).mean())
        chosen = dataset.episodes["stage"] == index
        sampled = float(returns[chosen].mean())
        length = float(dataset.episodes["length"][chosen].float().mean())
        lines.append(
            f"| {name} | {mean:.1f} | {share(mean)} | {sampled:.1f} | {share(sampled)} "
            f"| {length:.0f} |"
        )
    for name, label in (("random", "random actions"), ("standing_still", "standing still")):
        if name in references:
            value = references[name]
            lines.append(f"| {label} | {value:.1f} | {share(value)} | | | |")
    if "success" in references:
        shares = ", ".join(f"{value:.1%}" for value in manifest.reference_returns["success"])
        lines.append(f"\nEpisodes of the script that succeed, by task: {shares}.")
    worst = min(manifest.reference_returns["best_behaviour"])
    fewest = min(manifest.num_transitions)
    lines.append(f"\nBest stage on its worst task: {worst:.1f}. Transitions per task: {fewest}+.")
    return "\n".join(lines)
