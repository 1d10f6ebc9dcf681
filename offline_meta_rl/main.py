"""Where the command starts: one word chooses what is run, and only that is imported.

``lightning --help`` and the tools for datasets and experiments answer in less than a second,
because neither PyTorch nor Lightning is imported for them.
"""

import sys
from collections.abc import Sequence

from offline_meta_rl.common.commands import Menu

DOORS = Menu(
    "lightning",
    "Offline meta-reinforcement learning: learn to adapt from fixed data of many tasks.",
    {
        "train and use": {
            "fit": "Meta-train a method on the data of a config.",
            "validate": "Measure losses and returns on held-out tasks, without training.",
            "test": "Measure a checkpoint in full and write results.json.",
            "predict": "Adapt a checkpoint to every held-out task and save the policies.",
            "finetune": "Fine-tune a checkpoint online, in the simulator, on its held-out tasks.",
        },
        "data": {
            "data": "Look at datasets, check, plot, convert, merge and split them.",
            "behaviour": "Collect datasets, and make the behaviour policies for them.",
        },
        "compare": {
            "experiment": "Run the figures and tables of a paper, and report them.",
            "report": "Print the tables and draw the pictures of a page of results.",
        },
    },
    example="lightning fit --config configs/quickstart.yaml\n"
    "lightning test --ckpt_path runs/quickstart/checkpoints/best.ckpt",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command.

    Args:
        arguments: The word that chooses it, and its options; None for the process's own.

    Raises:
        SystemExit: After help, and with one message about input that cannot be used.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    word, rest = DOORS.choose(given), given[1:]
    if word == "data":
        from offline_meta_rl.data_tools.command import data_command as data

        data(rest)
    elif word == "behaviour":
        from offline_meta_rl.behaviour.command import behaviour_command as behaviour

        behaviour(rest)
    elif word == "experiment":
        from offline_meta_rl.experiments.command import experiment_command as experiment

        experiment(rest)
    elif word == "report":
        from offline_meta_rl.reports.command import report_command as report

        report(rest)
    elif word == "finetune":
        from offline_meta_rl.finetune import finetune_command as finetune

        finetune(rest)
    else:
        from offline_meta_rl.cli import main as lightning

        lightning(given)
