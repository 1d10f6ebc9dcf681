"""Each task's lifetime replay: what an agent of that task alone saw, from its first step on.

One environment of every task is stepped with that task's agent, and its replay lies in memory-
mapped arrays on the disk, from which batches are drawn. When the lifetimes are over the arrays
become a dataset like any other, whose stages are equal parts of the lifetime.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from tensordict import TensorDict
from torch import Tensor

from datamodules.lifetime_checks import (
    check_fresh_start,
    check_lifetime,
    check_same_lifetimes,
    check_trainer,
    write_progress,
)
from datamodules.lifetime_references import lifetime_references, mean_action_returns
from datamodules.lifetimes import Lives, lifetime_storage, lifetime_writer, transition_columns
from datamodules.preparation import check_vector_family
from datamodules.replay import Replay, ReplayModule, agents_of
from offline_meta_rl.behaviour.references import Measurement
from offline_meta_rl.behaviour.shaping import ShapedReward, Shaping
from offline_meta_rl.common.provenance import derived_seed
from offline_meta_rl.data.contracts import DataSizes
from offline_meta_rl.data.lifetimes import LifetimeStorage, commit_lifetimes
from offline_meta_rl.data.writer import DatasetWriter, dataset_lock
from offline_meta_rl.envs import FAMILIES
from offline_meta_rl.envs.base import Engine


class LifetimeBuffers(ReplayModule):
    """Replays of independent agents, one for each task; see ``SAC`` with ``agents: per_task``.

    Every batch takes one step in every environment first. With L steps in a lifetime, W of them
    random, there are (L - W) * updates_per_step updates; the dataset is written after the last.

    Args:
        family: Short name of the task family.
        lifetime_steps: L, environment steps in each task, the random ones included.
        path: Folder of the finished dataset; None for ``dataset`` below the run's folder. The
            replays are in ``<path>.partial`` until then.
        tasks: Indices of the tasks; None for all. The dataset numbers them anew, in this order.
        stages: Equal parts of the lifetime, called ``stage_0``, ..., ``expert`` in the dataset.
        seed: Seed of initial states, noise and the replays' draws.
        task_seed: Seed of the task parameters.
        replay: How each replay is filled and drawn from.
        shaping: The reward that the agents see.
        steps_per_epoch: Batches Lightning calls an epoch.
        num_threads: Threads of the simulator's pool; None for one per core.

    Raises:
        ValueError: An unknown family, one with images, or an impossible lifetime.
    """

    def __init__(
        self,
        *,
        family: str,
        lifetime_steps: int,
        path: str | None = None,
        tasks: list[int] | None = None,
        stages: int = 5,
        seed: int = 0,
        task_seed: int = 0,
        replay: Replay = Replay(),
        shaping: Shaping = Shaping(),
        steps_per_epoch: int = 1000,
        num_threads: int | None = None,
    ) -> None:
        super().__init__(steps_per_epoch)
        self.save_hyperparameters()
        if family not in FAMILIES:
            raise ValueError(f"family: expected one of {sorted(FAMILIES)}, found {family!r}.")
        self.family = FAMILIES[family]
        check_vector_family(self.family)
        self.tasks: Sequence[int] = tuple(range(self.family.num_tasks) if tasks is None else tasks)
        check_lifetime(self.family, self.tasks, lifetime_steps, replay.warmup_steps, stages)
        self.lives = Lives(
            self.family, self.tasks, lifetime_steps, stages, seed, task_seed, num_threads
        )
        self.num_agents, self.parameters = len(self.tasks), self.lives.parameters
        self.seed, self.task_seed, self.given_path = seed, task_seed, path
        self.replay, self.shaping = replay, shaping
        self.shaped = ShapedReward(self.family, shaping)
        self.stage_returns: list[list[float]] = []
        self.storage: LifetimeStorage | None = None
        self.observation: Tensor
        self.engine: Engine
        self.generator: torch.Generator
        self._writer: DatasetWriter
        self._restored: dict[str, Any] | None = None
        self._held = contextlib.ExitStack()

    def sizes(self) -> DataSizes:
        """Return the family's sizes, with the number of trained tasks."""
        return replace(self.family.sizes(), num_tasks=self.num_agents)

    @property
    def planned_updates(self) -> int:
        """Updates until the lifetimes are over."""
        return (self.lives.steps - self.replay.warmup_steps) * self.replay.updates_per_step

    @property
    def evaluation(self) -> Measurement:
        """How reference returns are measured."""
        return self.lives.evaluation

    def setup(self, stage: str | None = None) -> None:
        """Check that one process trains, no longer than the lifetimes, towards a new dataset.

        Raises:
            ValueError: Several processes, or more updates than the lifetimes hold.
            FileExistsError: The dataset is there already.
        """
        if stage == "fit" and self.trainer is not None:
            root = Path(self.trainer.default_root_dir)
            self.path = Path(self.given_path) if self.given_path else root / "dataset"
            check_trainer(self.trainer, self.planned_updates, self.path)

    def train_dataloader(self) -> Self:
        """Open the replays, where the restored checkpoint left them; return the loader, itself.

        Raises:
            ValueError: They do not belong to the checkpoint, or to these settings.
            FileExistsError: There are replays, and no checkpoint to go on from.
        """
        if self.storage is None:
            self._held.enter_context(dataset_lock(self.path))
            agents = agents_of(self.trainer)
            self._writer = lifetime_writer(self.lives, self.path, agents, dict(self.hparams))
            folder = self._writer.partial / "lifetimes"
            self.storage = lifetime_storage(self.lives, self.shaping, folder)
            self._start(self.storage)
        return self

    def _start(self, storage: LifetimeStorage) -> None:
        """Make the simulator; begin new lifetimes, or go on with those of the checkpoint."""
        self.engine = self.family.make_engine(
            self.parameters, seed=self.seed, num_threads=self.lives.num_threads
        )
        self.generator = torch.Generator().manual_seed(derived_seed(self.seed, 1))
        if self._restored is None:
            updates = self.trainer.global_step if self.trainer else 0
            check_fresh_start(self._writer.partial, storage, updates)
            self.observation = torch.from_numpy(self.engine.reset())
            return
        state, self._restored = self._restored, None
        self.env_steps = state["env_steps"]
        fingerprint = state["fingerprint"]
        check_same_lifetimes(self._writer.partial, storage, self.env_steps, fingerprint)
        self.stage_returns = [list(values) for values in state["stage_returns"]]
        self.observation = state["observation"].clone()
        self.engine.load_state_dict(state["engine"])
        self.generator.set_state(state["generator"].cpu())

    def __iter__(self) -> Iterator[TensorDict]:
        """Yield batches [updates_per_step, T, batch_size] until the lifetimes are over."""
        storage = self._open()
        while self.env_steps < self.replay.warmup_steps:
            self.step(storage)
        for _ in range(len(self)):
            if self.env_steps == self.lives.steps:
                return
            self.step(storage)
            yield self.batch(storage)

    @torch.no_grad()
    def step(self, storage: LifetimeStorage) -> None:
        """Take one step in every environment and keep it."""
        size = (self.num_agents, self.family.action_size)
        if self.env_steps < self.replay.warmup_steps:
            action = 2 * torch.rand(size, generator=self.generator) - 1
        else:
            noise = torch.randn(size, generator=self.generator)
            agents = agents_of(self.trainer)
            action = agents.act(self.observation[:, None], noise[:, None])[:, 0]
        result = self.engine.step(action.numpy())
        before = self.observation.numpy()
        columns = transition_columns(before, action.numpy(), result, storage.terms)
        # Every step is written, also where the simulator diverged: the dataset marks these, and
        # each replay has one row for each step.
        storage.write(self.env_steps, columns)
        ended = columns["terminated"].astype(bool) | columns["truncated"].astype(bool)
        following = self.engine.reset(ended) if ended.any() else result.observation
        self.observation = torch.from_numpy(following)
        self.env_steps += 1
        self._note_returns()

    def _note_returns(self) -> None:
        """Measure what the agents reach where a stage has ended; the last is measured later."""
        stages = len(self.lives.stages)
        stage = self.env_steps * stages // self.lives.steps
        if len(self.stage_returns) < stage < stages:
            self.stage_returns.append(mean_action_returns(self.lives, agents_of(self.trainer)))

    def batch(self, storage: LifetimeStorage) -> TensorDict:
        """Draw transitions [U, T, B] of each task from its own replay.

        The reward is the one that the task's agent sees now.
        """
        shape = (self.replay.updates_per_step, self.replay.batch_size)
        rows = storage.draw(shape, self.env_steps, self.generator)
        names = ("observation", "action", "reward", "next_observation", "terminated")
        batch = {name: storage.gather(name, rows) for name in names}
        if storage.terms:
            batch["reward"] = self.shaped.reward(storage.gather_terms(rows), self.env_steps)
        batch["reward"] = self.shaped.penalise_falls(batch["reward"], batch["terminated"])
        return TensorDict(batch, batch_size=rows.shape)

    def teardown(self, stage: str | None = None) -> None:
        """Write the dataset if the lifetimes are over and the agents have learned from them."""
        if stage == "fit" and self.storage is not None and self.trainer is not None:
            over = self.env_steps == self.lives.steps
            if over and self.trainer.global_step >= self.planned_updates:
                agents = agents_of(self.trainer)
                references = lifetime_references(self.lives, agents, self.stage_returns)
                commit_lifetimes(self._writer, self.storage, references)
            self._close()

    def on_exception(self, exception: BaseException) -> None:
        """Let go of the replays."""
        self._close()

    def state_dict(self) -> dict[str, Any]:
        """Counters, simulator and generator; the replays are on the disk when this returns."""
        if self.storage is None:
            return {}
        # Before the checkpoint: one that is ahead of the replays could not be resumed.
        self.storage.flush()
        write_progress(self.storage, self.env_steps)
        return {
            "env_steps": self.env_steps,
            "stage_returns": [list(values) for values in self.stage_returns],
            "fingerprint": self.storage.fingerprint(self.env_steps),
            "observation": self.observation.clone(),
            "engine": self.engine.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken, once the replays are opened.

        Lightning gives the same state twice, to the datamodule and to its loader.
        """
        if self.storage is None:
            self._restored = state_dict or None

    def _open(self) -> LifetimeStorage:
        """Return the replays, which ``train_dataloader`` opened.

        Raises:
            RuntimeError: It was not called.
        """
        if self.storage is None:
            raise RuntimeError("The replays are closed: call train_dataloader first.")
        return self.storage

    def _close(self) -> None:
        if self.storage is not None:
            self.engine.close()
            self.storage = None
        self._held.close()
