"""Success by the number of exploration episodes done: the experiment of The Reflective Explorer.

Under ``default_root_dir``: ``results.json`` (success by episode with 95 % intervals, what was
opened, the diagnosis of beliefs, protocol, configuration, provenance, learning curve),
``success.png`` (the paper's Figure 2, right), ``diagnosis.png``, and a film if asked for.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import lightning

from offline_meta_rl.common.checkpoints import Checkpoint
from offline_meta_rl.common.files import write_json
from offline_meta_rl.common.progress import Stopwatch
from offline_meta_rl.evaluation.contracts import Described, ExplorationData, Explores
from offline_meta_rl.evaluation.exploration import ExplorationPoint
from offline_meta_rl.evaluation.measure import datamodule_of, describe_run
from offline_meta_rl.evaluation.measure_exploration import (
    MeasuredExploration,
    MetaEpisodes,
    measure_exploration,
)
from offline_meta_rl.methods.belief_filter import BeliefFilter
from offline_meta_rl.reports.exploration_plots import diagnosis_figure, success_figure
from offline_meta_rl.reports.wandb_pictures import to_wandb


class EvaluateExploration(lightning.Callback):
    """Meta-episodes at every validation of a policy's training, at its end, and when testing.

    Logs ``<name>/success_after_E``: success of the episode that follows E exploration episodes. The
    first process does the work; the others wait for it. In the run of a filter it does nothing.

    Args:
        name: Prefix of what is logged.
        num_episodes: Episodes of a meta-episode; None for as many as in training.
        meta_episodes: Meta-episodes at the end and when testing, balanced over the test tasks.
        validation_meta_episodes: Meta-episodes at each validation.
        sample_actions: Sample from the policy instead of taking its mean action.
        seed: Seed of initial states and noise.
        batch_size: Meta-episodes that run together; None for all.
        num_threads: Threads of the simulator; None for one per core.
        film: Meta-episodes to film at the end; 0 for no film.
        results_file: Name of the result file under ``default_root_dir``.
    """

    def __init__(
        self,
        *,
        name: str = "explore",
        num_episodes: int | None = None,
        meta_episodes: int = 500,
        validation_meta_episodes: int = 100,
        sample_actions: bool = False,
        seed: int = 0,
        batch_size: int | None = None,
        num_threads: int | None = None,
        film: int = 0,
        results_file: str = "results.json",
    ) -> None:
        self.name, self.results_file, self.film = name, results_file, film
        self.meta_episodes, self.validation_meta_episodes = meta_episodes, validation_meta_episodes
        self.num_episodes = num_episodes
        self.settings = MetaEpisodes(0, sample_actions, seed, batch_size, num_threads)
        self.history: list[dict[str, float]] = []
        self.clock = Stopwatch()

    def state_dict(self) -> dict[str, object]:
        """The learning curve and the clocks, as plain types."""
        return {"history": [dict(point) for point in self.history], "clocks": self.clock.seconds()}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Continue the learning curve and the clocks."""
        history, clocks = state_dict["history"], state_dict["clocks"]
        assert isinstance(history, list)
        assert isinstance(clocks, dict)
        self.history = [dict(point) for point in history]
        self.clock = Stopwatch(clocks)

    def setup(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        """Check method and data; warn of more episodes than the policy was trained on.

        Raises:
            TypeError: A method that does not explore, or a datamodule without meta-trajectories.
        """
        if stage == "predict" or isinstance(pl_module, BeliefFilter):
            return
        datamodule = datamodule_of(trainer)
        if not isinstance(pl_module, Explores) or not isinstance(datamodule, ExplorationData):
            raise TypeError(
                "EvaluateExploration needs a method that explores, such as ReflectiveExplorer, and "
                f"meta-trajectories; found {type(pl_module).__name__} on "
                f"{type(datamodule).__name__}. Remove the callback."
            )
        trained = datamodule.num_episodes
        evaluated = trained if self.num_episodes is None else self.num_episodes
        self.settings = replace(self.settings, num_episodes=evaluated)
        if evaluated > trained:
            warnings.warn(
                f"Meta-episodes of {evaluated} episodes are evaluated, and the policy is trained "
                f"on {trained}: beyond those its success falls. Raise --data.num_episodes, or "
                "evaluate fewer.",
                stacklevel=2,
            )

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Start the clocks.

        A resumed run evaluates if its checkpoint was written just before an evaluation was due.
        """
        if not isinstance(pl_module, Explores):
            return
        self.clock.start()
        # The checkpoint of a step is written before the evaluation that is due at it.
        batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        due = batches > 0 and batches % (trainer.val_check_batch or 1) == 0
        known = any(point["step"] == trainer.global_step for point in self.history)
        if due and not known:
            self._evaluate(trainer, pl_module, trainer.global_step)

    def on_validation_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Evaluate a little."""
        if trainer.sanity_checking or not isinstance(pl_module, Explores):
            return
        content = self._evaluate(trainer, pl_module, trainer.global_step)
        for name, value in self._metrics(content["points"]).items():
            pl_module.log(name, value, sync_dist=True, batch_size=1)

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Evaluate in full; an interrupted run is left as it is."""
        if trainer.should_stop or not isinstance(pl_module, Explores):
            return
        content = self._evaluate(trainer, pl_module, trainer.global_step, final=True)
        for logger in trainer.loggers:
            logger.log_metrics(self._metrics(content["points"]), step=trainer.global_step)

    def on_test_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Evaluate in full; the learning curve is the checkpoint's."""
        if not isinstance(pl_module, Explores):
            return
        content = self._evaluate(trainer, pl_module, self._restore(trainer), final=True)
        for name, value in self._metrics(content["points"]).items():
            pl_module.log(name, value, sync_dist=True, batch_size=1)

    def _evaluate(
        self,
        trainer: lightning.Trainer,
        method: lightning.LightningModule,
        step: int,
        *,
        final: bool = False,
    ) -> MeasuredExploration:
        """Measure in the first process, write the files there, and tell the others."""
        content = self._measure(trainer, method, final) if trainer.is_global_zero else None
        found: MeasuredExploration | None = trainer.strategy.broadcast(content)
        assert found is not None  # the first process measured
        if trainer.state.fn == "fit":
            point = {"step": step, **success_by_name(found["points"])}
            # An evaluation that is repeated after a resume replaces the one before.
            self.history = [*(old for old in self.history if old["step"] < step), point]
        if trainer.is_global_zero and final:
            self._write(trainer, method, found, step)
        return found

    def _measure(
        self, trainer: lightning.Trainer, method: lightning.LightningModule, final: bool
    ) -> MeasuredExploration:
        datamodule = datamodule_of(trainer)
        assert isinstance(method, Explores)
        assert isinstance(datamodule, ExplorationData)
        training = method.training
        method.eval()
        try:
            return measure_exploration(
                method,
                datamodule,
                self.settings,
                meta_episodes=self.meta_episodes if final else self.validation_meta_episodes,
                diagnose_beliefs=final,
                film=self.film if final else 0,
                film_path=Path(trainer.default_root_dir) / f"{self.name}_film",
            )
        finally:
            method.train(training)

    def _write(
        self,
        trainer: lightning.Trainer,
        method: lightning.LightningModule,
        content: MeasuredExploration,
        step: int,
    ) -> None:
        root = Path(trainer.default_root_dir)
        data = datamodule_of(trainer)
        assert isinstance(data, Described)
        origin = describe_run(method, data, step)
        result = {**content, **origin, **self.clock.seconds(), "history": self.history}
        write_json(root / self.results_file, result)
        # Who opens one drawer blindly is right in one of T tasks.
        chance = 1.0 / len(content["protocol"]["tasks"])
        success_figure({self.name: content["points"]}, root / "success.png", chance=chance)
        to_wandb(trainer, f"{self.name}/success_figure", root / "success.png")
        if "diagnosis" in content:
            found = {self.name: content["diagnosis"]}
            diagnosis_figure(found, root / "diagnosis.png", chance=chance)
            to_wandb(trainer, f"{self.name}/diagnosis_figure", root / "diagnosis.png")

    def _restore(self, trainer: lightning.Trainer) -> int:
        """Take over curve and clocks of the checkpoint that is tested; return its outer steps."""
        if not trainer.ckpt_path:
            return trainer.global_step
        checkpoint = Checkpoint.read(trainer.ckpt_path)
        state = checkpoint.callback_state(self.state_key)
        if state is not None:
            self.load_state_dict(state)
        return checkpoint.global_step

    def _metrics(self, points: Sequence[ExplorationPoint]) -> dict[str, float]:
        """Return success under names for loggers."""
        return {f"{self.name}/{name}": value for name, value in success_by_name(points).items()}


def success_by_name(points: Sequence[ExplorationPoint]) -> Mapping[str, float]:
    """Return success by exploration episodes done, ``success_after_E``."""
    return {
        f"success_after_{point['exploration_episodes']}": float(point["success"]["share"] or 0.0)
        for point in points
    }
