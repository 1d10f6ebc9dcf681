"""The behaviour policy of a family with a script: the script's actions with noise.

The script is given the simulator's state and the task. An agent that learns from the data sees
neither of the two. Shapes: N environments, X numbers of the state, A action size.
"""

import numpy as np
import torch
from torch import Tensor

from offline_meta_rl.envs.base import Array
from offline_meta_rl.envs.scripted import ScriptedFamily


class ScriptedBehaviour:
    """One stage, ``script``: the script's action plus Gaussian noise, clipped to [-1, 1].

    Args:
        family: The task family, which has the script.
    """

    sees_state = True
    stages: list[str]

    def __init__(self, family: ScriptedFamily) -> None:
        self.family = family
        self.stages = ["script"]
        self.digest = f"script-{family.script_version}"

    def act(
        self,
        stage: int,
        observation: Tensor,
        parameters: Array,
        *,
        stochastic: bool,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return actions [N, A] from states [N, X]; see ``BehaviourPolicy``."""
        mean = self.family.script(observation.numpy(), parameters)
        action = torch.from_numpy(np.asarray(mean, dtype=np.float32))
        if stochastic:
            noise = torch.randn(action.shape, generator=generator)
            action = action + self.family.script_noise * noise
        return action.clamp(-1.0, 1.0)
