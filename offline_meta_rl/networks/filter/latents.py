"""What a latent state model is to the variational filter.

Shapes: S steps, B rows, X size of what is seen at a step (image feature and reward), A action size,
E noise size, L sample size, Z belief size.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

State = tuple[Tensor, ...]
"""What a filter carries from one step to the next, [B, ...] each."""


class Filtered(NamedTuple):
    """What filtering a sequence returns.

    Attributes:
        sample: Sample of the posterior at every step, for decoders, [S, B, L].
        parameters: What else the latent state model needs for beliefs and divergences.
        previous: State before every step, [S, B, ...] each.
    """

    sample: Tensor
    parameters: tuple[Tensor, ...]
    previous: State


class Latent(nn.Module, ABC):
    """A latent state model.

    Attributes:
        sample_size: L, numbers in a sample.
        belief_size: Z, numbers in a belief.
        noise_size: E, standard normal numbers that one step uses.
    """

    sample_size: int
    belief_size: int
    noise_size: int

    @abstractmethod
    def initial(self, batch_size: int) -> State:
        """Return the state before the first step of B sequences, [B, ...] each."""

    @abstractmethod
    def step(
        self, state: State, seen: Tensor, action: Tensor, noise: Tensor
    ) -> tuple[State, Tensor, Tensor]:
        """Filter one step.

        Args:
            state: State after the step before.
            seen: Image feature and reward of the step, [B, X].
            action: Action that led to this step, [B, A].
            noise: Standard normal, [B, E].

        Returns:
            The state, the sample [B, L] and the belief [B, Z].
        """

    @abstractmethod
    def filter(
        self, seen: Tensor, action: Tensor, noise: Tensor, mask: Tensor | None = None
    ) -> Filtered:
        """Filter a sequence from its beginning; the same as ``step`` after ``step``.

        Args:
            seen: Image feature and reward of every step, [S, B, X].
            action: Action that led to each step, [S, B, A].
            noise: Standard normal, [S, B, E].
            mask: False where there is nothing and the state stays as it is, [S, B]; None if there
                is something everywhere. The sample means nothing where it is False.
        """

    @abstractmethod
    def belief(self, filtered: Filtered) -> Tensor:
        """Return the belief at every step of a filtered sequence, [S, B, Z]."""

    @abstractmethod
    def prior(self, filtered: Filtered, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Compare a filtered sequence with what was expected from each step before.

        Args:
            filtered: What ``filter`` returned.
            action: Action that led to each step, [S, B, A].
            noise: Standard normal, [S, B, E].

        Returns:
            KL divergence of posterior and prior at each step [S, B], and samples of the prior
            [S, B, L].
        """
