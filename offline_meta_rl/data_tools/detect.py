"""Which format data is in, and opening it as a source."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from offline_meta_rl.data.manifest import MANIFEST_FILE
from offline_meta_rl.data.remote import local_dataset
from offline_meta_rl.data.source import TaskSource
from offline_meta_rl.data_tools.describe import FILE_NAMES, DescriptionFile, read_settings


def format_of(folder: Path) -> str:
    """Return the format of the data in a folder.

    Raises:
        FileNotFoundError: There is no folder, or nothing in it that could be data.
    """
    if (folder / MANIFEST_FILE).is_file():
        return "native"
    if folder.is_dir():
        # MACAW's files are HDF5 too, so look for their names before any HDF5 file.
        if any(folder.glob("buffers_*_sub_task_0.hdf5")):
            return "macaw"
        if next(folder.rglob("metadata.json"), None) is not None:
            return "minari"
        if any(file.suffix in (".npz", ".hdf5", ".h5") for file in folder.iterdir()):
            return "folder"
    raise FileNotFoundError(
        f"No data at {folder}: expected a dataset ({MANIFEST_FILE}), Minari datasets, MACAW's "
        "buffers_*.hdf5 or a folder of NPZ or HDF5 files. Pass the folder that holds them."
    )


def open_source(
    path: str,
    *,
    form: str | None = None,
    description: Path | None = None,
    options: Mapping[str, object] | None = None,
    stride: int = 1,
    pickles: Path | None = None,
) -> TaskSource:
    """Open data of any format.

    Args:
        path: Folder of the data, or the URL of a dataset.
        form: "native", "minari", "macaw" or "folder"; None to look.
        description: File that describes data of others; None for the one in the folder, if any.
        options: Keys of a description that take precedence over the file.
        stride: Keep every k-th episode of MACAW's data.
        pickles: Folder of MACAW's task pickles.

    Raises:
        FileNotFoundError: There is nothing at the path.
        ValueError: The data is damaged, or something must be described.
        ImportError: A package is not installed.
    """
    folder = local_dataset(path)
    form = form or format_of(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"No folder at {folder}; pass the folder that holds the data.")
    if form != "macaw" and (stride != 1 or pickles is not None):
        raise ValueError(
            f"--stride and --task_pickles are for MACAW's data; {path} is {form}. Leave them out."
        )
    if form == "native":
        from offline_meta_rl.data.stored import StoredDataset
        from offline_meta_rl.data_tools.formats.native import EpisodeSource

        if options or description:
            raise ValueError(
                f"{path} describes itself; leave out {', '.join(options or FILE_NAMES)}."
            )
        return EpisodeSource.whole(StoredDataset.open(folder))
    settings = read_settings(description, folder) | cast(DescriptionFile, dict(options or {}))
    if form == "minari":
        from offline_meta_rl.data_tools.formats.minari_read import MinariFolder

        return MinariFolder(folder, settings)
    if form == "macaw":
        from offline_meta_rl.data_tools.formats.macaw_hdf5 import MacawFolder

        return MacawFolder(folder, settings, stride=stride, pickles=pickles)
    from offline_meta_rl.data_tools.formats.plain_folder import PlainFolder

    return PlainFolder(folder, settings)
