"""Checks of a method against the datamodule that it trains on; before the first step."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from offline_meta_rl.data.contracts import DataSizes, HasSizes, TaskData
from offline_meta_rl.data.dataset import TaskDataset
from offline_meta_rl.evaluation.contracts import HasHparams


def settings_of(datamodule: object) -> Mapping[str, object]:
    """Return the arguments that a datamodule was made with; none if it does not keep them."""
    return datamodule.hparams if isinstance(datamodule, HasHparams) else {}


def check_discount(datamodule: object, discount: float) -> None:
    """Check that a method bootstraps with the discount that the data's returns have.

    Raises:
        ValueError: The datamodule has another discount.
    """
    found = settings_of(datamodule).get("discount", discount)
    if found != discount:
        raise ValueError(
            f"The module was built for discount {discount}, the data has {found}. "
            f"Set the model's discount to {found}, or --data.init_args.discount={discount}."
        )


def check_sizes(sizes: Mapping[str, object], datamodule: object) -> None:
    """Check that a method was built for the data's sizes.

    Args:
        sizes: a method's settings, ``observation_size`` and the like among them.
        datamodule: The datamodule that the method trains on.

    Raises:
        ValueError: a size that differs.
    """
    if not isinstance(datamodule, HasSizes):
        return
    stated = asdict(datamodule.sizes())
    for name in DataSizes.names():
        own, found = sizes.get(name), stated[name]
        # Checkpoints keep plain types, so a shape may come back as a list.
        own = tuple(own) if isinstance(own, list) else own
        if own is not None and found is not None and own != found:
            raise ValueError(
                f"The module was built for {name} {own}, the data has {found}. "
                f"Set --model.init_args.{name}={found}, or pass other data."
            )


def check_fields(wanted: Sequence[str], datamodule: object) -> None:
    """Check that batches will hold the fields that a method needs.

    Raises:
        ValueError: Names the fields expected and found, and the fix.
    """
    fields = settings_of(datamodule).get("fields")
    found = list(fields) if isinstance(fields, list | tuple) else []
    if found and not set(wanted) <= set(found):
        raise ValueError(
            f"Expected batches with the fields {list(wanted)}, found {found}. Set "
            f"--data.init_args.fields='[{', '.join(wanted)}]'."
        )


def check_shared_settings(model: Mapping[str, object], data: Mapping[str, object]) -> None:
    """Check that settings of one name have one value in a method and its datamodule.

    Raises:
        ValueError: A setting has two values.
    """
    for name in sorted(set(model) & set(data)):
        if not name.startswith("_") and model[name] != data[name]:
            raise ValueError(
                f"Expected one value of {name}, because loggers keep it once, found {model[name]} "
                f"in the model and {data[name]} in the data. Set "
                f"--data.init_args.{name}={model[name]}."
            )


def dataset_identity(dataset: TaskDataset) -> dict[str, str]:
    """Return the identity of a dataset, as checkpoints store it."""
    return {"environment": dataset.manifest.environment["id"], "checksum": dataset.checksum}


def check_same_data(trained: Mapping[str, str] | None, datamodule: object) -> None:
    """Check that a checkpoint was trained on a datamodule's dataset, as far as both say.

    Args:
        trained: ``Checkpoint.dataset``.
        datamodule: The datamodule that the checkpoint is used with.

    Raises:
        ValueError: Says what differs.
    """
    if trained is None or not isinstance(datamodule, TaskData):
        return
    dataset = datamodule.dataset
    for name, found in dataset_identity(dataset).items():
        if trained[name] != found:
            raise ValueError(
                f"The checkpoint was trained on data with {name} {trained[name]}, found data with "
                f"{name} {found} in {dataset.path}. Pass the data it was trained on "
                "(--data.path), or a checkpoint of these data."
            )
