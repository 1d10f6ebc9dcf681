"""Task families by name or gymnasium id; importing this package registers them with gymnasium."""

import importlib

import gymnasium

from offline_meta_rl.data.description import Environment
from offline_meta_rl.envs.base import TaskFamily
from offline_meta_rl.envs.drawers.family import (
    THREE_DRAWER_LITE,
    TWO_DRAWER_LITE,
    TWO_DRAWER_LITE_MIRRORED,
)
from offline_meta_rl.envs.gymnasium_family import GymnasiumFamily
from offline_meta_rl.envs.locomotion.families import AntDir, CheetahDir, CheetahVel, WalkerParams
from offline_meta_rl.envs.point_robot import PointRobot, SparsePointRobot
from offline_meta_rl.envs.sawyer.family import TwoDrawerSawyer

_LOCOMOTION: tuple[TaskFamily, ...] = (CheetahDir(), CheetahVel(), AntDir(), WalkerParams())
_POINT: tuple[TaskFamily, ...] = (PointRobot(), SparsePointRobot())
_DRAWERS: tuple[TaskFamily, ...] = (
    TWO_DRAWER_LITE,
    TWO_DRAWER_LITE_MIRRORED,
    THREE_DRAWER_LITE,
)
_ENVIRONMENTS = {
    **dict.fromkeys(_LOCOMOTION, "locomotion.env:LocomotionEnv"),
    **dict.fromkeys(_POINT, "point_robot:PointRobotEnv"),
    **dict.fromkeys(_DRAWERS, "drawers.env:DrawersLiteEnv"),
    TwoDrawerSawyer(): "sawyer.env:TwoDrawerSawyerEnv",
}

FAMILIES: dict[str, TaskFamily] = {family.name: family for family in _ENVIRONMENTS}
"""Every built-in task family by its short name."""

for _family, _module in _ENVIRONMENTS.items():
    if _family.env_id not in gymnasium.registry:
        gymnasium.register(
            _family.env_id,
            entry_point=f"offline_meta_rl.envs.{_module}",
            max_episode_steps=_family.horizon,
            kwargs={"family": _family},
        )


def family_of(environment: Environment) -> TaskFamily:
    """Return the task family that a dataset's ``environment`` entry names.

    Args:
        environment: ``id`` (a built-in family's short name or gymnasium id, or any gymnasium id),
            and for ids from outside optionally ``module`` (imported first, to register the id),
            ``num_tasks``, ``kwargs`` and ``version``.

    Raises:
        ValueError: If a built-in family's rewards or dynamics have another version by now.
    """
    for family in FAMILIES.values():
        if environment["id"] in (family.name, family.env_id):
            version = environment.get("version", family.version)
            if version != family.version:
                raise ValueError(
                    f"Expected version {family.version} of {family.name}, found {version}: its "
                    "rewards or dynamics have changed since. Collect the dataset again."
                )
            return family
    if module := environment.get("module"):
        importlib.import_module(module)
    return GymnasiumFamily(
        environment["id"],
        num_tasks=environment.get("num_tasks"),
        kwargs=environment.get("kwargs"),
        version=environment.get("version"),
    )
