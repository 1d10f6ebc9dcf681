"""Draw the scene of ``two_drawer_sawyer``, and what the agent sees of an episode at each drawer.

``lightning report sawyer_scene picture.png``
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.envs.base import Array
from offline_meta_rl.envs.sawyer.family import TwoDrawerSawyer
from offline_meta_rl.envs.sawyer.scene import MAX_PIXELS
from offline_meta_rl.envs.sawyer.simulator import SawyerSimulator, WholeView, agent_camera
from offline_meta_rl.evaluation.rollout import Episodes
from offline_meta_rl.reports.strips import scripted_episodes

SHOWN = (0, 4, 8, 12, 14, 16, 20, 25)
"""Steps of an episode in the strips."""
Picture = NDArray[np.uint8]


def strip(episodes: Episodes, task: int) -> Picture:
    """Return images of an episode beside each other, twice as large, [128, 128 * steps, 3]."""
    images = [*episodes.observation[:, task], episodes.next_observation[-1, task]]
    return np.concatenate([_enlarged(images[step], 2) for step in SHOWN], axis=1)


def scene(actions: Array) -> Picture:
    """Return four pictures of 256 pixels: the robot at both ends, and two of what the agent sees.

    Args:
        actions: of an episode, [H, 3].

    Returns:
        The whole robot before and after the episode, then the end once more from the agent's
        camera, sharp and as the agent sees it, [256, 1024, 3].
    """
    simulator, whole, sharp = SawyerSimulator(), WholeView(), agent_camera(MAX_PIXELS)
    simulator.start(np.zeros(3))
    before = whole.picture(simulator)
    for action in actions:
        simulator.move(action)
    image = simulator.image().copy()
    pictures = [before, whole.picture(simulator), sharp.picture(simulator.data)]
    panels = np.concatenate([*pictures, _enlarged(image, MAX_PIXELS // image.shape[-1])], axis=1)
    for part in (simulator, whole, sharp):
        part.close()
    return panels


def draw_scene(path: Path, seed: int = 0) -> None:
    """Write the picture: the scene, then one strip for each drawer.

    Args:
        path: PNG to write.
        seed: Seed of starts and noise.
    """
    import matplotlib.image

    family = TwoDrawerSawyer()
    episodes = scripted_episodes(family, seed)
    rows = [scene(episodes.action[: SHOWN[-3], 0].astype(np.float64))]
    rows += [strip(episodes, task) for task in range(family.num_tasks)]
    matplotlib.image.imsave(path, np.concatenate(rows))


def _enlarged(image: Picture, times: int) -> Picture:
    """Return an image [3, h, w] as [times * h, times * w, 3]."""
    return image.transpose(1, 2, 0).repeat(times, axis=0).repeat(times, axis=1)
