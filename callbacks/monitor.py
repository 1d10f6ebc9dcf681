"""Logs what tells whether training is healthy: gradient norms, learned step sizes, speed."""

from fnmatch import fnmatch

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torch.optim import Optimizer

from offline_meta_rl.common.progress import StepClock
from offline_meta_rl.data.contracts import attributes_of

SUMMARIES = {
    "eval/after_return": "max",
    "eval/after_normalised_return": "max",
    "behaviour/return": "max",
}


class Monitor(pl.Callback):
    """Logs the following every ``log_every_n_steps`` outer steps.

    - ``gradient_norm/<part>`` for each top-level part of the method, and ``gradient_norm/total``,
    - ``learned/<name>`` for the learned quantities that ``learned`` selects, logarithms undone,
    - ``speed/steps_per_second`` of training, evaluation not counted.

    With Weights & Biases every metric is drawn over outer steps, and the run's summary keeps the
    best return rather than the last.

    Args:
        gradient_norms: Whether to log them.
        learned: Patterns of parameter names, as in file names.
    """

    def __init__(
        self,
        gradient_norms: bool = True,
        learned: tuple[str, ...] = ("*step_size*", "*coefficient*", "*log_alpha*"),
    ) -> None:
        self.gradient_norms = gradient_norms
        self.learned = learned
        self.clock = StepClock()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Define the metrics of Weights & Biases and start the clock."""
        self.clock.start(trainer.global_step)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and trainer.is_global_zero:
                logger.experiment.define_metric("trainer/global_step")
                for name, summary in SUMMARIES.items():
                    logger.experiment.define_metric(
                        name, step_metric="trainer/global_step", summary=summary
                    )

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Log gradient norms and learned quantities of this step."""
        # The optimizer has not stepped yet, so the counter is one behind.
        step = trainer.global_step + 1
        interval = max(1, attributes_of(trainer).log_every_n_steps)
        if step % interval or not trainer.loggers:
            return
        values = learned_values(pl_module, self.learned)
        if self.gradient_norms:
            values |= gradient_norms(pl_module)
        values["speed/steps_per_second"] = torch.tensor(self.clock.read(step))
        pl_module.log_dict(values, on_step=True, on_epoch=False)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluation is not counted as training time."""
        self.clock.pause()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Training goes on."""
        self.clock.resume()


def gradient_norms(module: torch.nn.Module) -> dict[str, Tensor]:
    """Return the Euclidean norm of each top-level part's gradient, and of the whole."""
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            parts.setdefault(name.split(".")[0], []).append(parameter.grad)
    norms = {
        # One call for all of a part's tensors; the norm of their norms is the norm of the whole.
        name: torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        for name, gradients in parts.items()
    }
    if norms:
        norms["total"] = torch.linalg.vector_norm(torch.stack(list(norms.values())))
    return {f"gradient_norm/{name}": norm for name, norm in norms.items()}


def learned_values(module: torch.nn.Module, patterns: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the selected parameters' elements, the exponential of those stored as logarithms.

    Args:
        module: A method.
        patterns: Patterns of parameter names, with the wildcards of file names.

    Returns:
        ``learned/<name>`` for a scalar, ``learned/<name>/<index>`` for each element of others.
    """
    values: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        if not any(fnmatch(name, pattern) for pattern in patterns):
            continue
        value = parameter.detach()
        # Step sizes and temperatures are learned as logarithms; people want the numbers.
        if "log_" in name:
            name, value = name.replace("log_", ""), value.exp()
        if value.ndim == 0:
            values[f"learned/{name}"] = value
            continue
        for index in torch.cartesian_prod(*(torch.arange(n) for n in value.shape)).view(
            -1, value.ndim
        ):
            position = tuple(int(i) for i in index)
            values[f"learned/{name}/{'.'.join(map(str, position))}"] = value[position]
    return values
