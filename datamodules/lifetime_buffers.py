"""Each task's lifetime replay: what an agent of that task alone saw, from its first step on.

One environment of every task is stepped with that task's agent, and its replay lies in memory-
mapped arrays on the disk, from which batches are drawn. When the lifetimes are over the arrays
become a dataset like any other, whose stages are equal parts of the lifetime.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from tensordict import TensorDict

from datamodules.lifetime_checks import (
    check_fresh_start,
    check_lifetime,
    check_same_lifetimes,
    check_trainer,
    write_progress,
)
from datamodules.lifetime_references import lifetime_references, mean_action_returns
from datamodules.lifetimes import lifetime_storage, lifetime_writer, transition_columns
from datamodules.preparation import check_vector_family
from offline_meta_rl.behaviour.collect import derived_seed
from offline_meta_rl.behaviour.shaping import RewardShaping
from offline_meta_rl.data.contracts import DataSizes
from offline_meta_rl.data.lifetimes import LifetimeStorage, commit_lifetimes
from offline_meta_rl.data.writer import dataset_lock
from offline_meta_rl.envs import FAMILIES
from offline_meta_rl.envs.base import Engine


class LifetimeBuffers(lightning.LightningDataModule):
    """Replays of independent agents, one for each task; see ``PerTaskSAC``.

    Every batch takes one step in every environment first. With L steps in a lifetime, W of them
    random, there are (L - W) * updates_per_step updates; the dataset is written after the last.

    Args:
        family: short name of the task family.
        lifetime_steps: L, environment steps in each task, those of ``warmup_steps`` included.
        path: folder of the finished dataset; None for ``dataset`` below the run's folder. The
            replays are in ``<path>.partial`` until then.
        tasks: indices of the tasks; None for all. The dataset numbers them anew, in this order.
        stages: equal parts of the lifetime, called ``stage_0``, ..., ``expert`` in the dataset.
        seed: of initial states, noise and the replay's draws.
        task_seed: of the task parameters.
        batch_size: transitions of each task per update.
        updates_per_step: updates for each step taken in all environments.
        warmup_steps: steps with uniform random actions before training.
        steps_per_epoch: batches Lightning calls an epoch.
        alive_bonus: of the reward the agents see; None for the family's.
        control_cost: of the reward the agents see, when annealing starts; None for the family's.
        anneal_steps: steps until the control cost is the family's own.
        fall_penalty: taken off the reward the agents see where an episode terminates.
        height_weight: of the term ``height`` in the reward the agents see, where there is one.
        num_threads: of the simulator's pool; None for one per core.
    """

    if TYPE_CHECKING:
        hparams: Any  # Lightning's type has no attributes

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
        batch_size: int = 256,
        updates_per_step: int = 1,
        warmup_steps: int = 1000,
        steps_per_epoch: int = 1000,
        alive_bonus: float | None = None,
        control_cost: float | None = None,
        anneal_steps: int = 0,
        fall_penalty: float = 0.0,
        height_weight: float = 0.0,
        num_threads: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if family not in FAMILIES:
            raise ValueError(f"family: expected one of {sorted(FAMILIES)}, found {family!r}.")
        self.family = FAMILIES[family]
        check_vector_family(self.family)
        self.tasks = list(range(self.family.num_tasks)) if tasks is None else list(tasks)
        check_lifetime(self.family, self.tasks, lifetime_steps, warmup_steps, stages)
        self.num_tasks = len(self.tasks)
        self.parameters = self.family.task_parameters(task_seed)[self.tasks]
        self.stages = [f"stage_{stage}" for stage in range(stages - 1)] + ["expert"]
        self.shaping = RewardShaping(
            self.family, alive_bonus, control_cost, anneal_steps, fall_penalty, height_weight
        )
        self.env_steps = 0
        self.stage_returns: list[list[float]] = []
        self.storage: LifetimeStorage | None = None
        self._restored: dict[str, Any] | None = None
        self._held = contextlib.ExitStack()

    def sizes(self) -> DataSizes:
        """Return the sizes of what the environments give and take, for the trained tasks."""
        return replace(self.family.sizes(), num_tasks=self.num_tasks)

    @property
    def planned_updates(self) -> int:
        """Updates until the lifetimes are over."""
        steps: int = self.hparams.lifetime_steps - self.hparams.warmup_steps
        return steps * int(self.hparams.updates_per_step)

    def setup(self, stage: str | None = None) -> None:
        """Check that one process trains, no longer than the lifetimes, towards a new dataset.

        Raises:
            ValueError: several processes, or more updates than the lifetimes hold.
            FileExistsError: the dataset is there already.
        """
        if stage == "fit" and self.trainer is not None:
            root = Path(self.trainer.default_root_dir)
            self.path = Path(self.hparams.path) if self.hparams.path else root / "dataset"
            check_trainer(self.trainer, self.planned_updates, self.path)

    def train_dataloader(self) -> "LifetimeBuffers":
        """Open the replays, where the restored checkpoint left them; return the loader, itself.

        Raises:
            ValueError: they do not belong to the checkpoint, or to these settings.
            FileExistsError: there are replays, and no checkpoint to go on from.
        """
        if self.storage is None:
            self._held.enter_context(dataset_lock(self.path))
            self._writer = lifetime_writer(self, self._module())
            self.storage = lifetime_storage(self, self._writer.partial / "lifetimes")
            self._start()
        return self

    def _start(self) -> None:
        """Make the simulator; begin new lifetimes, or go on with those of the checkpoint."""
        assert self.storage is not None
        self.engine: Engine = self.family.make_engine(
            self.parameters, seed=self.hparams.seed, num_threads=self.hparams.num_threads
        )
        self.generator = torch.Generator().manual_seed(derived_seed(self.hparams.seed, 1))
        if self._restored is None:
            check_fresh_start(self._writer.partial, self.storage, self.trainer)
            self.observation = torch.from_numpy(self.engine.reset())
            return
        state, self._restored = self._restored, None
        check_same_lifetimes(self._writer.partial, self.storage, state)
        self.env_steps = state["env_steps"]
        self.stage_returns = [list(values) for values in state["stage_returns"]]
        self.observation = state["observation"].clone()
        self.engine.load_state_dict(state["engine"])
        self.generator.set_state(state["generator"].cpu())

    def __len__(self) -> int:
        """Batches in an epoch."""
        return int(self.hparams.steps_per_epoch)

    def __iter__(self) -> Iterator[TensorDict]:
        """Yield batches [updates_per_step, T, batch_size] until the lifetimes are over."""
        while self.env_steps < self.hparams.warmup_steps:
            self.step()
        for _ in range(len(self)):
            if self.env_steps == self.hparams.lifetime_steps:
                return
            self.step()
            yield self.batch()

    @torch.no_grad()
    def step(self) -> None:
        """Take one step in every environment and keep it."""
        assert self.storage is not None
        size = (self.num_tasks, self.family.action_size)
        if self.env_steps < self.hparams.warmup_steps:
            action = 2 * torch.rand(size, generator=self.generator) - 1
        else:
            noise = torch.randn(size, generator=self.generator)
            action = self._module().act(self.observation[:, None], noise[:, None])[:, 0]
        result = self.engine.step(action.numpy())
        before = self.observation.numpy()
        columns = transition_columns(before, action.numpy(), result, self.storage.terms)
        self.storage.write(self.env_steps, columns)
        ended = columns["terminated"] | columns["truncated"]
        following = self.engine.reset(ended) if ended.any() else result.observation
        self.observation = torch.from_numpy(following)
        self.env_steps += 1
        stage = self.env_steps * len(self.stages) // self.hparams.lifetime_steps
        if len(self.stage_returns) < stage < len(self.stages):
            self.stage_returns.append(mean_action_returns(self, self._module()))

    def batch(self) -> TensorDict:
        """Draw transitions of each task from its own replay, with the reward its agent sees now."""
        assert self.storage is not None
        storage, shape = self.storage, (self.hparams.updates_per_step, self.hparams.batch_size)
        rows = storage.draw(shape, self.env_steps, self.generator)
        names = ("observation", "action", "reward", "next_observation", "terminated")
        batch = {name: storage.gather(name, rows) for name in names}
        if storage.terms:
            batch["reward"] = self.shaping.reward(storage.gather_terms(rows), self.env_steps)
        batch["reward"] = self.shaping.penalise_falls(batch["reward"], batch["terminated"])
        return TensorDict(batch, batch_size=rows.shape)

    @property
    def evaluation(self) -> dict[str, Any]:
        """Settings of reference returns."""
        names = ("task_seed", "num_threads")
        settings = {name: self.hparams[name] for name in names}
        return {"seed": derived_seed(self.hparams.seed, 2), "tasks": self.tasks, **settings}

    def teardown(self, stage: str | None = None) -> None:
        """Write the dataset if the lifetimes are over and the agents have learned from them."""
        if stage == "fit" and self.storage is not None and self.trainer is not None:
            over = self.env_steps == self.hparams.lifetime_steps
            if over and self.trainer.global_step >= self.planned_updates:
                references = lifetime_references(self, self._module())
                commit_lifetimes(self._writer, self.storage, references)
            self._close()

    def on_exception(self, exception: BaseException) -> None:
        """Let go of the replays."""
        self._close()

    def state_dict(self) -> dict[str, Any]:
        """Counters, simulator and generator; the replays are on the disk when this returns."""
        if self.storage is None:
            return {}
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

    def _module(self) -> Any:
        trainer: Any = self.trainer
        return trainer.lightning_module

    def _close(self) -> None:
        if self.storage is not None:
            self.engine.close()
            self.storage = None
        self._held.close()
