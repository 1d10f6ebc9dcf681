"""Meta-trajectories gathered from an image dataset, step by step beside each other.

Small datasets are copied into memory or onto a device; larger ones stay memory-mapped, and their
checksums are checked chunk by chunk as rows are used. Images stay uint8. Shapes: B meta-
trajectories, K episodes of each, H steps of the longest, S = K (H + 1) positions.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

from datamodules.sampling.stitch import Rows, Segments, align
from offline_meta_rl.data.dataset import TaskDataset
from offline_meta_rl.data.manifest import FINAL_KEY

STORED = ("observation", "action", "reward")


class EpisodeTable:
    """The episodes of an image dataset.

    Args:
        dataset: Dataset of the episodes.
        first_reward: Position of each episode at which its first reward arrives, [E].
        device: Where the data goes; None leaves it memory-mapped.
    """

    def __init__(
        self, dataset: TaskDataset, first_reward: Rows, device: torch.device | None
    ) -> None:
        self.dataset = dataset
        self.device = device
        self.first_reward = first_reward
        self._start = dataset.episodes["start"].numpy()
        self._length = dataset.episodes["length"].numpy()
        self.horizon = int(self._length.max())
        self._columns: dict[str, Tensor] = {key: dataset.transitions[key] for key in STORED}
        self._columns[FINAL_KEY] = dataset.episodes[FINAL_KEY]
        if device is not None:
            dataset.touch([*STORED, FINAL_KEY])
            # A copy also on the CPU, so that no file is behind it.
            self._columns = {
                key: column.clone() if device.type == "cpu" else column.to(device)
                for key, column in self._columns.items()
            }

    def gather(self, segments: Segments) -> TensorDict:
        """Return meta-trajectories; every position holds what an agent knows at that time.

        An action stands at the position of the observation it led to, beside the relabelled reward
        that arrived with it; both are 0 at the first observation of an episode and in padding.

        Args:
            segments: Episodes and targets of B meta-trajectories.

        Returns:
            TensorDict [B]: observation [B, S, C, h, w] uint8, action [B, S, A], reward [B, S],
            mask [B, S] (False in the padding of shorter episodes), segment_task [B, K], task [B],
            first_reward [B, K] (position within each episode at which its first reward arrives in
            the data, before relabelling; one beyond its last if there is none).

        Raises:
            ValueError: Rows of a damaged chunk of a memory-mapped file.
        """
        count = len(segments.task)
        start, length = self._start[segments.episode], self._length[segments.episode]
        where = align(start, length, self.horizon)
        if self.device is None:
            self.dataset.touch(["observation"], where.observation)
            self.dataset.touch(["action", "reward"], where.action)
            self.dataset.touch([FINAL_KEY], segments.episode)
        acted = self._index(where.acted)
        # I{i_j = i*} r of section 3.5: a segment of another task earns nothing.
        kept = self._index(where.acted & segments.keep[..., None])
        observation = self._rows("observation", where.observation)
        final = self._index(np.flatnonzero(where.final))
        # Images are stored once, and the one after an episode's last step has no row: it lies
        # beside the episodes.
        observation.index_copy_(0, final, self._rows(FINAL_KEY, segments.episode))
        action, reward = (self._rows(key, where.action) for key in ("action", "reward"))
        tensors = {
            "observation": observation.view(count, -1, *observation.shape[1:]),
            "action": (action * acted.view(-1, 1)).view(count, -1, action.shape[-1]),
            "reward": (reward * kept.view(-1)).view(count, -1),
            "mask": self._index(where.mask).view(count, -1),
            "segment_task": self._index(segments.segment_task),
            "task": self._index(segments.task),
            "first_reward": self._index(self.first_reward[segments.episode]),
        }
        return TensorDict(tensors, batch_size=[count], device=self.device)

    def _rows(self, key: str, rows: Rows) -> Tensor:
        """Return rows of a column, flat."""
        return self._columns[key].index_select(0, self._index(rows.reshape(-1)))

    def _index(self, values: NDArray[np.generic]) -> Tensor:
        """Bring an array of indices or flags to the data."""
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if self.device is None or self.device.type == "cpu":
            return tensor
        # Pinned, so that the copy does not wait for what the device is doing.
        return tensor.pin_memory().to(self.device, non_blocking=True)
