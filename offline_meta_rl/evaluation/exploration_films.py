"""Films of whole meta-episodes, with what the belief says about the task drawn under the frames."""

import importlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.evaluation.exploration import Exploration
from offline_meta_rl.evaluation.films import Frames, banner, warn_of_no_film, write_film

FRAME_SIZE = 192
BAR_HEIGHT = 12
FRAMES_PER_SECOND = 4
LABEL, BAR, TARGET_BAR, EMPTY = 46, (60, 110, 200), (60, 160, 90), (225, 225, 225)


def film_exploration(
    exploration: Exploration, probability: NDArray[np.floating], path: str | Path
) -> Path | None:
    """Film the meta-episodes whose frames were kept, side by side.

    Args:
        exploration: F meta-episodes with frames [F, K, H + 1, C, h, w].
        probability: Probability of each of T tasks by the belief, [F, K, H + 1, T].
        path: Path of the film without suffix; ``.mp4``, or ``.gif`` without ffmpeg.

    Returns:
        The film's path; None where it could not be made, after one warning.
    """
    try:
        imageio = importlib.import_module("imageio.v3")
        columns = [
            _meta_episode(exploration, probability, row) for row in range(len(exploration.frames))
        ]
        return write_film(imageio, np.concatenate(columns, axis=2), FRAMES_PER_SECOND, Path(path))
    except Exception as error:
        warn_of_no_film(error)
        return None


def _meta_episode(exploration: Exploration, probability: NDArray[np.floating], row: int) -> Frames:
    """Return one meta-episode's pictures, [K * (H + 1), height, width, 3]."""
    frames, target = exploration.frames[row], int(exploration.target[row])
    episodes, positions = frames.shape[:2]
    pictures = []
    for episode in range(episodes):
        for step in range(positions):
            reward = exploration.reward[row, episode, : step + 1].max()
            title = f"target {target}  episode {episode + 1}/{episodes}  step {step}"
            picture = enlarged(frames[episode, step])
            width = picture.shape[1]
            bars = task_bars(probability[row, episode, step], target, width)
            seen = "rewarded" if reward > 0 else ""
            pictures.append(
                np.concatenate([banner(title, width), picture, bars, banner(seen, width)])
            )
    return np.stack(pictures)


def enlarged(image: NDArray[np.uint8]) -> Frames:
    """Return an image [C, h, w] with whole-number magnification to about FRAME_SIZE, [h', w', 3].

    Grey images get three equal channels; of more than three channels the first three are shown.
    """
    factor = max(1, FRAME_SIZE // image.shape[1])
    channels = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)
    large = channels.repeat(factor, axis=1).repeat(factor, axis=2)
    return np.ascontiguousarray(large.transpose(1, 2, 0))


def task_bars(probability: NDArray[np.floating], target: int, width: int) -> Frames:
    """Draw one bar for each task, as long as its probability; the target's is green."""
    rows = []
    for task, share in enumerate(probability):
        row = np.full((BAR_HEIGHT + 4, width, 3), 255, dtype=np.uint8)
        row[2:-2, LABEL:] = EMPTY
        end = LABEL + round(float(np.clip(share, 0.0, 1.0)) * (width - LABEL))
        row[2:-2, LABEL:end] = TARGET_BAR if task == target else BAR
        row[:, :LABEL] = banner(f"task {task}", LABEL)[: len(row)]
        rows.append(row)
    return np.concatenate(rows)
