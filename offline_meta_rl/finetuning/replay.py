"""Replays of T tasks as one block of memory: whole episodes go in, batches of rows come out.

Every task has its own ring of ``capacity`` rows. Monte-Carlo returns are computed when an episode
is complete, and belong to its rows from then on. Shapes: T tasks, B transitions, H steps, O/A
observation/action size.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Columns = Mapping[str, Tensor]
"""Fields of transitions: observation and next_observation [T, B, O], action [T, B, A], reward,
terminated, return_to_go [T, B]; terminal_observation [T, B, O] and terminal_discount [T, B], what a
bootstrap at the end of the transition's episode needs."""

FIELDS = (
    "observation",
    "action",
    "reward",
    "next_observation",
    "terminated",
    "return_to_go",
    "terminal_observation",
    "terminal_discount",
)


class OnlineReplay:
    """One ring of transitions for each task.

    Args:
        num_tasks: T.
        capacity: Rows of each task; the oldest are overwritten.
        fields: What to keep of a transition, of ``FIELDS``.
        observation_size: O.
        action_size: A.
        device: Device that the rows are kept on.

    Raises:
        ValueError: An unknown field.
    """

    def __init__(
        self,
        num_tasks: int,
        capacity: int,
        fields: Sequence[str],
        *,
        observation_size: int,
        action_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        unknown = sorted(set(fields) - set(FIELDS))
        if unknown:
            raise ValueError(f"Unknown fields {unknown}: expected some of {list(FIELDS)}.")
        self.num_tasks, self.capacity = num_tasks, capacity
        self.size = torch.zeros(num_tasks, dtype=torch.int64)
        self.position = torch.zeros(num_tasks, dtype=torch.int64)
        self.columns: dict[str, Tensor] = {}
        for name in fields:
            shape: tuple[int, ...] = ()
            if name.endswith("observation"):
                shape = (observation_size,)
            elif name == "action":
                shape = (action_size,)
            dtype = torch.bool if name == "terminated" else torch.float32
            self.columns[name] = torch.zeros(
                num_tasks, capacity, *shape, dtype=dtype, device=device
            )

    @property
    def filled(self) -> int:
        """Rows in use of the fullest ring."""
        return int(self.size.max())

    def add(self, rows: Columns, kept: Tensor) -> None:
        """Append rows [T, B, ...] of every task where ``kept`` [T, B] is true, in their order.

        Raises:
            ValueError: More rows at once than a ring holds.
        """
        counts = kept.sum(dim=1)
        if int(counts.max()) > self.capacity:
            raise ValueError(
                f"Expected at most {self.capacity} transitions of a task at once, the replay's "
                f"size, found {int(counts.max())}. Raise replay_size."
            )
        task, row = kept.nonzero(as_tuple=True)
        # The n-th kept row of a task goes n places behind the ring's position.
        rank = kept.cumsum(dim=1)[task, row] - 1
        slot = (self.position[task] + rank) % self.capacity
        for name, column in self.columns.items():
            place = column.device
            new = rows[name].to(place)[task.to(place), row.to(place)]
            column[task.to(place), slot.to(place)] = new.to(column.dtype)
        self.position = (self.position + counts) % self.capacity
        self.size = (self.size + counts).clamp_max(self.capacity)

    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Return row numbers of U batches of B rows of every task, [U, T, B].

        Uniform and independent, from the rows each task has.

        Args:
            shape: (U, B).
            generator: Source of randomness, on the CPU.

        Raises:
            ValueError: a task without rows.
        """
        if not (self.size > 0).all():
            raise ValueError(
                f"Expected transitions of all {self.num_tasks} tasks in the replay, found "
                f"{self.size.tolist()}. Collect an episode of each first."
            )
        size = (shape[0], self.num_tasks, shape[1])
        # Double precision: the 2^24 numbers of a float32 would hit some rows of a large ring more
        # often than others.
        uniform = torch.rand(size, generator=generator, dtype=torch.float64)
        return (uniform * self.size[:, None]).long()

    def gather(
        self, rows: Tensor, names: Iterable[str], extra: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return fields of chosen rows.

        Args:
            rows: Row numbers, [T, B], on the replay's device.
            names: Names of the fields.
            extra: More columns of the same rows, [T, N, ...].

        Returns:
            Each [T, B, ...].
        """
        columns = {name: self.columns[name] for name in names} | dict(extra)
        flat = {
            length: self._flat(rows, length) for length in {c.shape[1] for c in columns.values()}
        }
        return {
            name: column.flatten(0, 1)
            .index_select(0, flat[column.shape[1]])
            .unflatten(0, rows.shape)
            for name, column in columns.items()
        }

    def _flat(self, rows: Tensor, length: int) -> Tensor:
        """Return where rows [T, B] are in columns of ``length`` rows, all tasks after another."""
        first = torch.arange(self.num_tasks, device=rows.device) * length
        return (rows + first[:, None]).flatten()

    def state_dict(self) -> dict[str, Any]:
        """The rows in use, as tensors."""
        used = {name: column[:, : self.filled].cpu() for name, column in self.columns.items()}
        return {
            "columns": {name: column.clone() for name, column in used.items()},
            "size": self.size.clone(),
            "position": self.position.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        self.size, self.position = state["size"].clone(), state["position"].clone()
        for name, column in self.columns.items():
            column[:, : self.filled] = state["columns"][name].to(column.device)


def with_returns(episode: Columns, length: Tensor, discount: float) -> dict[str, Tensor]:
    """Add what is known only at an episode's end.

    Args:
        episode: observation, action, reward, next_observation, terminated of one episode of every
            task, padded to H steps, [T, H, ...].
        length: Steps of each episode, [T].
        discount: gamma, per step.

    Returns:
        The same and ``return_to_go`` [T, H], plain Monte-Carlo whether an episode was truncated or
        not; ``terminal_observation`` [T, H, O], the last of the episode; ``terminal_discount`` [T,
        H], gamma^k with k = 1 in the last row. Meaningless beyond an episode's length.
    """
    reward = episode["reward"]
    steps = torch.arange(reward.shape[1])
    inside = steps < length[:, None]
    result, carry = torch.zeros_like(reward), torch.zeros(len(reward), dtype=torch.float64)
    for step in reversed(steps.tolist()):
        # In double precision: the sum of a long episode would lose digits.
        carry = torch.where(inside[:, step], reward[:, step].double() + discount * carry, carry)
        result[:, step] = carry.to(reward.dtype)
    last = episode["next_observation"][torch.arange(len(reward)), length - 1]
    # k counts the steps up to the last observation: 1 in the last row.
    left = (length[:, None] - steps).clamp_min(0)
    return {
        **episode,
        "return_to_go": result,
        "terminal_observation": last[:, None].expand_as(episode["next_observation"]),
        "terminal_discount": torch.pow(
            torch.tensor(discount, dtype=torch.float64), left.double()
        ).to(reward.dtype),
    }
