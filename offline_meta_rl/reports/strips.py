"""Draw episodes of a script as agents see them, one row for each task."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from offline_meta_rl.behaviour.policy import acting
from offline_meta_rl.behaviour.scripted import ScriptedBehaviour
from offline_meta_rl.common.files import save_figure
from offline_meta_rl.envs import FAMILIES
from offline_meta_rl.envs.scripted import ScriptedFamily
from offline_meta_rl.evaluation.rollout import Episodes, run_episodes

INCHES = 1.1  # of one image


def draw_script(family: str, picture: Path, *, every: int = 1, seed: int = 0) -> None:
    """Draw an episode of a family's script in each of its tasks, and print the picture's path.

    Args:
        family: Short name of a family with a script, such as ``two_drawer_lite``.
        picture: PNG to write.
        every: Draw every so many steps only.
        seed: Seed of initial states and of the script's noise.

    Raises:
        ValueError: Another name.
    """
    scripted = {name: each for name, each in FAMILIES.items() if isinstance(each, ScriptedFamily)}
    if family not in scripted:
        raise ValueError(f"Expected a family with a script, one of {list(scripted)}: {family!r}.")
    draw_strip(scripted_episodes(scripted[family], seed), picture, every=every)
    print(picture)


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
        episodes: One of each task, [H, T], observations [H, T, 3, h, w] uint8.
        path: Path of the PNG.
        every: Draw every so many steps only.
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
    save_figure(figure, path, dpi=100)


def _images(episodes: Episodes, task: int) -> NDArray[np.uint8]:
    """Return the images of an episode, also the one after its last step, [L + 1, h, w, 3]."""
    length = int(episodes.lengths[task])
    images = [
        episodes.observation[:length, task],
        episodes.next_observation[length - 1, task][None],
    ]
    return np.concatenate(images).transpose(0, 2, 3, 1)
