"""Film a task before and after adaptation, side by side; needs the extra ``video``.

A machine without a display needs EGL or OSMesa, of which the first that works is taken. Where
nothing can be filmed there is one warning and no file: a picture is never worth a lost run.
"""

import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import nn

from offline_meta_rl.envs.base import TaskFamily
from offline_meta_rl.envs.gymnasium_family import GymnasiumFamily
from offline_meta_rl.envs.locomotion.family import LocomotionFamily
from offline_meta_rl.envs.rendering import GL_LIBRARIES, use_working_gl
from offline_meta_rl.networks.policy import BatchedPolicy

Frames = NDArray[np.uint8]
LABEL_HEIGHT = 16


def film_adaptation(
    adapt_tasks: Callable[[TensorDict, int], BatchedPolicy],
    context: TensorDict,
    family: TaskFamily,
    task: int,
    path: str | Path,
    *,
    num_steps: int = 1,
    task_seed: int = 0,
    seed: int = 0,
) -> Path | None:
    """Film one episode before and one after adaptation.

    Args:
        adapt_tasks: The method's adaptation.
        context: Context of this one task, [1, B].
        family: The task's family.
        task: Index of the task.
        path: Path of the film without suffix; ``.mp4``, or ``.gif`` without ffmpeg.
        num_steps: Inner steps of the adaptation.
        task_seed: Seed of the task parameters.
        seed: Seed of the initial state, which both episodes share.

    Returns:
        The film's path; None where it could not be made, after one warning.
    """
    try:
        imageio = importlib.import_module("imageio.v3")
        if not use_working_gl() and isinstance(family, LocomotionFamily):
            raise RuntimeError("neither EGL nor OSMesa can render on this machine")
        films = {}
        for label, steps in (("before", 0), ("after", num_steps)):
            with torch.enable_grad():
                policy = adapt_tasks(context, steps).task(0).cpu()
            with _make_env(family, task, task_seed) as env:
                films[f"{label} adaptation"] = film_episode(env, policy, seed=seed)
                speed = int(env.metadata.get("render_fps", 20))
        return write_film(imageio, side_by_side(films), speed, Path(path))
    # Whatever goes wrong, from a missing library to a driver: the run's numbers matter more.
    except Exception as error:
        warn_of_no_film(error)
        return None


def warn_of_no_film(error: Exception) -> None:
    """Warn that a film could not be made, and say what it needs."""
    warnings.warn(
        f"No video: {type(error).__name__}: {error}. It needs the extra 'video' (imageio) and, "
        f"without a display, {GL_LIBRARIES}.",
        stacklevel=3,
    )


def film_episode(env: gymnasium.Env, policy: nn.Module, *, seed: int) -> Frames:
    """Return the frames [H, height, width, 3] of one episode with mean actions.

    Args:
        env: A gymnasium environment with ``render_mode="rgb_array"``.
        policy: Maps observations [1, O] to mean actions [1, A].
        seed: Seed of the initial state.
    """
    observation, _ = env.reset(seed=seed)
    frames, ended = [_frame(env)], False
    while not ended:
        with torch.no_grad():
            inputs = torch.as_tensor(np.asarray(observation), dtype=torch.float32)
            action = policy(inputs[None])[0].clamp(-1.0, 1.0).numpy()
        observation, _, terminated, truncated, _ = env.step(action)
        frames.append(_frame(env))
        ended = terminated or truncated
    return np.stack(frames)


def _frame(env: gymnasium.Env) -> Frames:
    """Return the state as a picture [height, width, 3]."""
    return np.asarray(env.render(), dtype=np.uint8)


def side_by_side(films: dict[str, Frames]) -> Frames:
    """Join films [H, height, width, 3] in the order given, each under its label.

    A film that ends early keeps its last frame.
    """
    length = max(len(frames) for frames in films.values())
    columns = []
    for label, frames in films.items():
        # Episodes may end at different steps, and pictures side by side need one length.
        held = np.concatenate([frames, np.repeat(frames[-1:], length - len(frames), axis=0)])
        line = banner(label, held.shape[2])
        columns.append(np.concatenate([np.repeat(line[None], length, axis=0), held], axis=1))
    return np.concatenate(columns, axis=2)


def banner(text: str, width: int) -> Frames:
    """Return a line of text, black on white, [LABEL_HEIGHT, width, 3]."""
    from PIL import Image, ImageDraw  # comes with imageio

    image = Image.new("RGB", (width, LABEL_HEIGHT), "white")
    ImageDraw.Draw(image).text((2, 2), text, fill="black")
    return np.asarray(image, dtype=np.uint8)


def _make_env(family: TaskFamily, task: int, task_seed: int) -> gymnasium.Env:
    if isinstance(family, GymnasiumFamily):
        rendered = GymnasiumFamily(
            family.env_id,
            num_tasks=family.num_tasks,
            kwargs={**family.kwargs, "render_mode": "rgb_array"},
        )
        return rendered.make_env(task)
    return gymnasium.make(family.env_id, task=task, task_seed=task_seed, render_mode="rgb_array")


def write_film(imageio: ModuleType, frames: Frames, speed: int, path: Path) -> Path:
    """Write frames [H, height, width, 3] as ``.mp4``, or ``.gif`` where there is no ffmpeg.

    Args:
        imageio: The module ``imageio.v3``.
        frames: Pictures of the film, [H, height, width, 3].
        speed: Frames per second.
        path: Path of the film without suffix.

    Returns:
        The film's path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Video codecs want even sizes.
    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    try:
        target = path.with_suffix(".mp4")
        imageio.imwrite(target, frames, fps=speed, plugin="FFMPEG", macro_block_size=2)
    except (ImportError, OSError, RuntimeError):
        target.unlink(missing_ok=True)
        target = path.with_suffix(".gif")
        imageio.imwrite(target, frames, duration=1000 / speed, loop=0)
    return target
