"""Draw episodes of a script as agents see them, one row for each task.

``lightning report strips two_drawer_lite picture.png`` draws the family's own tasks.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from offline_meta_rl.behaviour.policy import acting
from offline_meta_rl.behaviour.scripted import ScriptedBehaviour
from offline_meta_rl.envs.scripted import ScriptedFamily
from offline_meta_rl.evaluation.rollout import Episodes, run_episodes

INCHES = 1.1  # of one image


def scripted_episodes(family: ScriptedFamily, seed: int = 0) -> Episodes:
    """Return one episode of the script, with its noise, in every task, [H, T]."""
    parameters = family.task_parameters(0)
    engine = family.make_engine(parameters, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    stages = np.zeros(len(parameters), dtype=np.int64)
    behaviour = ScriptedBehaviour(family)
    act = acting(behaviour, stages, parameters, stochastic=True, generator=generator)
    episodes = run_episodes(engine, act, family.horizon, on_state=True)
    engine.close()
    return episodes


def draw_strip(episodes: Episodes, path: str | Path, *, every: int = 1) -> None:
    """Draw the images of episodes; steps that were rewarded are framed in green.

    Args:
        episodes: one of each task, [H, T], observations [H, T, 3, h, w] uint8.
        path: of the PNG.
        every: draw every k-th step only.
    """
    from matplotlib.figure import Figure

    tasks = len(episodes.lengths)
    steps = range(0, int(episodes.lengths.max()) + 1, every)
    figure = Figure(figsize=(INCHES * len(steps), INCHES * tasks + 0.3), layout="constrained")
    axes = figure.subplots(tasks, len(steps), squeeze=False)
    for task in range(tasks):
        images = _images(episodes, task)
        axes[task, 0].set_ylabel(f"task {task}")
        for column, step in enumerate(steps):
            panel = axes[task, column]
            panel.set(xticks=[], yticks=[])
            if task == 0:
                panel.set_title(f"step {step}", fontsize="small")
            if step >= len(images):
                panel.axis("off")
                continue
            panel.imshow(images[step], interpolation="nearest")
            rewarded = step > 0 and episodes.reward[step - 1, task] > 0
            panel.spines[:].set(color="limegreen" if rewarded else "black", linewidth=2.5)
    figure.savefig(path, dpi=100, format="png")


def _images(episodes: Episodes, task: int) -> NDArray[np.uint8]:
    """Return the images of an episode, also the one after its last step, [L + 1, h, w, 3]."""
    length = int(episodes.lengths[task])
    images = [
        episodes.observation[:length, task],
        episodes.next_observation[length - 1, task][None],
    ]
    return np.concatenate(images).transpose(0, 2, 3, 1)
