"""Online fine-tuning of a meta-trained method on its held-out tasks: ``lightning finetune``.

Under ``default_root_dir``: ``fine_tuning.json`` (curve of every task, before and after with
intervals, settings, provenance), ``fine_tuning.png``, and, until it is done, the state that an
interrupted fine-tuning goes on from.
"""

import os
import shlex
import signal
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch

from callbacks.fine_tuning_bar import FineTuningBar
from callbacks.fine_tuning_checks import check_fine_tuning, load_state, weights_digest
from callbacks.interrupt import Interrupted, StopRequest, resume_command
from offline_meta_rl.evaluation.measure import contexts_of, datamodule_of, evaluated_tasks
from offline_meta_rl.evaluation.protocol import Protocol
from offline_meta_rl.finetuning.result import write_fine_tuning
from offline_meta_rl.finetuning.settings import FineTuningSettings
from offline_meta_rl.finetuning.summary import mean_return

if TYPE_CHECKING:
    from offline_meta_rl.finetuning.loop import FineTuning


class FineTuneOnline(lightning.Callback):
    """Adapt to offline data of each held-out task, then collect and update, all tasks at once.

    Runs before the test loop. Defaults are the schedule of MACAW's authors, cut at 20 000 steps.

    Args:
        environment_steps: collected in each task, at least; evaluation is not counted.
        tasks: ``test`` or ``train`` tasks of the split, or task indices.
        split: name of the task split; None for the datamodule's own.
        context_size: transitions of offline data to adapt on first.
        context_slice: part of the dataset that they come from, in the datamodule's own terms.
        adaptation_steps: gradient steps of this adaptation.
        keep_context: they stay in the replay; False: the replay starts empty.
        warmup_episodes: of each task, collected before the first update.
        updates: kind -> updates after an episode, where they differ from the method's own (MACAW:
            ``value`` 100, then ``policy`` 200).
        batch_size: transitions of each task per update.
        replay_size: transitions of each task that are kept.
        evaluate_every: episodes collected between two points of the curve.
        evaluation_episodes: with mean actions, for each task and point of the curve.
        comparison_episodes: the same for the comparison of before and after.
        learner: settings of the method's own fine-tuning, such as ``policy_learning_rate``; see
            ``fine_tuner`` of the method.
        seed: of contexts, initial states, noise and batches.
        save_every: episodes between two saved states; 0 saves at an interruption only.
        fresh: start again, whatever an interrupted fine-tuning has left.
        num_threads: of the simulator; None for one per core.
        name: prefix of what is logged, and of the files.
    """

    def __init__(
        self,
        *,
        environment_steps: int = 20_000,
        tasks: str | list[int] = "test",
        split: str | None = None,
        context_size: int = 256,
        context_slice: dict[str, Any] | list[str] | None = None,
        adaptation_steps: int = 1,
        keep_context: bool = False,
        warmup_episodes: int = 26,
        updates: dict[str, int] | None = None,
        batch_size: int = 256,
        replay_size: int = 50_000,
        evaluate_every: int = 1,
        evaluation_episodes: int = 3,
        comparison_episodes: int = 20,
        learner: dict[str, Any] | None = None,
        seed: int = 0,
        save_every: int = 10,
        fresh: bool = False,
        num_threads: int | None = None,
        name: str = "fine_tuning",
    ) -> None:
        self.settings = FineTuningSettings(
            environment_steps=environment_steps,
            context_size=context_size,
            adaptation_steps=adaptation_steps,
            keep_context=keep_context,
            warmup_episodes=warmup_episodes,
            updates=updates,
            batch_size=batch_size,
            replay_size=replay_size,
            evaluate_every=evaluate_every,
            evaluation_episodes=evaluation_episodes,
            comparison_episodes=comparison_episodes,
            seed=seed,
        )
        self.tasks, self.split, self.context_slice = tasks, split, context_slice
        self.learner = dict(learner or {})
        self.save_every, self.fresh = save_every, fresh
        self.num_threads, self.name = num_threads, name

    def on_test_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Fine-tune, and write the result.

        Raises:
            TypeError: a method that cannot be fine-tuned, or data without tasks.
            ValueError: unknown tasks or settings, too few transitions, another dataset's
                checkpoint, or a state of another fine-tuning.
            FloatingPointError: numbers that are not finite.
            Interrupted: the process was asked to stop; the state is saved.
        """
        check_fine_tuning(trainer, pl_module, self.learner)
        request = StopRequest("episode")
        request.install()
        try:
            self._fine_tune(trainer, pl_module, request)
        finally:
            request.restore()

    def _fine_tune(self, trainer: lightning.Trainer, method: Any, request: StopRequest) -> None:
        """Go on from a saved state or begin; write the result."""
        datamodule = datamodule_of(trainer)
        protocol = self._protocol(datamodule)
        tasks = evaluated_tasks(datamodule, protocol)
        identity = self._identity(method, datamodule, tasks)
        state_path = Path(trainer.default_root_dir) / "checkpoints" / f"{self.name}.ckpt"
        state = None if self.fresh else load_state(state_path, identity)
        built = (method, datamodule, protocol, tasks)
        if state is None:
            with closing(self._build(*built, num_steps=0)) as unadapted:
                before = unadapted.compare()
        run = self._build(*built, num_steps=self.settings.adaptation_steps)
        try:
            if state is None:
                compared = {"before_adaptation": before, "after_adaptation": run.compare()}
            else:
                run.load_state_dict(state["run"])
                compared = state["compared"]
            saved = {"identity": identity, "compared": compared}
            self._run(trainer, run, tasks, state_path, saved, request)
            compared = {**compared, "after_fine_tuning": run.compare()}
        finally:
            run.close()
        extra = {"settings": self.settings.to_dict(), "learner": self.learner}
        write_fine_tuning(trainer, run, tasks, compared, extra, self.name)
        state_path.unlink(missing_ok=True)

    def _protocol(self, datamodule: Any) -> Protocol:
        """Return which tasks are fine-tuned, and the contexts they adapt on."""
        return Protocol(
            split=self.split or datamodule.hparams.get("split", "default"),
            tasks=self.tasks,
            context_size=self.settings.context_size,
            context_slice=self.context_slice,
            seed=self.settings.seed,
        )

    def _identity(self, method: Any, datamodule: Any, tasks: list[int]) -> dict[str, Any]:
        """Return what must be the same for a saved state to be gone on from."""
        settings = self.settings.to_dict()
        del settings["environment_steps"]  # more of them is the same fine-tuning, longer
        return {
            **settings,
            "learner": self.learner,
            "tasks": tasks,
            "context_slice": self.context_slice,
            "weights": weights_digest(method),
            "dataset": datamodule.dataset.checksum,
        }

    def _build(
        self, method: Any, datamodule: Any, protocol: Protocol, tasks: list[int], *, num_steps: int
    ) -> "FineTuning":
        """Adapt with a number of gradient steps; return the fine-tuning that starts there."""
        from offline_meta_rl.evaluation.evaluate import fixed_seed  # imports the simulators
        from offline_meta_rl.finetuning.loop import FineTuning

        method.eval()
        settings = self.settings
        context = contexts_of(datamodule, protocol).to(method.device)
        with fixed_seed(settings.seed, method.device), torch.enable_grad():
            agents = method.fine_tuner(context, num_steps, **self.learner)
        kept = datamodule.context(
            tasks,
            settings.context_size,
            seed=settings.seed,
            fields=agents.fields,
            slice=self.context_slice,
        )
        manifest = datamodule.dataset.manifest
        return FineTuning(
            agents,
            datamodule.family,
            np.asarray(manifest.task_parameters, dtype=np.float64)[tasks],
            settings,
            discount=float(datamodule.hparams["discount"]),
            context=kept.to(method.device),
            num_threads=self.num_threads,
        )

    def _run(
        self,
        trainer: lightning.Trainer,
        run: "FineTuning",
        tasks: list[int],
        path: Path,
        saved: Mapping[str, Any],
        request: StopRequest,
    ) -> None:
        """Advance until it is done; save now and then, and when asked to stop."""
        logged = 0
        enabled = trainer.progress_bar_callback is not None
        with FineTuningBar(self.settings.environment_steps, enabled=enabled) as bar:
            while not run.done:
                run.advance()
                for point in run.curve[logged:]:
                    self._log(trainer, point, tasks, run.metrics)
                logged = len(run.curve)
                mean = mean_return([mean_return(row) for row in run.curve[-1]["returns"]])
                bar.show(run.steps.tolist(), mean, last=run.done)
                stop = request.received is not None and not run.done
                due = self.save_every and run.episodes % self.save_every == 0
                if stop or (due and not run.done):
                    _save({**saved, "run": run.state_dict()}, path)
                if stop:
                    command = resume_command("finetune", Path(str(trainer.ckpt_path)))
                    root = shlex.quote(str(trainer.default_root_dir))
                    raise Interrupted(
                        f"{run.episodes} episodes of each task",
                        f"{command} --trainer.default_root_dir {root} (and the same settings)",
                        request.received or signal.SIGTERM,
                    )

    def _log(
        self,
        trainer: lightning.Trainer,
        point: Mapping[str, Any],
        tasks: list[int],
        metrics: Mapping[str, float],
    ) -> None:
        """Send one point of the curve to the loggers, against mean environment steps."""
        means = [mean_return(row) for row in point["returns"]]
        found = {f"{self.name}/return": mean_return(means)}
        for task, mean in zip(tasks, means, strict=True):
            found[f"{self.name}/return_task_{task}"] = mean
        found |= {f"{self.name}/{name}": value for name, value in metrics.items()}
        for logger in trainer.loggers:
            logger.log_metrics(found, step=int(np.mean(point["steps"])))


def _save(state: Mapping[str, Any], path: Path) -> None:
    """Write a state that is replaced only when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    torch.save(dict(state), partial)
    os.replace(partial, path)
