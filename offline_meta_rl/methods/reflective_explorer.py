"""The Reflective Explorer: meta-exploration from offline images (Rafailov et al., 2021).

Training has two stages in one run. First a variational filter learns to explain meta-trajectories
stitched from the data of different tasks (section 3.6). Then it is frozen, its beliefs over such
meta-trajectories are computed once, and conservative Q-learning trains a policy on transitions
between beliefs (section 3.7). At test time the filter carries its belief across episodes, and the
policy acts on it.

Constructor defaults are the paper's formulas, with MELD's sizes where the paper says that it
follows MELD. It prints no numbers of its own.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.utils import _pytree as pytree

from offline_meta_rl.losses.cql import CQLNoise, CQLSettings, draw_noise
from offline_meta_rl.methods.base import MetaModule
from offline_meta_rl.methods.belief_explorer import ROWS, BeliefExplorer
from offline_meta_rl.methods.cql_agent import CQLAgent, total_loss
from offline_meta_rl.networks.filter.checkpoint import load_filter
from offline_meta_rl.networks.filter.model import VariationalFilter

CACHE, HELD_OUT = 0, 1  # streams of noise


class ReflectiveExplorer(MetaModule):
    """Variational filter, then conservative Q-learning on its beliefs; data of MetaTrajectories.

    An outer step is one update of the stage that is running: steps 1 to ``filter_steps`` train the
    filter, the rest of the trainer's ``max_steps`` the policy.

    Args:
        observation_shape: C, h, w of the images.
        action_size: A; actions lie in [-1, 1].
        filter_steps: updates of the filter.
        filter_from: checkpoint of another run whose filter is used. Its stage is then skipped, and
            ``max_steps`` shortened by ``filter_steps``, so that the policy is trained as long.
        latent: ``two_level`` (the paper's, after MELD) or ``recurrent``, whose beliefs have a
            deterministic part besides mean and variance.
        latent_sizes: of the latent by name; None for its defaults.
        image_network: ``convolutional`` or ``dense``.
        image_size: depth of the convolutions, or hidden size of dense layers.
        hidden_size: of the reward decoder.
        reward_std: fixed standard deviation of rewards.
        reward_weight: beta of section 3.6.
        prior_reward_weight: of decoding rewards from the prior too; the paper has 0, with which the
            filter may forget the task between episodes.
        autocast: run image networks in bfloat16.
        filter_learning_rate: of Adam.
        final_filter_learning_rate: share of it that is left when the filter is trained, reached
            linearly; 1 keeps it.
        width: of every hidden layer of actor and critics.
        depth: hidden layers of actor and critics.
        actor_learning_rate: of Adam.
        critic_learning_rate: of Adam.
        final_policy_learning_rate: share of both that is left at the trainer's ``max_steps``.
        discount: per step.
        target_update: share of the critics that moves into the targets at each update.
        conservative_weight: beta of Eq. 3; 0 is the paper's "No CQL".
        conservative_form: ``uniform`` (the paper's) or ``logsumexp`` (CQL(H)).
        conservative_temperature: of ``logsumexp``; CQL(H) has 1.
        num_actions: sampled actions in each group.
        importance_weights: subtract log densities inside ``logsumexp``.
        entropy_weight: of the actor's log density in its loss; the paper has none.
        min_log_std: floor of the logarithm of the actor's standard deviation.
        compile: compile the policy's losses; falls back to eager with a warning.
        clip_gradient_norm: largest norm of the whole gradient; None for no clipping.
    """

    def __init__(
        self,
        *,
        observation_shape: tuple[int, int, int],
        action_size: int,
        filter_steps: int = 20_000,
        filter_from: str | None = None,
        latent: Literal["two_level", "recurrent"] = "two_level",
        latent_sizes: dict[str, int] | None = None,
        image_network: Literal["convolutional", "dense"] = "convolutional",
        image_size: int = 64,
        hidden_size: int = 256,
        reward_std: float = 0.2,
        reward_weight: float = 10.0,
        prior_reward_weight: float = 0.0,
        autocast: bool = False,
        filter_learning_rate: float = 1e-4,
        final_filter_learning_rate: float = 1.0,
        width: int = 256,
        depth: int = 2,
        actor_learning_rate: float = 1e-4,
        critic_learning_rate: float = 3e-4,
        final_policy_learning_rate: float = 1.0,
        discount: float = 0.99,
        target_update: float = 0.005,
        conservative_weight: float = 1.0,
        conservative_form: Literal["uniform", "logsumexp"] = "uniform",
        conservative_temperature: float = 1.0,
        num_actions: int = 10,
        importance_weights: bool = False,
        entropy_weight: float = 0.0,
        min_log_std: float = -20.0,
        compile: bool = False,
        clip_gradient_norm: float | None = None,
    ) -> None:
        super().__init__(clip_gradient_norm=clip_gradient_norm)
        self.save_hyperparameters()
        model = VariationalFilter(
            observation_shape,
            action_size,
            latent=latent,
            latent_sizes=latent_sizes,
            image_network=image_network,
            image_size=image_size,
            hidden_size=hidden_size,
            reward_std=reward_std,
            reward_weight=reward_weight,
            prior_reward_weight=prior_reward_weight,
            autocast=autocast,
        )
        agent = CQLAgent(
            model.belief_size,
            action_size,
            width=width,
            depth=depth,
            target_update=target_update,
            settings=CQLSettings(
                discount=discount,
                weight=conservative_weight,
                form=conservative_form,
                temperature=conservative_temperature,
                num_actions=num_actions,
                importance_weights=importance_weights,
                entropy_weight=entropy_weight,
                min_log_std=min_log_std,
            ),
        )
        self.explorer = BeliefExplorer(model, agent, action_size)
        self._policy_losses = self.compiled(agent.losses, compile)

    @property
    def filter_steps(self) -> int:
        """Updates of the filter in this run."""
        return 0 if self.hparams.filter_from else int(self.hparams.filter_steps)

    @property
    def training_stage(self) -> str:
        """What the next outer step trains, ``filter`` or ``policy``."""
        return "filter" if self.global_step < self.filter_steps else "policy"

    def outer_step(self, batch: TensorDict) -> dict[str, Tensor]:
        """One update of the filter on meta-trajectories, or of the policy on belief transitions."""
        return self.policy_step(batch) if "belief" in batch.keys() else self.filter_step(batch)

    def filter_step(self, batch: TensorDict) -> dict[str, Tensor]:
        """One step up the evidence lower bound of section 3.6, on meta-trajectories [B]."""
        noise = self._share(self._filter_noise, batch, tuple(batch["mask"].shape))
        losses = self.explorer.filter.elbo(batch, noise)
        parameters = list(self.explorer.filter.parameters())
        gradients = torch.autograd.grad(losses["loss"], parameters)
        metrics = {name: value.detach() for name, value in losses.items()}
        return self.apply_gradients(parameters, list(gradients), metrics)

    def policy_step(self, batch: TensorDict) -> dict[str, Tensor]:
        """One update of Eq. 3 and of the actor, on transitions between standardised beliefs [B]."""
        transitions = {
            "observation": batch["belief"],
            "action": batch["action"],
            "reward": batch["reward"],
            "next_observation": batch["next_belief"],
            "terminated": batch["terminal"],
        }
        noise = self._share(self._policy_noise, batch, tuple(batch["action"].shape))
        losses = self._policy_losses(transitions, noise, batch["weight"])
        parameters = pytree.tree_leaves(self.explorer.agent.learned())
        gradients = torch.autograd.grad(total_loss(losses), parameters)
        metrics = {name: value.detach() for name, value in losses.items()}
        metrics = self.apply_gradients(parameters, list(gradients), metrics)
        self.explorer.agent.update_targets()
        return metrics

    def training_step(self, batch: TensorDict, batch_idx: int) -> None:
        """Do the outer steps of the batch; after the filter's last one, cache the beliefs."""
        filtering = self.training_stage == "filter"
        super().training_step(batch, batch_idx)
        if filtering and self.training_stage == "policy":
            self.cache_beliefs()

    def on_train_start(self) -> None:
        """Restore the random state; a run that resumes after the filter's stage caches again."""
        super().on_train_start()
        if self.training_stage == "policy":
            self.cache_beliefs()

    def cache_beliefs(self) -> None:
        """Freeze the filter: compute the beliefs that the policy learns from, and serve them.

        They depend on the filter, the data and the seed alone, and so are the same again whenever
        the run is resumed. Each number of a belief is standardised over all of them.
        """
        trainer: Any = self.trainer
        generator = self.noise_generator(CACHE)
        parts: list[Any] = []
        for batch in trainer.datamodule.belief_batches(ROWS):
            part = batch.to(self.device)
            part["belief"] = self.explorer.beliefs(part, generator)
            parts.append(part.select("belief", "action", "reward", "mask"))
        cache: Any = torch.cat(parts)
        self.explorer.measure(cache["belief"][cache["mask"]])
        cache["belief"] = self.explorer.standardise(cache["belief"])
        trainer.datamodule.serve_beliefs(cache)

    def held_out_generator(self) -> torch.Generator:
        """Return a generator for beliefs that are looked at; always the same noise."""
        return self.noise_generator(HELD_OUT)

    @torch.no_grad()
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the evidence lower bound of held-out meta-trajectories while the filter learns."""
        if self.trainer.state.fn == "fit" and self.training_stage == "policy":
            return
        held_out = batch["held_out"].to(self.device)
        noise = self.explorer.noise_for(held_out, self.held_out_generator())
        for name, value in self.explorer.filter.elbo(held_out, noise).items():
            self.log(f"val/{name}", value, batch_size=len(held_out))

    def setup(self, stage: str) -> None:
        """Check shapes and intervals; take over another run's filter if one is named.

        Raises:
            ValueError: with what was expected, what was found and the fix.
        """
        super().setup(stage)
        trainer: Any = self.trainer
        found = list(getattr(trainer.datamodule, "image_shape", ()))
        if found and found != list(self.hparams.observation_shape):
            raise ValueError(
                f"The module was built for observation_shape {self.hparams.observation_shape}, the "
                f"data has {found}. Set --model.init_args.observation_shape='{found}', or pass "
                "other data."
            )
        if stage != "fit":
            return
        _check_stages(self.filter_steps, getattr(trainer.datamodule, "hparams", {}))
        if self.hparams.filter_from:
            if trainer.max_steps > 0:
                trainer.fit_loop.epoch_loop.max_steps -= int(self.hparams.filter_steps)
            if not trainer.ckpt_path:
                load_filter(self.explorer.filter, Path(self.hparams.filter_from))

    def configure_optimizers(self) -> Any:
        """One fused Adam; filter, actor and critics are its parameter groups."""
        rates = self.hparams
        groups = [
            {"params": self.explorer.filter.parameters(), "lr": rates.filter_learning_rate},
            {"params": self.explorer.agent.actor.parameters(), "lr": rates.actor_learning_rate},
            {"params": self.explorer.agent.critics.parameters(), "lr": rates.critic_learning_rate},
        ]
        optimizer = torch.optim.Adam(groups, fused=True)
        start = self.filter_steps
        stages = [
            falling(0, start, rates.final_filter_learning_rate),
            *[falling(start, self.trainer.max_steps, rates.final_policy_learning_rate)] * 2,
        ]
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, stages)]

    def _filter_noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        size = self.explorer.noise_size
        return torch.randn(*shape, size, generator=generator, device=self.device)

    def _policy_noise(self, shape: tuple[int, ...], generator: torch.Generator) -> CQLNoise:
        return draw_noise(
            shape, self.explorer.agent.settings, device=self.device, generator=generator
        )

    def _share(self, draw: Any, batch: TensorDict, shape: tuple[int, ...]) -> Any:
        """Draw noise for the rows of all processes, and keep that of this one's rows."""
        trainer: Any = self.trainer
        count, world = shape[0], trainer.world_size
        if world > 1:
            count = round(1.0 / float(batch["weight"][0]))
        noise = draw((count, *shape[1:]), self.noise_generator())
        return pytree.tree_map(lambda rows: rows[trainer.global_rank :: world], noise)


def falling(start: int, end: int, final: float) -> Callable[[int], float]:
    """Return the share of a learning rate at each step: 1 until start, then linearly to final."""

    def share(step: int) -> float:
        done = (step - start) / max(1, end - start)
        return 1.0 - (1.0 - final) * min(1.0, max(0.0, done))

    return share


def _check_stages(filter_steps: int, data: Mapping[str, Any]) -> None:
    """Check that the filter's stage ends with a batch.

    Raises:
        ValueError: it does not.
    """
    for name in ("updates_per_batch", "policy_updates_per_batch"):
        count = data.get(name, 1)
        if filter_steps % count:
            raise ValueError(
                f"filter_steps: expected a multiple of {name} {count}, found {filter_steps}. "
                "Change one of them."
            )
