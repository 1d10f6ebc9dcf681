"""Figures and films of meta-episodes: what is on them, not only that there is a file."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from offline_meta_rl.evaluation.exploration import Exploration, explore, summarise
from offline_meta_rl.evaluation.exploration_films import (
    BAR_HEIGHT,
    LABEL,
    TARGET_BAR,
    enlarged,
    film_exploration,
    task_bars,
)
from offline_meta_rl.evaluation.films import LABEL_HEIGHT
from offline_meta_rl.reports import exploration_plots as plots
from tests.doors import DoorExplorer, Doors

FAMILY = Doors()


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, in order."""
    kept: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
        kept.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return kept


def run(**options: Any) -> Exploration:
    settings: dict[str, Any] = {"meta_episodes": 8, "num_episodes": 3, "seed": 4} | options
    return explore(FAMILY, DoorExplorer(), FAMILY.task_parameters(0), **settings)


def test_success_figure_shows_shares_and_intervals(tmp_path: Path, figures: list[Figure]) -> None:
    points = summarise(run(), [0, 1], 0)
    plots.success_figure({"Ours": points, "Other": points}, tmp_path / "a.png", chance=0.5)
    (axes,) = figures[0].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()][-2:] == ["Ours", "Other"]
    line, _, (bars,) = axes.containers[0]
    np.testing.assert_allclose(line.get_ydata(), [0.5, 1.0, 1.0])
    for point, segment in zip(points, bars.get_segments(), strict=True):
        np.testing.assert_allclose(segment[:, 1], point["success"]["interval"])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_probe_figure_shows_accuracy_over_updates(tmp_path: Path, figures: list[Figure]) -> None:
    history = [plots.ProbePoint(step=10 * n, probe={"a": 0.1 * n, "b": 0.5}) for n in range(3)]
    plots.probe_figure(history, tmp_path / "a.png", chance=0.5)
    lines = {line.get_label(): line for line in figures[0].axes[0].lines}
    assert lines["a"].get_xdata().tolist() == [0, 10, 20]
    np.testing.assert_allclose(lines["a"].get_ydata(), [0.0, 0.1, 0.2])


def test_diagnosis_figure(tmp_path: Path, figures: list[Figure]) -> None:
    def diagnosis(accuracy: float, curve: list[float] | None) -> dict[str, Any]:
        after = None if curve is None else {"curve": curve}
        return {"before_any_reward": {"accuracy": accuracy}, "after_wrong_drawer": after}

    given = {"Ours": diagnosis(0.5, [0.5, 1.0]), "No Expl": diagnosis(0.9, [0.1, 0.1])}
    given["Never wrong"] = diagnosis(0.4, None)
    plots.diagnosis_figure(given, tmp_path / "a.png", chance=0.5)
    left, right = figures[0].axes
    assert [bar.get_height() for bar in left.patches] == [0.5, 0.9, 0.4]
    assert [list(line.get_ydata()) for line in right.lines[:2]] == [[0.5, 1.0], [0.1, 0.1]]


@pytest.mark.parametrize("channels", [1, 3])
def test_reconstructions_lie_below_their_images(channels: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (2, 5, channels, 4, 3), dtype=np.uint8)
    picture = plots.reconstruction_grid(images, 255 - images, magnify=2)
    height, width = 4 * 2 + 2, 3 * 2 + 2
    assert picture.shape == (2 * 2 * height, 5 * width, 3)
    for row, position in ((0, 0), (1, 3)):
        for kind, expected in ((0, images), (1, 255 - images)):
            top, left = (2 * row + kind) * height + 1, position * width + 1
            part = picture[top : top + 8 : 2, left : left + 6 : 2]
            shown = np.broadcast_to(expected[row, position].transpose(1, 2, 0), part.shape)
            np.testing.assert_array_equal(part, shown)
    plots.write_png(picture, tmp_path / "below" / "a.png")
    saved = imread(tmp_path / "below" / "a.png")[..., :3]
    np.testing.assert_allclose(saved, picture / 255.0, atol=1e-6)


def test_bars_are_as_long_as_probabilities() -> None:
    bars = task_bars(np.array([0.25, 0.75]), 1, LABEL + 100)
    assert bars.shape == (2 * (BAR_HEIGHT + 4), LABEL + 100, 3)
    own, other = bars[BAR_HEIGHT + 4 + 5], bars[5]
    assert (own == TARGET_BAR).all(axis=-1).sum() == 75
    assert not (other == TARGET_BAR).all(axis=-1).any()


def test_small_images_are_enlarged_and_grey_ones_shown() -> None:
    grey = np.arange(4, dtype=np.uint8).reshape(1, 2, 2)
    large = enlarged(grey)
    assert large.shape == (192, 192, 3)
    np.testing.assert_array_equal(large[::96, ::96, 2], grey[0])
    assert enlarged(np.zeros((3, 200, 300), dtype=np.uint8)).shape == (200, 300, 3)


# The reader of imageio leaves its pipes to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_film_of_whole_meta_episodes(tmp_path: Path) -> None:
    imageio: Any = pytest.importorskip("imageio.v3")
    found = run(num_frames=2)
    probability = np.stack([1 - found.belief[:2, ..., 0], found.belief[:2, ..., 0]], axis=-1)
    path = film_exploration(found, probability, tmp_path / "film")
    assert path is not None
    frames = imageio.imread(path)
    height = 192 + 2 * LABEL_HEIGHT + 2 * (BAR_HEIGHT + 4)
    assert frames.shape == (3 * (FAMILY.horizon + 1), height, 2 * 192, 3)
    middle = LABEL_HEIGHT + 192 + (BAR_HEIGHT + 4) // 2  # the bar of task 0
    # Target 0, not known at first: half of the bar; later all of it.
    first, last = (frames[number, middle, LABEL:192].astype(int) for number in (0, -1))
    assert (np.abs(first - TARGET_BAR).max(axis=-1) < 60).mean() == pytest.approx(0.5, abs=0.06)
    assert (np.abs(last - TARGET_BAR).max(axis=-1) < 60).mean() > 0.95


def test_one_warning_without_imageio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio.v3", None)
    found = run(num_frames=1)
    with pytest.warns(UserWarning, match=r"No video: .* It needs the extra 'video'") as seen:
        assert film_exploration(found, np.ones((1, 3, 5, 2)), tmp_path / "film") is None
    assert len(seen) == 1
