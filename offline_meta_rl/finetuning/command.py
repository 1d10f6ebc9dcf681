"""Fine-tune a method online on its held-out tasks, from the adaptation to the result file.

``offline_meta_rl/finetune.py`` reads the command line and the checkpoint and calls ``fine_tune``;
a program may call it as well. An interrupted call continues where it stopped, with the same bits.
"""

import inspect
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from offline_meta_rl.common.interruption import Interrupted, StopRequest
from offline_meta_rl.common.settings import to_plain
from offline_meta_rl.evaluation.evaluate import fixed_seed
from offline_meta_rl.evaluation.measure import contexts_of, describe_run, evaluated_tasks
from offline_meta_rl.evaluation.protocol import Protocol
from offline_meta_rl.evaluation.result_files import Origin
from offline_meta_rl.finetuning.bar import FineTuningBar
from offline_meta_rl.finetuning.learner import FineTunes, FineTuningData
from offline_meta_rl.finetuning.loop import FineTuning
from offline_meta_rl.finetuning.result import FineTuningResult, Outputs, result_of, write_result
from offline_meta_rl.finetuning.settings import FineTuningSettings, check_options
from offline_meta_rl.finetuning.state import load_state, save_state, weights_digest
from offline_meta_rl.finetuning.summary import mean_return


def fine_tune(
    method: FineTunes,
    data: FineTuningData,
    settings: FineTuningSettings,
    outputs: Outputs,
    *,
    global_step: int = 0,
    resume: str = "the same call",
    show_progress: bool = False,
) -> FineTuningResult:
    """Adapt to offline data of each held-out task, then collect and update, all tasks at once.

    Args:
        method: The meta-trained method, on the device that it runs on.
        data: Its data, after ``setup``.
        settings: How to fine-tune.
        outputs: Where to write. The folder may hold the state of an interrupted call.
        global_step: Outer steps of the meta-training, for the result file.
        resume: How to continue, for the message of an interruption.
        show_progress: Show a bar on standard error, or a line now and then without a terminal.

    Returns:
        The content of the result file.

    Raises:
        TypeError: A method that cannot be fine-tuned, or data without tasks.
        ValueError: Unknown tasks or settings, too few transitions, or a state of another
            fine-tuning.
        FloatingPointError: Numbers that are not finite.
        Interrupted: The process was asked to stop; the state is saved.
    """
    task = _Task.of(method, data, settings)
    request = StopRequest("episode")
    request.install()
    try:
        with torch.no_grad():  # learners turn gradients on for their updates
            bar = FineTuningBar(settings.environment_steps, enabled=show_progress)
            origin = describe_run(method, data, global_step)
            content = _run(task, outputs, request, resume, bar, origin)
    finally:
        request.restore()
    warmup = settings.warmup_episodes * task.data.family.horizon
    write_result(content, outputs, warmup_steps=warmup)
    outputs.state.unlink(missing_ok=True)
    return content


@dataclass(frozen=True)
class _Task:
    """One fine-tuning: method, data, settings and tasks."""

    method: FineTunes
    data: FineTuningData
    settings: FineTuningSettings
    protocol: Protocol
    tasks: list[int]

    @classmethod
    def of(cls, method: FineTunes, data: FineTuningData, settings: FineTuningSettings) -> "_Task":
        """Check the settings against method and data."""
        check_options(settings.learner or {}, learner_options(method), type(method).__name__)
        protocol = Protocol(
            split=settings.split or data.split,
            tasks=settings.tasks,
            context_size=settings.context_size,
            context_slice=settings.context_slice,
            seed=settings.seed,
        )
        return cls(method, data, settings, protocol, evaluated_tasks(data, protocol))

    @property
    def identity(self) -> dict[str, Any]:
        """The settings, weights and data that must match to resume."""
        schedule = self.settings.schedule()
        del schedule["environment_steps"]  # more of them is the same fine-tuning, longer
        return {
            **schedule,
            "learner": dict(self.settings.learner or {}),
            "tasks": self.tasks,
            "context_slice": to_plain(self.settings.context_slice),
            "weights": weights_digest(self.method.state_dict()),
            "dataset": self.data.dataset.checksum,
        }

    @property
    def references(self) -> dict[str, list[float]]:
        """Mean returns of reference policies on the fine-tuned tasks."""
        return {
            name: np.asarray(values, dtype=np.float64)[self.tasks].tolist()
            for name, values in self.data.dataset.manifest.reference_returns.items()
            if name != "stages"
        }

    def build(self, *, num_steps: int) -> FineTuning:
        """Adapt with a number of gradient steps; return the fine-tuning that starts there."""
        self.method.eval()
        settings, data, device = self.settings, self.data, self.method.device
        context = contexts_of(data, self.protocol).to(device)
        # The adaptation is gradient descent for some methods, and may draw random numbers.
        with fixed_seed(settings.seed, device), torch.enable_grad():
            agents = self.method.fine_tuner(context, num_steps, **(settings.learner or {}))
        kept = data.context(
            self.tasks,
            settings.context_size,
            seed=settings.seed,
            fields=agents.fields,
            slice=settings.context_slice,
        )
        parameters = np.asarray(data.dataset.manifest.task_parameters, dtype=np.float64)
        return FineTuning(
            agents,
            data.family,
            parameters[self.tasks],
            settings,
            discount=data.discount,
            context=kept.to(device),
            num_threads=settings.num_threads,
        )


def learner_options(method: FineTunes) -> list[str] | None:
    """Return the names that ``--finetune.learner`` may have; None if the method takes any."""
    parameters = inspect.signature(method.fine_tuner).parameters.values()
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
        return None
    return [each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]


def _run(
    task: _Task,
    outputs: Outputs,
    request: StopRequest,
    resume: str,
    bar: FineTuningBar,
    origin: Origin,
) -> FineTuningResult:
    """Continue from a saved state or begin; return the result once all is done."""
    settings, identity = task.settings, task.identity
    state = None if settings.fresh else load_state(outputs.state, identity)
    if state is None:
        with closing(task.build(num_steps=0)) as unadapted:
            # Agents before adaptation, in a FineTuning that is only compared. Initial states are
            # the same in all three comparisons.
            before = unadapted.compare()
    with closing(task.build(num_steps=settings.adaptation_steps)) as run:
        if state is None:
            compared = {"before_adaptation": before, "after_adaptation": run.compare()}
        else:
            run.load_state_dict(state["run"])
            compared = state["compared"]
        saved = {"identity": identity, "compared": compared}
        with bar:
            _advance(run, task, outputs, saved, request, resume, bar)
        compared = {**compared, "after_fine_tuning": run.compare()}
        return result_of(run, task.tasks, compared, task.references, origin)


def _advance(
    run: FineTuning,
    task: _Task,
    outputs: Outputs,
    saved: Mapping[str, Any],
    request: StopRequest,
    resume: str,
    bar: FineTuningBar,
) -> None:
    """Advance until it is done; save now and then, and when asked to stop."""
    logged, every, done = 0, task.settings.save_every, run.done
    while not done:
        run.advance()
        done = run.done
        for point in run.curve[logged:]:
            outputs.log_point(point, task.tasks, run.metrics)
        logged = len(run.curve)
        mean = mean_return([mean_return(row) for row in run.curve[-1]["returns"]])
        bar.show(run.steps.tolist(), mean, last=done)
        if done:
            return
        # Only between two episodes, where ``state_dict`` is all that the rest depends on.
        stop = request.received
        if stop is not None or (every and run.episodes % every == 0):
            save_state({**saved, "run": run.state_dict()}, outputs.state)
        if stop is not None:
            raise Interrupted(f"{run.episodes} episodes of each task", resume, stop)
