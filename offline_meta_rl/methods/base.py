"""The base of every method: manual optimization with one optimizer, many updates per batch.

A method implements ``outer_step``, which computes gradients by whatever means and hands them to
``apply_gradients``. What Lightning does not do by itself under manual optimization is here:
gradients and metrics summed over processes, clipping, the finite check, random states in
checkpoints, checks of data against the module's sizes.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import lightning
import numpy as np
import torch
from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch.loops import _EvaluationLoop, _PredictionLoop
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from tensordict import TensorDict
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils import _pytree as pytree

from offline_meta_rl.common.checkpoints import (
    DATASET,
    METHOD,
    RANDOM_STATE,
    SETTINGS,
    Checkpoint,
)
from offline_meta_rl.common.compiling import CompiledOrEager
from offline_meta_rl.common.processes import random_state, set_random_state, summed
from offline_meta_rl.common.settings import to_plain
from offline_meta_rl.data.context import check_context
from offline_meta_rl.data.contracts import TaskData, attributes_of
from offline_meta_rl.finetuning.learner import OnlineLearner, cannot_be_fine_tuned
from offline_meta_rl.methods.checks import (
    check_fields,
    check_same_data,
    check_shared_settings,
    check_sizes,
    dataset_identity,
    settings_of,
)
from offline_meta_rl.networks.policy import BatchedPolicy

CONTEXT_FIELDS = ("observation", "action", "return_to_go")


class MetaModule(lightning.LightningModule):
    """A method. Implement ``outer_step`` and ``configure_optimizers``; to adapt, ``adapt_tasks``.

    Use one optimizer, with parameter groups, so that ``global_step`` counts outer steps.

    Args:
        clip_gradient_norm: Largest norm of the whole gradient; None for no clipping.

    Attributes:
        adaptation_steps: Steps that ``adapt`` and ``predict`` take.
        renamed: Settings of earlier versions, old name -> new one (``inner.num_steps``).
    """

    adaptation_steps: int = 1
    renamed: ClassVar[Mapping[str, str]] = {}

    if TYPE_CHECKING:
        hparams: Any  # Lightning's type has no attributes

    def __init__(self, *, clip_gradient_norm: float | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.clip_gradient_norm = clip_gradient_norm
        self._random_state: dict[str, Tensor] | None = None

    @property
    def hparams_initial(self) -> AttributeDict:
        """The constructor's arguments as loggers get them, plain."""
        return AttributeDict(to_plain(dict(super().hparams_initial)))

    @property
    def context_fields(self) -> tuple[str, ...]:
        """The fields of a context that the method adapts on."""
        return CONTEXT_FIELDS

    @property
    def batch_fields(self) -> tuple[str, ...]:
        """The fields that the data's batches must have; none if the method does not say."""
        return ()

    @abstractmethod
    def outer_step(self, batch: TensorDict) -> dict[str, Tensor]:
        """Do one optimizer step on a batch of tasks [T]; return detached scalars to log."""

    def adapt_tasks(self, context: TensorDict, num_steps: int = 1) -> BatchedPolicy:
        """Adapt to T tasks from their contexts [T, B].

        Raises:
            TypeError: If the method does not adapt.
        """
        raise TypeError(f"{type(self).__name__} does not adapt to a context.")

    def adapt(
        self, context: Mapping[str, Tensor] | TensorDict, num_steps: int | None = None
    ) -> nn.Sequential:
        """Adapt to one task and return its policy as ordinary layers; no simulator is involved.

        Args:
            context: Transitions of the task, the method's ``context_fields``: observation and
                next_observation [B, O], action [B, A], others [B].
            num_steps: Gradient steps; 0 for the policy before adaptation, None for the method's
                ``adaptation_steps``.

        Returns:
            A network from observations [..., O] to mean actions [..., A].

        Raises:
            ValueError: If the context lacks a field, has a wrong size, or is not finite.
        """
        tensors = check_context(context, self.context_fields, self.hparams)
        num_steps = self.adaptation_steps if num_steps is None else num_steps
        batch = TensorDict({name: value[None].to(self.device) for name, value in tensors.items()})
        # One task is a batch of T = 1.
        return self.adapt_tasks(batch.auto_batch_size_(2), num_steps).task(0)

    def fine_tuner(
        self, context: TensorDict, num_steps: int = 1, **options: object
    ) -> OnlineLearner:
        """Adapt to T tasks from their contexts [T, B]; return agents that go on learning online.

        Further keyword arguments are the method's own settings, ``--finetune.learner``.

        Raises:
            TypeError: If the method does not learn online.
        """
        raise cannot_be_fine_tuned(type(self).__name__)

    def held_out_losses(self, context: TensorDict, query: TensorDict) -> dict[str, Tensor]:
        """Return losses on ``query`` [T, B] after adapting on ``context``; none by default."""
        return {}

    def on_train_start(self) -> None:
        """Restore a checkpoint's random state, before the first batch is drawn."""
        if self._random_state is not None:
            set_random_state(self._random_state)
            self._random_state = None

    def training_step(self, batch: TensorDict, batch_idx: int) -> None:
        """Do one outer step for each of a batch's U slices, [U, T]."""
        logging_due = self.global_step // self._log_every != (
            (self.global_step + len(batch)) // self._log_every
        )
        for update in batch.unbind(0):
            metrics = self.outer_step(update)
            # Reading a number off an accelerator waits for all its work: only now and then there.
            if self.device.type == "cpu" or logging_due:
                self.check_finite(metrics)
        if logging_due:
            self.log_dict({f"train/{name}": value for name, value in metrics.items()})

    def validation_step(self, batch: TensorDict, batch_idx: int) -> None:
        """Log the losses of held-out tasks after adaptation; needs no simulator."""
        if "query" in batch.keys():
            for name, value in self.held_out_losses(batch["context"], batch["query"]).items():
                self.log(f"val/{name}", value, batch_size=len(batch))

    def test_step(self, batch: TensorDict, batch_idx: int) -> None:
        """As ``validation_step``; returns are measured by the Evaluate callback."""
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: TensorDict, batch_idx: int) -> BatchedPolicy:
        """Return the policies adapted to every task of the batch [T]."""
        return self.adapt_tasks(batch["context"], self.adaptation_steps)

    def setup(self, stage: str) -> None:
        """Check Lightning's settings and the dataset's sizes against this module's.

        Raises:
            ValueError: Says what was expected, what was found and the fix.
        """
        trainer = self.trainer
        loops: dict[str, _EvaluationLoop | _PredictionLoop] = {
            "validate": trainer.validate_loop,
            "test": trainer.test_loop,
            "predict": trainer.predict_loop,
        }  # validation inside fit never runs in inference mode, whatever the trainer's setting
        if (loop := loops.get(stage)) is not None and loop.inference_mode:
            raise ValueError(
                "Adaptation needs gradients while validating and testing: expected the trainer's "
                "inference_mode to be false, found true. Pass --trainer.inference_mode=false."
            )
        self._log_every = max(1, attributes_of(trainer).log_every_n_steps)
        datamodule = attributes_of(trainer).datamodule
        check_sizes(self.hparams, datamodule)
        check_fields(self.batch_fields, datamodule)
        if trainer.loggers:
            check_shared_settings(self.hparams, settings_of(datamodule))

    def compiled(
        self, function: Callable[..., Any], enabled: bool, mode: str = "default"
    ) -> Callable[..., Any]:
        """Return ``function``, compiled if ``enabled``; a failed compilation falls back."""
        return CompiledOrEager(function, mode) if enabled else function

    def task_weight(self, batch: TensorDict) -> Tensor:
        """Return the weight of each task's loss, [T]: 1 / tasks of the global batch."""
        weight: Tensor = batch["weight"]
        return weight

    def share_of_tasks(self, weight: Tensor) -> tuple[int, slice]:
        """Return how many tasks the global batch has, and which of them are this process's.

        Noise is drawn for the global batch and sliced, so that processes draw what one would.

        Args:
            weight: Weights of this process's tasks, [T], each 1 / tasks of the global batch.
        """
        trainer = self.trainer
        alone = trainer.world_size == 1 or not len(weight)
        num_tasks = len(weight) if alone else round(1.0 / float(weight[0]))
        return num_tasks, slice(trainer.global_rank, None, trainer.world_size)

    def apply_gradients(
        self, parameters: object, gradients: object, metrics: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Sum gradients and metrics over processes, clip, step the optimizer and its schedules.

        Gradients computed by ``torch.func`` pass DistributedDataParallel by, so they are summed
        here, as one flat buffer; losses are sums weighted by the global batch, so a sum is right.

        Args:
            parameters: Nested tuples, lists or dicts of parameters.
            gradients: A tensor for each parameter, in the same structure.
            metrics: Scalars of this process's share of the batch.

        Returns:
            The metrics of the global batch.
        """
        leaves = pytree.tree_leaves(gradients)
        if self.trainer.world_size > 1:
            leaves, metrics = summed(leaves, metrics)
        for parameter, gradient in zip(pytree.tree_leaves(parameters), leaves, strict=True):
            # Adam's fused kernel walks memory in order: a transposed gradient, which
            # ``torch.autograd.grad`` may return, would silently move the wrong weights.
            parameter.grad = gradient.contiguous()
        if self.clip_gradient_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters(), self.clip_gradient_norm)
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)  # a method has one, with parameter groups
        optimizer.step()
        optimizer.zero_grad()
        schedulers = self.lr_schedulers() or []
        for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
            assert isinstance(scheduler, LRScheduler)  # as ``with_linear_decay`` makes them
            scheduler.step()
        return metrics

    def noise_generator(self, *stream: int) -> torch.Generator:
        """Return a generator on the module's device; by default for this outer step's noise.

        It depends on the run's seed and the stream, or the number of the outer step, alone: every
        process of a run gets the same one, as one process alone would, and so does a resumed run.

        Args:
            stream: Numbers that name other noise than an outer step's.
        """
        numbers = (1, *stream) if stream else (0, self.global_step)
        sequence = np.random.SeedSequence([torch.initial_seed(), *numbers])
        seed = int(sequence.generate_state(1, np.uint64)[0])
        return torch.Generator(self.device).manual_seed(seed)

    @property
    def attached_trainer(self) -> lightning.Trainer | None:
        """The trainer; None where the module is used without one, as when it adapts."""
        try:
            return self.trainer
        except RuntimeError:  # Lightning's property raises where there is none
            return None

    def planned_steps(self) -> int | None:
        """Return the trainer's ``max_steps``; None without a trainer or a limit."""
        trainer = self.attached_trainer
        return trainer.max_steps if trainer and trainer.max_steps > 0 else None

    def with_linear_decay(
        self, optimizer: torch.optim.Optimizer, final: float
    ) -> OptimizerLRScheduler:
        """Return the result of ``configure_optimizers`` with linearly falling learning rates.

        Args:
            optimizer: The method's one optimizer.
            final: Share of its learning rates that is left at ``max_steps``; 1 keeps them.
        """
        steps = self.planned_steps()
        if final == 1.0 or steps is None:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, final, steps)]

    def check_finite(self, metrics: dict[str, Tensor]) -> None:
        """Stop at the first metric that is not finite.

        Raises:
            FloatingPointError: Names the step, the metric and the first bad parameter.
        """
        if torch.isfinite(torch.stack(tuple(metrics.values()))).all():
            return
        name = next(name for name, value in metrics.items() if not torch.isfinite(value))
        bad = [key for key, p in self.named_parameters() if not torch.isfinite(p).all()]
        raise FloatingPointError(
            f"{name} is {metrics[name].item()} at outer step {self.global_step}"
            + (f"; first parameter with NaN or inf: {bad[0]}" if bad else "")
            + ". Expected finite numbers. The last checkpoint is untouched: resume from it with "
            "--ckpt_path last, a smaller learning rate or clip_gradient_norm."
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store method, random state and dataset identity; refuse to save NaN or infinity."""
        for name, parameter in self.named_parameters():
            if not torch.isfinite(parameter).all():
                raise FloatingPointError(
                    f"{name} holds NaN or inf at outer step {self.global_step}; no checkpoint is "
                    "written, the last one is untouched."
                )
        # Plain types only: a checkpoint is read without running code.
        for key in checkpoint.keys() & {*SETTINGS}:
            checkpoint[key] = to_plain(checkpoint[key])
        checkpoint[METHOD] = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint[RANDOM_STATE] = random_state()
        trainer = self.attached_trainer
        datamodule = attributes_of(trainer).datamodule if trainer else None
        if isinstance(datamodule, TaskData):
            checkpoint[DATASET] = dataset_identity(datamodule.dataset)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check method and data; keep the random state for ``on_train_start``.

        Raises:
            ValueError: A checkpoint of another method, or training would go on with other data.
        """
        own = f"{type(self).__module__}.{type(self).__qualname__}"
        saved = Checkpoint(checkpoint)
        if saved.method != own:
            found = saved.method or "no offline_meta_rl method"
            raise ValueError(
                f"Expected a checkpoint of {own}, found one of {found}. Pass a config of that "
                "method, or another --ckpt_path."
            )
        trainer = self.attached_trainer
        if trainer is not None and trainer.state.fn == "fit":
            check_same_data(saved.dataset, attributes_of(trainer).datamodule)
        self._random_state = saved.random_state
