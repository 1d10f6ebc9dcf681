"""A first stage of behaviour data from a policy that was never trained.

The random exploration policy of MACAW's Figure 4: a network of MACAW's kind with its initial
weights, the same in every task, with Gaussian noise. Shapes: N environments, O/A observation/action
size, P numbers that describe a task.
"""

import torch
from torch import Tensor

from offline_meta_rl.behaviour.policy import BehaviourPolicy
from offline_meta_rl.envs.base import Array, TaskFamily
from offline_meta_rl.networks.generated import policy_forward, policy_sizes

STAGE = "untrained"
WIDTH, DEPTH, HEAD_WIDTH, LATENT_SIZE = 100, 3, 32, 100
SIGMA = 0.2


class WithUntrained:
    """A behaviour policy with one more stage before its own.

    Args:
        behaviour: The family's behaviour policy; one that acts on observations.
        family: The task family.
        episodes: Episodes of the untrained stage; part of ``digest``.
        seed: Seed of the initial weights.

    Raises:
        ValueError: The behaviour acts on the simulator's state.
    """

    sees_state = False

    def __init__(
        self, behaviour: BehaviourPolicy, family: TaskFamily, episodes: int, seed: int = 0
    ) -> None:
        if behaviour.sees_state:
            raise ValueError(
                f"untrained_episodes: expected a family whose behaviour acts on observations, "
                f"found {family.name}, which is scripted. Set it to 0."
            )
        self.behaviour = behaviour
        self.stages: list[str] = [STAGE, *behaviour.stages]
        self.digest = f"{behaviour.digest}-{STAGE}{episodes}"
        sizes = policy_sizes(family.observation_size, family.action_size, WIDTH, DEPTH, HEAD_WIDTH)
        generator = torch.Generator().manual_seed(seed)
        self._thetas = [initial_theta(*size, generator) for size in sizes[: DEPTH + 1]]

    def act(
        self,
        stage: int,
        observation: Tensor,
        parameters: Array,
        *,
        stochastic: bool,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return actions [N, A]; see ``BehaviourPolicy``."""
        # Stage 0 is the untrained network; the behaviour's own stages are one further.
        if stage:
            return self.behaviour.act(
                stage - 1, observation, parameters, stochastic=stochastic, generator=generator
            )
        action = policy_forward(self._thetas, observation.float()[None])[0]
        if stochastic:
            action = action + SIGMA * torch.randn(action.shape, generator=generator)
        return action.clamp(-1.0, 1.0)


def initial_theta(in_features: int, out_features: int, generator: torch.Generator) -> Tensor:
    """Return weights and biases, [1, D], as a weight-transform layer generates them at the start.

    theta = M z + c with z ~ N(0, 1 / out²), M and c uniform within 1 / sqrt(Z).
    """
    size, bound = (in_features + 1) * out_features, LATENT_SIZE**-0.5
    latent = torch.randn(LATENT_SIZE, generator=generator) / out_features
    matrix = (2.0 * torch.rand(size, LATENT_SIZE, generator=generator) - 1.0) * bound
    vector = (2.0 * torch.rand(size, generator=generator) - 1.0) * bound
    return (matrix @ latent + vector)[None]
