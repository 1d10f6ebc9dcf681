"""Behaviour policies: the agents, poor to expert, whose data a task dataset consists of.

The MuJoCo families ship snapshots of one task-conditioned soft actor-critic agent, taken at several
stages of its training (``configs/behaviour/``); the point robots and the drawers are scripted.
A behaviour policy knows the task: it is given the task's parameters. Shapes: N environments, O
observation size, A action size, P numbers that describe a task.
"""

import hashlib
from importlib import resources
from pathlib import Path
from typing import NotRequired, Protocol, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offline_meta_rl.behaviour.scripted import ScriptedBehaviour
from offline_meta_rl.envs.base import Array, TaskFamily
from offline_meta_rl.envs.point_robot import STEP, PointRobot
from offline_meta_rl.envs.scripted import ScriptedFamily
from offline_meta_rl.evaluation.rollout import Act
from offline_meta_rl.networks.actors import TENSORDICT_SCALE, BehaviourActor, DeviationScale
from offline_meta_rl.networks.stacked import HiddenLayers

FORMAT_VERSION = 2
"""Of the files under ``policies/``. Format 1 had two hidden layers and tensordict's scale."""


class PackedScale(TypedDict):
    """The arguments of ``DeviationScale``."""

    floor: float
    at_zero: float


class PackedLayers(TypedDict):
    """The arguments of ``HiddenLayers``."""

    width: int
    depth: int


class PackedStage(TypedDict):
    """One snapshot of an agent's training.

    Attributes:
        name: Of the stage.
        step: Updates when it was taken.
        mean_return: Of the mean action in each task, [T].
        noisy_return: Of sampled actions, [T].
        actor: State of the BehaviourActor, half precision.
    """

    name: str
    step: int
    mean_return: Tensor
    noisy_return: Tensor
    actor: dict[str, Tensor]


class Package(TypedDict):
    """A file under ``policies/``.

    Attributes:
        format: Version of the file's format.
        family: Name of the task family.
        family_version: Of its rewards and dynamics.
        hidden_size: Width of the actors' two hidden layers, in format 1.
        network: The actors' hidden layers, from format 2 on.
        scale: Of the actors, from format 2 on.
        stages: Poor to expert.
    """

    format: int
    family: str
    family_version: int
    hidden_size: NotRequired[int]
    network: NotRequired[PackedLayers]
    scale: NotRequired[PackedScale]
    stages: list[PackedStage]


class BehaviourPolicy(Protocol):
    """Acts in any task of a family, at any stage of quality.

    Attributes:
        stages: Names of the stages, poor to expert.
        digest: Eight hex digits that change whenever the policy does; part of a dataset's name.
        sees_state: Whether it acts on the engine's state, not on observations.
    """

    stages: list[str]
    digest: str
    sees_state: bool

    def act(
        self,
        stage: int,
        observation: Tensor,
        parameters: Array,
        *,
        stochastic: bool,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return actions [N, A] in [-1, 1].

        Args:
            stage: Index into ``stages``.
            observation: [N, O]; the state [N, X] if ``sees_state``.
            parameters: Task parameters of every row, [N, P].
            stochastic: Whether to sample, as for collecting data, or to take the mean action.
            generator: Source of the noise.
        """
        ...


class LearnedBehaviour:
    """Snapshots of one task-conditioned actor.

    Args:
        family: The task family.
        package: Content of a file that ``lightning behaviour pack`` wrote.
        digest: Digest of the file.
    """

    sees_state = False

    def __init__(self, family: TaskFamily, package: Package, digest: str) -> None:
        self.family, self.digest = family, digest
        self.stages: list[str] = [stage["name"] for stage in package["stages"]]
        self.training_steps: list[int] = [stage["step"] for stage in package["stages"]]
        # The number of features does not depend on the seed; any task tells it.
        feature_size = family.task_features(family.task_parameters(0)[:1]).shape[1]
        sizes = (family.observation_size, feature_size, family.action_size)
        if package["format"] == 1:
            network, scale = HiddenLayers(package["hidden_size"], depth=2), TENSORDICT_SCALE
        else:
            network, scale = HiddenLayers(**package["network"]), DeviationScale(**package["scale"])
        self._actors: list[BehaviourActor] = []
        for stage in package["stages"]:
            actor = BehaviourActor(*sizes, network, scale)
            actor.load_state_dict({key: value.float() for key, value in stage["actor"].items()})
            self._actors.append(actor.requires_grad_(False))

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
        features = torch.from_numpy(self.family.task_features(parameters))
        return self._actors[stage].act(
            observation, features, stochastic=stochastic, generator=generator
        )


class ScriptedPointRobot:
    """Moves straight to the goal: the better the stage, the faster and the less noisily.

    The mean action of the best stage moves 0.1 m along the longer axis each step and stops at the
    goal. The first stage is all noise.
    """

    sees_state = False
    stages: list[str]
    gains = (0.0, 0.15, 0.45, 1.0)
    noises = (1.0, 0.6, 0.4, 0.2)

    def __init__(self) -> None:
        self.stages = ["random", "poor", "medium", "expert"]
        self.digest = "script-1"

    def act(
        self,
        stage: int,
        observation: Tensor,
        parameters: Array,
        *,
        stochastic: bool,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return actions [N, 2]; see ``BehaviourPolicy``."""
        way = (torch.from_numpy(parameters).to(observation) - observation) / STEP
        longest = way.abs().amax(dim=-1, keepdim=True)
        action = self.gains[stage] * way / longest.clamp(min=1.0)
        if stochastic:
            action = action + self.noises[stage] * torch.randn(action.shape, generator=generator)
        return action.clamp(-1.0, 1.0)


def behaviour_file(family: TaskFamily) -> Path:
    """Return where the snapshots of a family are kept inside the package."""
    return (
        Path(str(resources.files("offline_meta_rl")))
        / "behaviour"
        / "policies"
        / f"{family.name}.pt"
    )


def load_behaviour(family: TaskFamily) -> BehaviourPolicy:
    """Return the behaviour policy that ships with a family.

    Raises:
        ValueError: None ships, or it was made for another version of the family.
    """
    if isinstance(family, PointRobot):
        return ScriptedPointRobot()
    if isinstance(family, ScriptedFamily):
        return ScriptedBehaviour(family)
    path = behaviour_file(family)
    if not path.is_file():
        raise ValueError(
            f"No behaviour policy ships with task family {family.name}, so its data cannot be "
            "collected. Expected a dataset of your own: pass its folder as --data.path."
        )
    # The file ships with the package, and still no code in it is run.
    package: Package = torch.load(path, weights_only=True)
    expected = (FORMAT_VERSION, family.name, family.version)
    found = (package["format"], package["family"], package["family_version"])
    if found[1:] != expected[1:] or not 1 <= package["format"] <= FORMAT_VERSION:
        raise ValueError(
            f"Behaviour file {path.name} has (format, family, version) {found}, expected "
            f"{expected}. Train with configs/behaviour/*.yaml and pack the snapshots again."
        )
    return LearnedBehaviour(family, package, hashlib.blake2b(path.read_bytes()).hexdigest()[:8])


def acting(
    behaviour: BehaviourPolicy,
    stages: NDArray[np.int64],
    parameters: Array,
    *,
    stochastic: bool,
    generator: torch.Generator | None = None,
) -> Act:
    """Return a policy whose rows are at the given stages.

    Args:
        behaviour: The behaviour policy.
        stages: Stage of every row, [N].
        parameters: Task parameters of every row, [N, P].
        stochastic: Whether to sample actions.
        generator: Source of the samples.
    """
    rows = [(int(stage), np.flatnonzero(stages == stage)) for stage in np.unique(stages)]

    def act(observation: NDArray) -> NDArray[np.float32]:
        parts = [
            behaviour.act(
                stage,
                torch.from_numpy(observation[index]),
                parameters[index],
                stochastic=stochastic,
                generator=generator,
            )
            for stage, index in rows
        ]
        # Rows were grouped by stage to run each actor once; put them back into their order.
        action: NDArray[np.float32] = torch.cat(parts).numpy()
        order = np.concatenate([index for _, index in rows])
        return action[np.argsort(order)]

    return act
