"""Beliefs on the disk: computed once for a filter, a dataset and settings, then read.

A file is named after a checksum of all that its beliefs depend on. It holds that, the beliefs, and
a checksum of the beliefs. It appears when it is complete; of several processes one computes, and
the others wait and read. Shapes: M meta-trajectories of S positions, Z belief size.
"""

import hashlib
import json
import logging
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from datamodules.sampling.stitched import StitchedEpisodes
from datamodules.sampling.transitions import CACHED
from offline_meta_rl.common.files import path_lock, replacing
from offline_meta_rl.common.settings import to_plain
from offline_meta_rl.data.arrays import checksum
from offline_meta_rl.networks.filter.beliefs import ROWS, beliefs_of, device_of
from offline_meta_rl.networks.filter.model import VariationalFilter

Identity = Mapping[str, object]
"""What beliefs depend on, as JSON types."""

_LOGGER = logging.getLogger(__name__)


def filter_identity(model: VariationalFilter) -> Identity:
    """Return a filter's identity: a checksum of its weights, and its settings."""
    return {"weights": tensor_checksum(model.state_dict()), "settings": to_plain(model.settings)}


def tensor_checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return one checksum of names, types, shapes and numbers of tensors."""
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        value = tensors[name].detach().cpu()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.numpy().tobytes())
    return found.hexdigest()


def compute_beliefs(
    model: VariationalFilter, stitched: StitchedEpisodes, count: int, seeds: list[int]
) -> TensorDict:
    """Return beliefs over drawn meta-trajectories, on the filter's device.

    Args:
        model: The filter.
        stitched: Draws the meta-trajectories.
        count: M.
        seeds: Numbers that the seed of the filter's noise is made from.

    Returns:
        TensorDict [M, S] of belief, action, reward and mask.
    """
    seed = int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0])
    # On the CPU, so that the noise is the same whichever device the filter is on.
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for batch in stitched.for_beliefs(count, ROWS):
        part = batch.select("action", "reward", "mask").to(device_of(model))
        part["belief"] = beliefs_of(model, batch, generator)
        parts.append(part)
    found: TensorDict = TensorDict.cat(parts)
    return found.auto_batch_size_(2)


def cached_beliefs(
    folder: Path, identity: Identity, compute: Callable[[], TensorDict]
) -> TensorDict:
    """Return beliefs from the disk, or compute and keep them.

    Args:
        folder: Where they are kept.
        identity: All that they depend on.
        compute: Returns them: TensorDict [M, S] of belief [M, S, Z], action, reward and mask.

    Raises:
        ValueError: The file is damaged, or of other beliefs.
    """
    file = folder / f"{checksum(json.dumps(identity, sort_keys=True).encode())}.pt"
    # Of several processes one computes; the others wait here, and find the file.
    with path_lock(file):
        if not file.is_file():
            computed = compute()
            tensors = {name: computed[name].cpu() for name in CACHED}
            content = {"identity": identity, "tensors": tensors}
            with replacing(file) as stream:
                torch.save({**content, "checksum": tensor_checksum(tensors)}, stream)
        else:
            _LOGGER.info("Beliefs are read from %s.", file)
    return _read(file, identity)


def _read(file: Path, identity: Identity) -> TensorDict:
    """Read a file of beliefs.

    Raises:
        ValueError: It is damaged, or of other beliefs.
    """
    try:
        # weights_only: reading a file must not run code.
        content = torch.load(file, map_location="cpu", weights_only=True)
        tensors, found = content["tensors"], content["identity"]
        whole = tensor_checksum(tensors) == content["checksum"]
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"{file}: expected cached beliefs, found a file that cannot be read. Delete it: they "
            f"will be computed again. {error}"
        ) from error
    if not whole or found != identity:
        raise ValueError(
            f"{file}: expected the beliefs that its checksum names, found others. The file is "
            "damaged. Delete it: they will be computed again."
        )
    return TensorDict(tensors, batch_size=tensors["mask"].shape)
