"""One task of a MuJoCo family as an ordinary gymnasium environment, with a simulator of its own."""

import mujoco
import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.envs.base import Array
from offline_meta_rl.envs.locomotion.family import LocomotionFamily
from offline_meta_rl.envs.task_env import Info, TaskEnv


class LocomotionEnv(TaskEnv[LocomotionFamily, np.float32]):
    """One task of a MuJoCo family as a gymnasium environment.

    Args:
        family: The task family.
        task: Index of the task.
        task_seed: Seed of the task parameters, as recorded with the dataset.
        task_parameters: Parameters [P] to use in place of those of ``task``.
        render_mode: None or ``rgb_array``.
        width: Pixels of a rendered frame.
        height: Pixels of a rendered frame.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(
        self,
        family: LocomotionFamily,
        task: int = 0,
        task_seed: int = 0,
        task_parameters: Array | None = None,
        render_mode: str | None = None,
        width: int = 320,
        height: int = 240,
    ) -> None:
        super().__init__(family, task, task_seed, task_parameters, render_mode)
        self.model = family.model(self.parameters[0])
        self.data = mujoco.MjData(self.model)
        self.dt = self.model.opt.timestep * family.frame_skip
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / self.dt)}
        self._size = (height, width)
        self._renderer: mujoco.Renderer | None = None

    def _observation(self) -> NDArray[np.float32]:
        return self.family.observation(self.data.qpos[None], self.data.qvel[None])[0]

    def set_state(self, qpos: Array, qvel: Array) -> None:
        """Put the simulator into a state (qpos [nq], qvel [nv]) with time 0 and no warm start."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:] = qpos, qvel
        mujoco.mj_forward(self.model, self.data)
        # The batched engine starts episodes without a warm start, and both shall agree.
        self.data.qacc_warmstart[:] = 0.0

    def reset(
        self, *, seed: int | None = None, options: Info | None = None
    ) -> tuple[NDArray[np.float32], Info]:
        """Start an episode from a noisy initial state."""
        super().reset(seed=seed)
        uniform = self.np_random.uniform(-1.0, 1.0, (1, self.model.nq + self.model.nv))
        normal = self.np_random.standard_normal((1, self.model.nv))
        qpos, qvel = self.family.initial_state(self.model.qpos0, uniform, normal)
        self.set_state(qpos[0], qvel[0])
        return self._observation(), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, Info]:
        """Apply an action [A], clipped to [-1, 1]; truncation is left to gymnasium's time limit."""
        clipped = np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
        before, time = self.data.qpos.copy()[None], self.data.time
        self.data.ctrl[:] = clipped
        mujoco.mj_step(self.model, self.data, nstep=self.family.frame_skip)
        after = self.data.qpos[None]
        terms = self.family.reward_terms(before, after, clipped[None], self.parameters, self.dt)
        diverged = self.data.time < time + 0.5 * self.dt
        fallen = bool(self.family.fallen(after, self.data.qvel[None])[0])
        reward = float(self.family.reward(terms)[0])
        info: Info = {name: float(term[0]) for name, term in terms.items()}
        return self._observation(), reward, fallen, bool(diverged), info

    def frame(self) -> NDArray[np.uint8]:
        """Return a frame [height, width, 3] from a camera that follows the body."""
        if self._renderer is None:
            self._renderer = mujoco.Renderer(self.model, *self._size)
        self._renderer.update_scene(self.data, camera="track")
        return self._renderer.render()

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
