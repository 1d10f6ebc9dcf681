"""The Reflective Explorer: meta-exploration from offline images (Rafailov et al., 2021).

Training has two stages, each a run of its own. First ``BeliefFilter`` trains a variational filter
to explain meta-trajectories that are stitched from the data of different tasks (section 3.6). Then
this method takes the filter as it is and trains a policy by conservative Q-learning on transitions
between its beliefs (section 3.7). At test time the filter carries its belief across episodes, and
the policy acts on it. ``lightning fit`` trains the filter first where there is none yet; see
``offline_meta_rl.stages``.

Defaults are the paper's formulas, with MELD's sizes where the paper says that it follows MELD. It
prints no numbers of its own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from tensordict import TensorDict
from torch import Tensor

from offline_meta_rl.common.checkpoints import Checkpoint
from offline_meta_rl.evaluation.measure import datamodule_of
from offline_meta_rl.losses.cql import CQLSettings
from offline_meta_rl.methods.belief_filter import HELD_OUT, FilterLearning
from offline_meta_rl.methods.checks import check_same_data
from offline_meta_rl.methods.cql import AGENT_NAMES
from offline_meta_rl.methods.cql_agent import (
    FIELDS,
    NETWORK,
    AgentLearning,
    CQLAgent,
    CQLModule,
)
from offline_meta_rl.networks.filter.beliefs import beliefs_of
from offline_meta_rl.networks.filter.checkpoint import load_filter
from offline_meta_rl.networks.filter.explorer import BeliefExplorer
from offline_meta_rl.networks.filter.model import VariationalFilter
from offline_meta_rl.networks.filter.settings import FilterSettings
from offline_meta_rl.networks.stacked import HiddenLayers

FILTER_RUN = "filter"
"""Folder of the filter's run below that of the policy's."""

FILTER_CHECKPOINT = Path(FILTER_RUN) / "checkpoints" / "last.ckpt"
ONE_MODULE = "explorer."
"""Prefix of all parameters while both stages were one module."""


@runtime_checkable
class ServesBeliefs(Protocol):
    """Data that serves transitions between a filter's beliefs, such as MetaTrajectories."""

    def serve_beliefs(self, model: VariationalFilter, folder: Path) -> tuple[Tensor, Tensor]:
        """Serve transitions between standardised beliefs from the next batch on.

        Args:
            model: Gives the beliefs.
            folder: Where they are kept, or found if they were computed before.

        Returns:
            Mean and standard deviation of each number of a belief, [Z].
        """


class ReflectiveExplorer(CQLModule):
    """Conservative Q-learning on the beliefs of a trained filter; data of MetaTrajectories.

    An outer step is an update of the policy; ``max_steps`` counts these alone. The filter's own run
    has ``filter_steps`` updates and is in the folder ``filter`` below this one's.

    Args:
        observation_shape: C, h, w of the images.
        action_size: A; actions lie in [-1, 1].
        filter: What the filter is made of and trained for.
        filter_steps: Updates of the filter in its own run.
        filter_learning: Learning rates of that run.
        filter_from: A checkpoint of another run, whose filter is used; none is trained then.
        network: Hidden layers of actor and critics.
        losses: Discount, conservative term, entropy of the actor.
        learning: Learning rates of the policy, and how fast the target critics follow.
        compile: Compile the policy's losses; falls back to eager with a warning.
        clip_gradient_norm: Largest norm of the whole gradient; None for no clipping.
    """

    training_stage: ClassVar[str] = "policy"
    renamed: ClassVar[Mapping[str, str]] = {
        **AGENT_NAMES,
        "final_policy_learning_rate": "learning.final_learning_rate",
        "filter_learning_rate": "filter_learning.learning_rate",
        "final_filter_learning_rate": "filter_learning.final_learning_rate",
        "latent": "filter.latent",
        "latent_sizes": "filter.recurrent or filter.two_level",
        "image_network": "filter.image_network",
        "image_size": "filter.image_size",
        "hidden_size": "filter.hidden_size",
        "reward_std": "filter.reward_std",
        "reward_weight": "filter.reward_weight",
        "prior_reward_weight": "filter.prior_reward_weight",
        "autocast": "filter.autocast",
    }

    mean: Tensor
    spread: Tensor

    def __init__(
        self,
        *,
        observation_shape: tuple[int, int, int],
        action_size: int,
        filter: FilterSettings = FilterSettings(),
        filter_steps: int = 20_000,
        filter_learning: FilterLearning = FilterLearning(),
        filter_from: str | None = None,
        network: HiddenLayers = NETWORK,
        losses: CQLSettings = CQLSettings(),
        learning: AgentLearning = AgentLearning(),
        compile: bool = False,
        clip_gradient_norm: float | None = None,
    ) -> None:
        super().__init__(learning, clip_gradient_norm)
        self.save_hyperparameters()
        self.filter_from = None if filter_from is None else Path(filter_from)
        self.filter = VariationalFilter(observation_shape, action_size, filter)
        # Section 3.7 trains the policy on beliefs that are given; the filter's training is over.
        self.filter.requires_grad_(False)
        size = self.filter.belief_size
        self.use(CQLAgent(size, action_size, network, losses), compile=compile)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))
        self.register_load_state_dict_pre_hook(_rename_parameters)
        self._restored = False  # whether a checkpoint of this method brought the filter

    @classmethod
    def first_stage(cls, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the changes that make this config the filter's; None if its filter is given.

        Args:
            settings: This class's arguments, plain, all of them.
        """
        if settings["filter_from"] is not None:
            return None
        arguments = {name: settings[name] for name in ("filter", "clip_gradient_norm")}
        return {
            "trainer": {"default_root_dir": FILTER_RUN, "max_steps": settings["filter_steps"]},
            "model": {
                "class_path": "BeliefFilter",
                "init_args": {**arguments, "learning": settings["filter_learning"]},
            },
            # The policy's batches do not matter to a filter: with others it is the same filter.
            "data": {"init_args": {"beliefs": {}}},
        }

    @classmethod
    def upgrade(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Move the sizes of the latent state to where they are today."""
        found = dict(given)
        sizes = found.pop("latent_sizes", None)
        if sizes:
            latent = str(found.get("latent", FilterSettings().latent))
            found["filter"] = {**found.get("filter", {}), latent: sizes}
        return found

    @property
    def explorer(self) -> BeliefExplorer:
        """Filter and policy, as meta-episodes need them."""
        return BeliefExplorer(self.filter, self.agent.act, self.mean, self.spread)

    def held_out_beliefs(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the beliefs of M meta-trajectories, [M, S, Z]; always with the same noise."""
        return beliefs_of(self.filter, batch, self.noise_generator(HELD_OUT))

    def outer_step(self, batch: TensorDict) -> dict[str, Tensor]:
        """One update of Eq. 3 and of the actor, on transitions between standardised beliefs [B].

        Args:
            batch: FIELDS, [B, ...], the beliefs [B, Z] as observations; ``weight``: 1 / rows of all
                processes, [B].

        Returns:
            Weighted means over rows to log, [] each; see ``cql_losses``.
        """
        rows = {name: batch[name] for name in FIELDS}
        size, action_size = rows["action"].shape
        # Single rows, so every group of ``update`` has one transition.
        return self.update(rows, (size, 1, action_size), self.task_weight(batch))

    def setup(self, stage: str) -> None:
        """Check the data's kind too.

        Raises:
            TypeError: Data that serve no beliefs.
            ValueError: Says what was expected, what was found and the fix.
        """
        super().setup(stage)
        data = datamodule_of(self.trainer)
        if stage == "fit" and not isinstance(data, ServesBeliefs):
            raise TypeError(
                "ReflectiveExplorer learns from beliefs over meta-trajectories: expected a "
                f"datamodule such as MetaTrajectories, found {type(data).__name__}. Set --data "
                "MetaTrajectories."
            )

    def on_train_start(self) -> None:
        """Take over the trained filter; serve transitions between its beliefs.

        Raises:
            FileNotFoundError: No checkpoint of a filter.
            ValueError: One that does not fit, that is still being trained, or that was trained on
                other data.
        """
        super().on_train_start()
        source = self.filter_checkpoint()
        data = datamodule_of(self.trainer)
        assert isinstance(data, ServesBeliefs)  # checked in setup
        # A resumed run has its filter in its own checkpoint, even if the filter's run is gone.
        if not self._restored:
            load_filter(self.filter, source)
            if self.filter_from is None:
                # The data may have been collected anew since; another run's may be others.
                check_same_data(Checkpoint.read(source, mapped=True).dataset, data)
        mean, spread = data.serve_beliefs(self.filter, source.parent.parent / "beliefs")
        # Kept as buffers: at test time beliefs are standardised with the training's numbers.
        self.mean.copy_(mean)
        self.spread.copy_(spread)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check method and data.

        Raises:
            ValueError: If the checkpoint is of another method, or of a run that cannot be resumed.
        """
        super().on_load_checkpoint(checkpoint)
        one_module = any(name.startswith(ONE_MODULE) for name in checkpoint["state_dict"])
        if one_module and self.trainer.state.fn == "fit":
            raise ValueError(
                "This checkpoint was written when filter and policy were trained by one module, "
                "and its training cannot be resumed. Test it with `lightning test --ckpt_path`, "
                "or train another policy on its filter: --model.filter_from, without --ckpt_path."
            )
        self._restored = True

    def filter_checkpoint(self) -> Path:
        """Return the checkpoint that the filter is from."""
        return self.filter_from or Path(self.trainer.default_root_dir) / FILTER_CHECKPOINT


def _rename_parameters(
    _module: torch.nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """Give the parameters of a checkpoint of the one module their names of today."""
    for name in [name for name in state_dict if name.startswith(prefix + ONE_MODULE)]:
        # Changed in place: a pre-hook has no other way to rename.
        state_dict[prefix + name.removeprefix(prefix + ONE_MODULE)] = state_dict.pop(name)
