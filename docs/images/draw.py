"""Draws the documentation's two diagrams as SVG: ``python docs/images/draw.py``.

Only the standard library is used, and every random number has a fixed seed, so the files are the
same on every machine (``tests/docs/test_pages.py`` compares them).
"""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).resolve().parent
INK, MUTED, LINE = "#1f2933", "#5f6b7a", "#cbd2d9"
POOR, FAIR, GOOD, NEW = "#b8c0cc", "#7fa7d9", "#2f6db5", "#1c7c54"
GOAL = "#d9822b"
PAPER, PANEL = "#ffffff", "#f5f7fa"

Point = tuple[float, float]


class Canvas:
    """Collects the elements of one picture.

    Args:
        width: pixels.
        height: pixels.
        title: what the picture shows, for readers who cannot see it.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.elements: list[str] = []
        self.box(0, 0, width, height, fill=PAPER, line="none", radius=0)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str = PANEL,
        line: str = LINE,
        radius: float = 8,
    ) -> None:
        """Draw a rectangle with round corners."""
        self.elements.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" '
            f'fill="{fill}" stroke="{line}"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: int = 15,
        colour: str = INK,
        bold: bool = False,
        code: bool = False,
        anchor: str = "start",
    ) -> None:
        """Write one line; ``y`` is its base line."""
        font = "ui-monospace, Menlo, monospace" if code else "Helvetica, Arial, sans-serif"
        self.elements.append(
            f'<text x="{x:g}" y="{y:g}" font-family="{font}" font-size="{size}" fill="{colour}" '
            f'font-weight="{600 if bold else 400}" text-anchor="{anchor}">{escape(words)}</text>'
        )

    def path(
        self, points: Sequence[Point], colour: str, *, width: float = 1.5, dashed: bool = False
    ) -> None:
        """Draw a line through points."""
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.elements.append(
            f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="{width:g}" '
            f'stroke-linejoin="round" stroke-linecap="round"{dash}/>'
        )

    def dot(self, x: float, y: float, radius: float, colour: str) -> None:
        """Draw a filled circle."""
        self.elements.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{colour}"/>')

    def arrow(self, points: Sequence[Point], colour: str = MUTED) -> None:
        """Draw a line whose last point has a head."""
        (x1, y1), (x2, y2) = points[-2:]
        angle = math.atan2(y2 - y1, x2 - x1)
        self.path([*points[:-1], (x2 - 5 * math.cos(angle), y2 - 5 * math.sin(angle))], colour)
        corners = [
            (x2 - 8 * math.cos(angle + turn), y2 - 8 * math.sin(angle + turn))
            for turn in (-0.45, 0.45)
        ]
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in [(x2, y2), *corners])
        self.elements.append(f'<polygon points="{places}" fill="{colour}"/>')

    def svg(self) -> str:
        """Return the file's text."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img">'
        )
        return "\n".join([head, f"<title>{escape(self.title)}</title>", *self.elements, "</svg>\n"])


def walk(rng: random.Random, goal: Point, speed: float, noise: float, steps: int) -> list[Point]:
    """Return the way of a point robot towards a goal, from the origin."""
    x, y = 0.0, 0.0
    way = [(x, y)]
    for _ in range(steps):
        gap = math.hypot(goal[0] - x, goal[1] - y) or 1.0
        step = min(speed, gap)
        x += step * (goal[0] - x) / gap + rng.gauss(0.0, noise)
        y += step * (goal[1] - y) / gap + rng.gauss(0.0, noise)
        y = max(y, -0.25)
        way.append((x, y))
    return way


def goal_at(angle: float) -> Point:
    """Return the place on the half circle of radius 1 at an angle in degrees."""
    return math.cos(math.radians(angle)), math.sin(math.radians(angle))


class Field:
    """A small plot of the plane in which the point robots move.

    Args:
        canvas: what to draw on.
        x: left edge, pixels.
        y: upper edge, pixels.
        width: pixels; the height follows.
    """

    def __init__(self, canvas: Canvas, x: float, y: float, width: float) -> None:
        self.canvas, self.scale = canvas, width / 2.6
        self.origin = (x + width / 2, y + 1.25 * self.scale)
        canvas.box(x, y, width, 1.6 * self.scale, fill=PAPER, radius=4)

    def place(self, point: Point) -> Point:
        """Return where a point of the plane is on the canvas."""
        return (
            self.origin[0] + self.scale * point[0],
            self.origin[1] - self.scale * point[1],
        )

    def way(self, way: Sequence[Point], colour: str, **options: float | bool) -> None:
        """Draw a way."""
        width = float(options.get("width", 1.2))
        self.canvas.path(
            [self.place(p) for p in way], colour, width=width, dashed=bool(options.get("dashed"))
        )

    def goal(self, goal: Point) -> None:
        """Draw the start and a goal."""
        self.canvas.dot(*self.place((0.0, 0.0)), 2.5, INK)
        self.canvas.dot(*self.place(goal), 4.5, GOAL)


def overview() -> str:
    """Return the picture of the home page: data of many tasks, meta-training, a new task."""
    canvas = Canvas(
        980,
        390,
        "A method is trained once on recorded data of many tasks. On a new task it turns 256 "
        "recorded transitions into a policy.",
    )
    for x, width in ((16, 316), (348, 268), (632, 332)):
        canvas.box(x, 16, width, 358)
    _recorded_data(canvas)
    _meta_training(canvas)
    _new_task(canvas)
    canvas.arrow([(332, 190), (348, 190)])
    canvas.arrow([(616, 190), (632, 190)])
    return canvas.svg()


def _recorded_data(canvas: Canvas) -> None:
    canvas.text(32, 44, "1  Recorded data of many tasks", size=18, bold=True)
    canvas.text(32, 64, "every task has a goal of its own, hidden", colour=MUTED, size=14)
    rng = random.Random(3)
    for index, angle in enumerate((12, 55, 80, 105, 140, 170)):
        column, row = index % 3, index // 3
        field = Field(canvas, 30 + 98 * column, 80 + 104 * row, 92)
        goal = goal_at(angle)
        for colour, speed, noise in ((POOR, 0.02, 0.1), (FAIR, 0.08, 0.06), (GOOD, 0.18, 0.02)):
            for _ in range(2):
                field.way(walk(rng, goal, speed, noise, 12), colour)
        field.goal(goal)
        canvas.text(76 + 98 * column, 151 + 104 * row, f"task {index}", size=12, anchor="middle")
    for index, (colour, name) in enumerate(((POOR, "poor"), (FAIR, "fair"), (GOOD, "expert"))):
        canvas.path([(36 + 92 * index, 292), (56 + 92 * index, 292)], colour, width=3)
        canvas.text(64 + 92 * index, 297, name, size=14, colour=MUTED)
    canvas.text(32, 330, "lightning data", code=True, size=14, bold=True)
    canvas.text(32, 350, "look at, check, convert datasets", size=14, colour=MUTED)


def _meta_training(canvas: Canvas) -> None:
    canvas.text(364, 44, "2  Meta-train once", size=18, bold=True)
    canvas.text(364, 64, "no simulator is stepped", colour=MUTED, size=14)
    lines = (
        ("inner step", "adapt to a batch of a task"),
        ("measure", "loss on another batch"),
        ("outer step", "improve the shared start"),
    )
    for index, (name, meaning) in enumerate(lines):
        y = 84 + 70 * index
        canvas.box(380, y, 204, 50, fill=PAPER)
        canvas.text(392, y + 21, name, bold=True)
        canvas.text(392, y + 39, meaning, size=14, colour=MUTED)
        if index:
            canvas.arrow([(482, y - 20), (482, y)])
    canvas.arrow([(380, 249), (364, 249), (364, 109), (380, 109)])
    canvas.text(364, 298, "thousands of times, on many tasks", size=14, colour=MUTED)
    canvas.text(364, 330, "lightning fit", code=True, size=14, bold=True)
    canvas.text(364, 350, "checkpoints and results.json", size=14, colour=MUTED)


def _new_task(canvas: Canvas) -> None:
    canvas.text(648, 44, "3  Adapt to a task never seen", size=18, bold=True)
    canvas.text(648, 64, "from a few hundred recorded transitions", colour=MUTED, size=14)
    rng, goal = random.Random(11), goal_at(122)
    context = Field(canvas, 648, 92, 138)
    for colour, speed, noise in ((POOR, 0.02, 0.1), (FAIR, 0.08, 0.06), (GOOD, 0.16, 0.03)):
        for x, y in walk(rng, goal, speed, noise, 22)[1:]:
            canvas.dot(*context.place((x, y)), 1.6, colour)
    canvas.dot(*context.place((0.0, 0.0)), 2.5, INK)
    canvas.text(717, 196, "context", size=14, anchor="middle", bold=True)
    canvas.text(717, 214, "256 transitions", size=14, anchor="middle", colour=MUTED)
    canvas.arrow([(788, 134), (810, 134)])
    policy = Field(canvas, 812, 92, 138)
    policy.way(walk(rng, goal_at(70), 0.06, 0.05, 12), MUTED, dashed=True)
    policy.way(walk(rng, goal, 0.2, 0.008, 9), NEW, width=2.5)
    policy.goal(goal)
    canvas.text(881, 196, "policy", size=14, anchor="middle", bold=True)
    canvas.text(881, 214, "an nn.Sequential", size=14, anchor="middle", colour=MUTED)
    canvas.path([(660, 246), (684, 246)], MUTED, dashed=True)
    canvas.text(692, 250, "before adaptation", size=14, colour=MUTED)
    canvas.path([(660, 268), (684, 268)], NEW, width=2.5)
    canvas.text(692, 272, "after one inner step", size=14, colour=MUTED)
    canvas.dot(672, 290, 4.5, GOAL)
    canvas.text(692, 294, "the goal, unknown to the policy", size=14, colour=MUTED)
    canvas.text(648, 330, "lightning predict, method.adapt()", code=True, size=14, bold=True)
    canvas.text(648, 350, "lightning test: measure in a simulator", size=14, colour=MUTED)


ROOMS = (
    ("1  data", "dataset.py", ("files on disk", "become memory maps")),
    ("2  datamodules", "task_buffers.py", ("draws tasks and rows,", "gathers one batch")),
    ("3  methods", "macaw.py, base.py", ("one outer step:", "gradients, then Adam")),
    ("6  callbacks", "checkpoints.py, evaluate.py", ("write the checkpoint,", "ask for returns")),
    ("7  evaluation", "evaluate.py, rollout.py", ("adapts to contexts,", "runs episodes")),
    ("8  envs", "engine.py", ("steps all environments", "together")),
    ("9  reports", "results.py", ("writes results.json", "and the curve")),
)


def journey() -> str:
    """Return the picture of a batch's way through the packages."""
    canvas = Canvas(980, 330, "A batch's way from disk to the meta-gradient and to an evaluation.")
    places = [(16, 24), (216, 24), (416, 24), (716, 24), (716, 206), (416, 206), (116, 206)]
    for (x, y), (name, files, meaning) in zip(places, ROOMS, strict=True):
        width = {"1": 160, "2": 170, "3": 250}.get(name[0], 248)
        _room(canvas, x, y, width, 150 if name.startswith("3") else 100, name, files, meaning)
    for x, name, files in ((428, "4  networks", "inner_loop.py"), (546, "5  losses", "macaw.py")):
        canvas.box(x, 112, 108, 50, fill=PAPER)
        canvas.text(x + 8, 132, name, size=14, bold=True)
        canvas.text(x + 8, 150, files, size=12, code=True, colour=MUTED)
    canvas.arrow([(176, 70), (216, 70)])
    canvas.arrow([(386, 70), (416, 70)])
    canvas.arrow([(666, 70), (716, 70)])
    canvas.arrow([(840, 124), (840, 206)])
    canvas.arrow([(716, 256), (664, 256)])
    canvas.arrow([(416, 256), (364, 256)])
    canvas.text(196, 62, "rows", size=12, anchor="middle", colour=MUTED)
    canvas.text(691, 62, "weights", size=12, anchor="middle", colour=MUTED)
    canvas.text(850, 168, "policies", size=12, colour=MUTED)
    canvas.text(690, 248, "actions", size=12, anchor="middle", colour=MUTED)
    canvas.text(390, 248, "returns", size=12, anchor="middle", colour=MUTED)
    return canvas.svg()


def _room(
    canvas: Canvas,
    x: float,
    y: float,
    width: float,
    height: float,
    name: str,
    files: str,
    meaning: tuple[str, str],
) -> None:
    canvas.box(x, y, width, height)
    canvas.text(x + 12, y + 24, name, bold=True, size=16)
    canvas.text(x + 12, y + 43, files, code=True, size=12, colour=MUTED)
    for index, line in enumerate(meaning):
        canvas.text(x + 12, y + 64 + 17 * index, line, size=14)


PICTURES = {"overview.svg": overview, "journey.svg": journey}


def main() -> None:
    """Write every picture beside this file."""
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
