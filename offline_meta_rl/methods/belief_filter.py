"""Train a variational filter on meta-trajectories: the Reflective Explorer's first stage.

Section 3.6 of Rafailov et al. (2021). The filter's belief is what the policy of the second stage
acts on, ``offline_meta_rl.methods.reflective_explorer``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor

from offline_meta_rl.common.checkpoints import PLANNED_STEPS
from offline_meta_rl.common.settings import check_at_least
from offline_meta_rl.methods.base import MetaModule
from offline_meta_rl.networks.filter.beliefs import beliefs_of, draw_noise, reconstructions_of
from offline_meta_rl.networks.filter.model import VariationalFilter
from offline_meta_rl.networks.filter.settings import FilterSettings

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

HELD_OUT = 1
"""Stream of the noise that held-out meta-trajectories are filtered with."""


@dataclass(frozen=True)
class FilterLearning:
    """How a filter's weights are moved.

    Attributes:
        learning_rate: Adam's learning rate, at least 0.
        final_learning_rate: Share of it that is left at the trainer's ``max_steps``, reached
            linearly; 1 keeps it.

    Raises:
        ValueError: a negative rate.
    """

    learning_rate: float = 1e-4
    final_learning_rate: float = 1.0

    def __post_init__(self) -> None:
        """Check the rates."""
        check_at_least(self, 0, "learning_rate", "final_learning_rate")


class BeliefFilter(MetaModule):
    """A variational filter in training; its data are the batches of MetaTrajectories.

    Args:
        observation_shape: C, h, w of the images.
        action_size: A; actions lie in [-1, 1].
        filter: What the filter is made of and trained for.
        learning: Learning rates.
        clip_gradient_norm: Largest norm of the whole gradient; None for no clipping.
    """

    training_stage: ClassVar[str] = "filter"

    def __init__(
        self,
        *,
        observation_shape: tuple[int, int, int],
        action_size: int,
        filter: FilterSettings = FilterSettings(),
        learning: FilterLearning = FilterLearning(),
        clip_gradient_norm: float | None = None,
    ) -> None:
        super().__init__(clip_gradient_norm=clip_gradient_norm)
        self.save_hyperparameters()
        self.learning = learning
        self.filter = VariationalFilter(observation_shape, action_size, filter)

    def outer_step(self, batch: TensorDict) -> dict[str, Tensor]:
        """One step up the evidence lower bound of section 3.6, on meta-trajectories [B].

        Args:
            batch: observation [B, S, C, h, w] uint8, action [B, S, A], reward and mask [B, S], and
                ``weight`` 1 / meta-trajectories of all processes, [B].

        Returns:
            The loss and its terms to log, [] each; see ``VariationalFilter.elbo``.
        """
        noise = self._noise(batch["mask"], self.task_weight(batch))
        losses = self.filter.elbo(batch, noise)
        parameters = list(self.filter.parameters())
        # Not ``backward``: hooks of DistributedDataParallel would average what we sum.
        gradients = torch.autograd.grad(losses["loss"], parameters)
        metrics = {name: value.detach() for name, value in losses.items()}
        return self.apply_gradients(parameters, list(gradients), metrics)

    @torch.no_grad()
    def validation_step(self, batch: TensorDict, batch_idx: int) -> None:
        """Log the evidence lower bound of held-out meta-trajectories and its terms."""
        held_out = batch["held_out"].to(self.device)
        # The same noise at every validation, so that a change of the bound is one of the filter.
        noise = draw_noise(self.filter, held_out["mask"], self.noise_generator(HELD_OUT))
        for name, value in self.filter.elbo(held_out, noise).items():
            self.log(f"val/{name}", value, batch_size=len(held_out))

    def held_out_beliefs(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the beliefs of M meta-trajectories, [M, S, Z]; always with the same noise."""
        return beliefs_of(self.filter, batch, self.noise_generator(HELD_OUT))

    def reconstructions(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the decoded images, [M, S, C, h, w] uint8; always with the same noise."""
        return reconstructions_of(self.filter, batch, self.noise_generator(HELD_OUT))

    def configure_optimizers(self) -> "OptimizerLRScheduler":
        """One fused Adam."""
        optimizer = torch.optim.Adam(
            self.filter.parameters(), self.learning.learning_rate, fused=True
        )
        return self.with_linear_decay(optimizer, self.learning.final_learning_rate)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say how many updates were planned, so that nobody takes half a filter for a whole one."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[PLANNED_STEPS] = self.trainer.max_steps

    def _noise(self, mask: Tensor, weight: Tensor) -> Tensor:
        """Draw noise for the rows of all processes, and keep that of this one's rows."""
        count, mine = self.share_of_tasks(weight)
        shape = (count, mask.shape[1], self.filter.noise_size)
        # Drawn for all rows and then sliced: the result does not depend on the number of processes.
        generator = self.noise_generator()
        return torch.randn(*shape, generator=generator, device=self.device)[mine]
