"""What the losses of MACAW depend on besides parameters and data, in groups.

Defaults are Algorithm 1 of the paper (Mitchell et al., 2021) with the numbers of the authors'
``standard.json``. The command line fills the groups: ``--model.inner.num_steps 3``.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from offline_meta_rl.losses.awr import AWRSettings
from offline_meta_rl.networks.inner_loop import InnerLoop
from offline_meta_rl.networks.layers import GeneratedNetwork


@dataclass(frozen=True)
class MacawNetwork(GeneratedNetwork):
    """Size and kind of the layers of policy and value function.

    Attributes:
        head_width: Units of the advantage head's hidden layer.
    """

    head_width: int = 32


@dataclass(frozen=True)
class MacawInnerLoop(InnerLoop):
    """How policy and value function adapt in meta-training.

    Attributes:
        value_step: Initial step size of the value function's tensors.
        advantage_coefficient: Initial lambda of Eq. 3; 0 removes the enriched loss (MAML+AWR).
        adapt_matrices: Let the inner loop change M and c too (authors, and theta in Algorithm 1).
            False changes the latent codes only, as section 4.3 words it.
        step_size_map: How a learned step size comes from its logarithm: ``exp``, or the authors'
            ``softplus``.
    """

    value_step: float = 1e-3
    advantage_coefficient: float = 1e-2
    adapt_matrices: bool = True
    step_size_map: Literal["exp", "softplus"] = "exp"

    @property
    def enriched(self) -> bool:
        """Whether the policy's inner loss has the regression onto advantages."""
        return self.advantage_coefficient > 0.0

    def positive(self, logarithm: Tensor) -> Tensor:
        """Return the positive number that a learned logarithm stands for."""
        exp = self.step_size_map == "exp"
        return torch.exp(logarithm) if exp else nn.functional.softplus(logarithm)

    def step_sizes(self, logarithm: Tensor) -> Tensor:
        """Return the step sizes of every layer's tensors, z first, [layers, tensors]."""
        sizes = self.positive(logarithm)
        if self.adapt_matrices:
            return sizes
        # Step sizes of 0 for all but z, the first tensor. Section 4.3 speaks of the latent code
        # alone; Algorithm 1 and the authors' code update every parameter.
        latent_only = torch.eye(sizes.shape[-1], device=sizes.device, dtype=sizes.dtype)[0]
        return sizes * latent_only


@dataclass(frozen=True)
class ValueTarget:
    """What the value function and the advantages learn from.

    Attributes:
        kind: ``monte_carlo`` returns (Eq. 2), ``td_lambda`` (future work in the paper; see
            ``awr.td_lambda_return``), or the upper ``expectile`` of the returns (as in IQL; see
            ``awr.expectile_loss``).
        td_lambda: lambda of the kind ``td_lambda``, in [0, 1]; 0 is TD(0), 1 is Monte-Carlo.
        expectile: tau of the kind ``expectile``, in (0, 1); above 0.5 for the upper end.
        discount: gamma per step of the kind ``td_lambda``; must be the data's.
    """

    kind: Literal["monte_carlo", "td_lambda", "expectile"] = "monte_carlo"
    td_lambda: float = 0.95
    expectile: float = 0.7
    discount: float = 0.99

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: Names the settings, what was expected and what was found.
        """
        if not (0 <= self.td_lambda <= 1 and 0 < self.expectile < 1):
            raise ValueError(
                f"Expected td_lambda in [0, 1] and expectile in (0, 1), found {self.td_lambda} and "
                f"{self.expectile}."
            )


@dataclass(frozen=True)
class AuthorsVariants:
    """Where the authors' code departs from the paper; all are off by default.

    Attributes:
        bootstrap_advantage: Advantages use R + gamma^k V'(s_end) in place of R.
        bootstrap_outer_value: So does the target of the outer value loss, with a target function
            one tenth of the way from V to V'.
        rectify_head_action: The advantage head sees max(a, 0).
        split_inner_batch: Give each of several inner steps its own part of the batch.
        divide_by_all_tasks: Outer losses are divided by the number of training tasks, not of the
            batch's tasks. (Adam hardly notices.)
    """

    bootstrap_advantage: bool = False
    bootstrap_outer_value: bool = False
    rectify_head_action: bool = False
    split_inner_batch: bool = False
    divide_by_all_tasks: bool = False


@dataclass(frozen=True)
class MacawSettings:
    """All that the losses depend on besides parameters and data.

    Attributes:
        network: Size and kind of the layers of policy and value function.
        inner: Inner loop: steps, their initial sizes, the enriched loss.
        awr: Advantage-weighted regression of inner and outer loop.
        target: What the value function learns from.
        authors: Where the authors' code departs from the paper.
    """

    network: MacawNetwork = MacawNetwork()
    inner: MacawInnerLoop = MacawInnerLoop()
    awr: AWRSettings = AWRSettings()
    target: ValueTarget = ValueTarget()
    authors: AuthorsVariants = AuthorsVariants()

    def __post_init__(self) -> None:
        """Refuse settings that do not go together.

        Raises:
            ValueError: Names the settings and the fix.
        """
        authors = self.authors
        # The target function is phi after one step of a tenth of the size, which has no counterpart
        # after several steps.
        if authors.bootstrap_outer_value and self.inner.num_steps != 1:
            raise ValueError(
                "authors.bootstrap_outer_value is defined for one inner step, found "
                f"inner.num_steps={self.inner.num_steps}. Set one of them back to its default."
            )
        bootstraps = authors.bootstrap_advantage or authors.bootstrap_outer_value
        if bootstraps and self.target.kind != "monte_carlo":
            raise ValueError(
                "authors.bootstrap_advantage and authors.bootstrap_outer_value are defined for "
                f"target.kind monte_carlo, found {self.target.kind}. Set one of them back to its "
                "default."
            )
        plain = self.network.layer == "plain" or not self.network.latent_size
        if not self.inner.adapt_matrices and plain:
            raise ValueError(
                "inner.adapt_matrices=false adapts latent codes alone; expected layers that have "
                "some, found plain layers. Set inner.adapt_matrices back to true."
            )
