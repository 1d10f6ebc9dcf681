"""A Weights & Biases sweep whose parameter is the number of a run in the plan."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from offline_meta_rl.experiments.specification import Experiment

ARGUMENTS = "${args}"  # W&B puts --index=NUMBER here


def sweep_file(
    experiment: Experiment, name: str, count: int, selection: Mapping[str, Sequence[Any]]
) -> str:
    """Return the YAML of a grid over all runs; each of its agents does one run at a time.

    Args:
        experiment: what is run.
        name: as on the command line.
        count: runs of the plan.
        selection: option -> values, the same that the plan was made with.
    """
    options = [
        str(part)
        for option, values in selection.items()
        if values
        for part in (f"--{option}", *values)
    ]
    command = ["lightning", "experiment", "run", name, *options, ARGUMENTS]
    content = {
        "name": f"{experiment.name}: {experiment.title}",
        "program": "lightning",
        "method": "grid",
        "parameters": {"index": {"values": list(range(count))}},
        "command": command,
    }
    return yaml.safe_dump(content, sort_keys=False)
