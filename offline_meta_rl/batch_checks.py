"""Checks of a method against the datamodule that it trains on; before the first step."""

from typing import Any


def check_one_hot_tasks(datamodule: Any, one_hot_tasks: int) -> None:
    """Check the number of tasks of a one-hot code.

    Raises:
        ValueError: the dataset has another number of tasks.
    """
    dataset = getattr(datamodule, "dataset", None)
    if dataset is not None and dataset.manifest.num_tasks != one_hot_tasks:
        raise ValueError(
            f"The module was built for {one_hot_tasks} tasks, the data has "
            f"{dataset.manifest.num_tasks}. Set --model.init_args.one_hot_tasks="
            f"{dataset.manifest.num_tasks}."
        )


def check_discount(datamodule: Any, discount: float) -> None:
    """Check that a method bootstraps with the discount that the data's returns have.

    Raises:
        ValueError: the datamodule has another discount.
    """
    found = getattr(datamodule, "hparams", {}).get("discount", discount)
    if found != discount:
        raise ValueError(
            f"The module was built for discount {discount}, the data has {found}. "
            f"Set --model.init_args.discount={found}, or --data.init_args.discount={discount}."
        )
