"""A dataset as tensors, memory-mapped: what training, collecting and evaluating read.

All tasks are concatenated in the order (task, episode, time), so that a batch of T tasks with B
transitions each is one gather. Shapes: N transitions, E episodes, O/A observation/action size.
"""

from functools import cached_property
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor

from offline_meta_rl.data.description import FINAL_KEY, TRANSITION_KEYS
from offline_meta_rl.data.manifest import EPISODE_KEYS, Manifest
from offline_meta_rl.data.stored import StoredDataset

__all__ = ["EPISODE_KEYS", "TRANSITION_KEYS", "Manifest", "TaskDataset"]


class TaskDataset(StoredDataset):
    """A dataset opened for reading; make one with ``TaskDataset.open``.

    Attributes:
        path: The dataset's folder.
        manifest: What it holds.
        transitions: TensorDict [N], memory-mapped: observation [N, O], action [N, A], reward [N],
            next_observation [N, O], terminated [N] bool, truncated [N] bool. Images are [N, C, h,
            w] uint8 and stored once: there is no next_observation.
        episodes: TensorDict [E] of int64: task, stage, start (first row), length. Of images also
            final_observation [E, C, h, w] uint8, memory-mapped: the one after the last step.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Map the arrays; ``open`` also checks their content."""
        super().__init__(path, manifest)
        self.transitions = self._tensordict("transitions", manifest.transition_keys)
        of_episode = (*EPISODE_KEYS, FINAL_KEY) if manifest.has_images else EPISODE_KEYS
        self.episodes = self._tensordict("episodes", of_episode)

    @cached_property
    def episode_end(self) -> Tensor:
        """Last row of the episode each row belongs to, [N] int64."""
        last = self.episodes["start"] + self.episodes["length"] - 1
        return torch.repeat_interleave(last, self.episodes["length"])

    def returns_to_go(self, discount: float) -> Tensor:
        """Return R_t = r_t + discount * R_{t+1}, [N] float32, with R = 0 after an episode's end.

        A truncated episode ends like any other: nothing is bootstrapped. One pass backwards in
        time over all episodes together, summed in double precision.
        """
        self.touch(["reward"])
        reward = self.transitions["reward"]
        length, order = torch.sort(self.episodes["length"], descending=True, stable=True)
        last = (self.episodes["start"] + self.episodes["length"] - 1)[order]
        # Episodes are sorted by length, so those with more than k steps are always the first ones.
        steps = torch.arange(int(length[0]))
        active = torch.searchsorted(-length, -steps, right=False)
        result = torch.empty(len(self), dtype=torch.float32)
        carry = torch.zeros(len(length), dtype=torch.float64)
        for step, count in enumerate(active.tolist()):
            rows = last[:count] - step
            carry[:count] = reward[rows] + discount * carry[:count]
            result[rows] = carry[:count].float()
        return result

    def terminal_discount(self, discount: float) -> Tensor:
        """Return discount ** k, [N] float32; k steps from a row to its episode's end, 1 at the end.

        With ``next_observation[episode_end]`` this is what a bootstrap at the end of the data
        needs: R_t + discount ** k * V(terminal observation).
        """
        steps = self.episode_end - torch.arange(len(self)) + 1
        return torch.pow(torch.tensor(discount, dtype=torch.float64), steps).float()

    def _tensordict(self, group: str, keys: tuple[str, ...]) -> TensorDict:
        tensors = {key: torch.from_numpy(self.values(f"{group}/{key}")) for key in keys}
        return TensorDict(tensors, batch_size=[len(tensors[keys[0]])])
