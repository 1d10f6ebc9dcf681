"""Success by the number of exploration episodes done: the experiment of The Reflective Explorer.

Under ``default_root_dir``: ``results.json`` (success by episode with 95 % intervals, what was
opened, the diagnosis of beliefs, protocol, configuration, provenance, learning curve),
``success.png`` (the paper's Figure 2, right), ``diagnosis.png``, and a film if asked for.
"""

import time
import warnings
from pathlib import Path
from typing import Any

import lightning

from offline_meta_rl.common.checkpoints import Checkpoint
from offline_meta_rl.common.files import write_json
from offline_meta_rl.evaluation.measure import datamodule_of, describe_run
from offline_meta_rl.reports.exploration_plots import diagnosis_figure, success_figure
from offline_meta_rl.reports.wandb_pictures import to_wandb


class EvaluateExploration(lightning.Callback):
    """Meta-episodes at every validation of the policy's training, at its end, and when testing.

    Logs ``<name>/success_after_E``: success of the episode that follows E exploration episodes. The
    first process does the work; the others wait for it.

    Args:
        name: prefix of what is logged.
        num_episodes: episodes of a meta-episode; None for as many as in training.
        meta_episodes: at the end and when testing; balanced over the split's test tasks.
        validation_meta_episodes: at each validation.
        sample_actions: sample from the policy instead of taking its mean action.
        seed: of initial states and noise.
        batch_size: meta-episodes that run together; None for all.
        num_threads: of the simulator; None for one per core.
        film: meta-episodes to film at the end; 0 for no film.
        results_file: name of the result file under ``default_root_dir``.
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
        self.counts = {"validation": validation_meta_episodes, "final": meta_episodes}
        self.options: dict[str, Any] = {
            "num_episodes": num_episodes,
            "sample_actions": sample_actions,
            "seed": seed,
            "batch_size": batch_size,
            "num_threads": num_threads,
        }
        self.history: list[dict[str, Any]] = []
        self._clocks = {"wall_time": 0.0, "processor_time": 0.0}
        self._started: dict[str, float] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The learning curve and the clocks, as plain types."""
        return {"history": [dict(point) for point in self.history], "clocks": self._elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue them."""
        self.history = [dict(point) for point in state_dict["history"]]
        self._clocks = dict(state_dict["clocks"])

    def setup(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        """Check method and data; warn of more episodes than the policy was trained on.

        Raises:
            TypeError: a method that does not explore, or a datamodule without meta-trajectories.
        """
        if stage == "predict":
            return
        datamodule = datamodule_of(trainer)
        trained = getattr(datamodule, "hparams", {}).get("num_episodes")
        if not hasattr(pl_module, "explorer") or trained is None:
            raise TypeError(
                "EvaluateExploration needs a method that explores, such as ReflectiveExplorer, and "
                f"meta-trajectories; found {type(pl_module).__name__} on "
                f"{type(datamodule).__name__}. Remove the callback."
            )
        if self.options["num_episodes"] is None:
            self.options["num_episodes"] = trained
        if self.options["num_episodes"] > trained:
            warnings.warn(
                f"Meta-episodes of {self.options['num_episodes']} episodes are evaluated, and the "
                f"policy is trained on {trained}: beyond those its success falls. Raise "
                "--data.init_args.num_episodes, or evaluate fewer.",
                stacklevel=2,
            )

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Start the clocks.

        A resumed run evaluates if its checkpoint was written just before an evaluation was due.
        """
        self._started = _now()
        module: Any = pl_module
        batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        due = batches > 0 and batches % (trainer.val_check_batch or 1) == 0
        known = any(point["step"] == trainer.global_step for point in self.history)
        if due and not known and module.training_stage == "policy":
            self._evaluate(trainer, module, self.counts["validation"], trainer.global_step)

    def on_validation_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Evaluate a little, unless the filter is still in training."""
        module: Any = pl_module
        if trainer.sanity_checking:
            return
        if trainer.state.fn == "fit" and module.training_stage == "filter":
            return
        content = self._evaluate(trainer, module, self.counts["validation"], trainer.global_step)
        for name, value in _metrics(content["points"], self.name).items():
            module.log(name, value, sync_dist=True, batch_size=1)

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Evaluate in full; an interrupted run is left as it is."""
        module: Any = pl_module
        if trainer.should_stop or module.training_stage == "filter":
            return
        content = self._evaluate(trainer, module, self.counts["final"], trainer.global_step, True)
        for logger in trainer.loggers:
            metrics = _metrics(content["points"], self.name)
            logger.log_metrics(metrics, step=trainer.global_step)

    def on_test_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Evaluate in full; the learning curve is the checkpoint's."""
        step = self._restore(trainer)
        content = self._evaluate(trainer, pl_module, self.counts["final"], step, True)
        for name, value in _metrics(content["points"], self.name).items():
            pl_module.log(name, value, sync_dist=True, batch_size=1)

    def _evaluate(
        self,
        trainer: lightning.Trainer,
        module: Any,
        meta_episodes: int,
        step: int,
        final: bool = False,
    ) -> dict[str, Any]:
        """Measure in the first process, write the files there, and tell the others."""
        content: dict[str, Any] | None = None
        if trainer.is_global_zero:
            content = self._measure(trainer, module, meta_episodes, final)
        found: Any = trainer.strategy.broadcast(content)
        if trainer.state.fn == "fit":
            point = {"step": step, **_metrics(found["points"], "success", "")}
            self.history = [*(old for old in self.history if old["step"] < step), point]
        if trainer.is_global_zero and final:
            self._write(trainer, module, found, step)
        return dict(found)

    def _measure(
        self, trainer: lightning.Trainer, module: Any, meta_episodes: int, final: bool
    ) -> dict[str, Any]:
        from offline_meta_rl.evaluation.measure_exploration import (
            measure_exploration,  # imports the simulators
        )

        training = module.training
        module.eval()
        try:
            return measure_exploration(
                module,
                datamodule_of(trainer),
                meta_episodes=meta_episodes,
                diagnose_beliefs=final,
                film=self.film if final else 0,
                film_path=Path(trainer.default_root_dir) / f"{self.name}_film",
                **self.options,
            )
        finally:
            module.train(training)

    def _write(
        self, trainer: lightning.Trainer, module: Any, content: dict[str, Any], step: int
    ) -> None:
        root, datamodule = Path(trainer.default_root_dir), datamodule_of(trainer)
        result = {
            **content,
            **describe_run(module, datamodule, step),
            **self._elapsed(),
            "history": self.history,
        }
        write_json(root / self.results_file, result)
        chance = 1.0 / len(datamodule.test_tasks)
        success_figure({self.name: content["points"]}, root / "success.png", chance=chance)
        to_wandb(trainer, f"{self.name}/success_figure", root / "success.png")
        if content.get("diagnosis"):
            diagnosis_figure(
                {self.name: content["diagnosis"]}, root / "diagnosis.png", chance=chance
            )
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

    def _elapsed(self) -> dict[str, float]:
        """Return seconds of this run until now, evaluation included."""
        if self._started is None:
            return dict(self._clocks)
        now = _now()
        return {name: self._clocks[name] + now[name] - self._started[name] for name in now}


def _now() -> dict[str, float]:
    return {"wall_time": time.perf_counter(), "processor_time": time.process_time()}


def _metrics(
    points: list[dict[str, Any]], prefix: str, slash: str = "/success"
) -> dict[str, float]:
    """Return success by exploration episodes done, under names for loggers."""
    return {
        f"{prefix}{slash}_after_{point['exploration_episodes']}": float(point["success"]["share"])
        for point in points
    }
