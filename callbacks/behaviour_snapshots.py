"""Measures a behaviour agent in all tasks as it trains, and keeps snapshots of its actor."""

from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from numpy.typing import NDArray
from torch import Tensor

from offline_meta_rl.behaviour.learning import HasBehaviourActor, ServesAgents
from offline_meta_rl.evaluation.measure import datamodule_of
from offline_meta_rl.evaluation.rollout import run_episodes
from offline_meta_rl.networks.actors import BehaviourActor


class BehaviourSnapshots(lightning.Callback):
    """Writes ``<default_root_dir>/snapshots/<step>.pt`` and logs ``behaviour/return``.

    A snapshot holds ``step``, ``state`` (of the actor), and the returns of the mean action and of
    sampled actions, ``mean`` and ``noisy``, [T] each. ``lightning behaviour pack`` chooses some of
    them for the package. Taking one leaves the training's random numbers as they are.

    Args:
        every_n_steps: Optimizer steps between two snapshots.
        early_steps: Further steps at which to take one, while the agent is still poor.
        episodes: Episodes in every task.
        seed: Seed of the initial states and of the sampled actions.
        num_threads: Threads of the simulator; None for one per core.
    """

    def __init__(
        self,
        every_n_steps: int = 5000,
        early_steps: list[int] | None = None,
        episodes: int = 1,
        seed: int = 1,
        num_threads: int | None = None,
    ) -> None:
        self.every_n_steps = every_n_steps
        self.early_steps = sorted(early_steps or [])
        self.episodes = episodes
        self.seed = seed
        self.num_threads = num_threads
        self._taken: int | None = None

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Count from the step a resumed run starts at."""
        self._taken = self._due(trainer.global_step)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Take a snapshot if one has become due, and at the last step."""
        due = self._due(trainer.global_step)
        if due != self._taken or trainer.global_step == trainer.max_steps:
            self._taken = due
            self._take(trainer, pl_module)

    def _due(self, step: int) -> int:
        """Return how many snapshots are due by a step."""
        return step // self.every_n_steps + sum(step >= early for early in self.early_steps)

    @rank_zero_only
    def _take(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not isinstance(pl_module, HasBehaviourActor):
            raise TypeError(
                "BehaviourSnapshots: expected a model with a behaviour_actor, found "
                f"{type(pl_module).__name__}. Use SAC, or remove the callback."
            )
        actor = pl_module.behaviour_actor()
        # A snapshot must not change what training draws; see the class.
        random_state = torch.get_rng_state()
        torch.manual_seed(self.seed)
        mean = self._returns(trainer, actor, stochastic=False)
        noisy = self._returns(trainer, actor, stochastic=True)
        torch.set_rng_state(random_state)
        pl_module.log("behaviour/return", mean.mean(), rank_zero_only=True, prog_bar=True)
        pl_module.log("behaviour/noisy_return", noisy.mean(), rank_zero_only=True)
        folder = Path(trainer.default_root_dir) / "snapshots"
        folder.mkdir(parents=True, exist_ok=True)
        found = {"state": actor.state_dict(), "mean": mean, "noisy": noisy}
        torch.save(
            {"step": trainer.global_step, **found},
            folder / f"{trainer.global_step:07d}.pt",
        )

    @torch.no_grad()
    def _returns(
        self, trainer: lightning.Trainer, actor: BehaviourActor, *, stochastic: bool
    ) -> Tensor:
        """Return the mean return in every task, [T].

        Raises:
            TypeError: The data come from no task family.
        """
        data = datamodule_of(trainer)
        if not isinstance(data, ServesAgents):
            raise TypeError(
                "BehaviourSnapshots: expected data of OnlineBuffer, found "
                f"{type(data).__name__}. Use OnlineBuffer, or remove the callback."
            )
        family = data.family
        # The engine's rows: all episodes of a task beside each other.
        parameters = np.repeat(family.task_parameters(data.task_seed), self.episodes, axis=0)
        features = torch.from_numpy(family.task_features(parameters))

        def act(observation: NDArray[np.float32]) -> NDArray[np.float32]:
            rows = torch.from_numpy(observation)
            action: NDArray[np.float32] = actor.act(rows, features, stochastic=stochastic).numpy()
            return action

        engine = family.make_engine(parameters, seed=self.seed, num_threads=self.num_threads)
        returns = run_episodes(engine, act, family.horizon).returns
        engine.close()
        return torch.from_numpy(returns).reshape(-1, self.episodes).mean(dim=1)
