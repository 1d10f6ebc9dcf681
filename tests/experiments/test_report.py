"""What is refused, and what a report says, recomputed by hand from the runs that it is made of."""

import base64
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from offline_meta_rl.common import statistics
from offline_meta_rl.experiments import figures, report
from offline_meta_rl.experiments.command import experiment_command
from offline_meta_rl.experiments.curves import fine_tuning_curve, training_curve
from offline_meta_rl.experiments.gather import Gathered, gather
from offline_meta_rl.experiments.page import Heading, Picture, Table, Text, write_page
from offline_meta_rl.experiments.plan import Run
from offline_meta_rl.experiments.report import write_report
from offline_meta_rl.experiments.specification import Experiment
from offline_meta_rl.experiments.states import begin, end
from tests.experiments.sample import finish, plan_of, result, scores_of, write_experiment


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return write_experiment(tmp_path)


@pytest.fixture
def runs(experiment: Experiment, tmp_path: Path) -> list[Run]:
    """Twelve finished runs: two families, three seeds, two arms."""
    made = plan_of(experiment, tmp_path)
    for run in made:
        finish(run, scores_of(run))
    return made


def change(run: Run, **content: Any) -> None:
    path = run.folder / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **content}))


def test_scores_have_the_order_of_seeds_and_tasks(experiment: Experiment, runs: list[Run]) -> None:
    arm = gather(experiment, runs).arms["robot"]["ours"]
    assert arm.tasks == ("3", "5")
    assert arm.steps.tolist() == [0, 4, 8]
    assert arm.scores("final") == pytest.approx(np.array([[0.8, 0.9], [0.81, 0.91], [0.82, 0.92]]))
    assert arm.scores("best") == pytest.approx(np.array([[0.9, 1.0], [0.91, 1.01], [0.92, 1.02]]))
    assert (arm.random, arm.best_behaviour) == (0.0, 10.0)


def test_the_best_evaluation_is_each_seeds_own(experiment: Experiment, runs: list[Run]) -> None:
    finish(runs[0], [[0.0, 0.0], [0.1, 0.1], [0.7, 0.5]])  # this seed's best is its last
    arm = gather(experiment, runs).arms["robot"]["ours"]
    assert arm.scores("best") == pytest.approx(np.array([[0.7, 0.5], [0.91, 1.01], [0.92, 1.02]]))


def remove(run: Run) -> None:
    shutil.rmtree(run.folder)


def fail(run: Run) -> None:
    (run.folder / "log.txt").write_text("RuntimeError: out of luck\n")
    begin(run)
    end(run, 1, 1.0)


def copy_beside(run: Run) -> None:
    shutil.copytree(run.folder, run.folder.with_name("seed_1_again"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            remove,
            r"1 of 12 runs of small at scale tiny are not finished:\nrobot/theirs/seed_1: mis",
        ),
        (fail, r"robot/theirs/seed_1: failed; the end of its log:\n.*out of luck"),
        (begin, r"robot/theirs/seed_1: interrupted"),
        (copy_beside, r"robot/theirs/seed_1 is there 2 times: .*seed_1, .*seed_1_again"),
        (lambda run: change(run, method="x.Macaw"), r"expected method 'CQL', found 'Macaw'"),
        (lambda run: change(run, seed=9), r"expected seed 1, found 9"),
        (lambda run: change(run, global_step=7), r"expected global_step 8, found 7"),
        (
            lambda run: change(run, protocol={"split": "half", "episodes": 10}),
            r"robot/theirs/seed_0 and robot/theirs/seed_1 cannot be compared; they differ in "
            r"split: 'default' and 'half'; adaptation_steps: \[1\] and None",
        ),
        (
            lambda run: change(run, dataset_checksum="bad"),
            r"dataset_checksum: 'c0ffeerobot' and 'bad'",
        ),
        (
            lambda run: change(run, config={"model": {"temperature": 0.5}, "data": {}}),
            r"robot/theirs/seed_0 and robot/theirs/seed_1 .* model temperature: 1\.0 and 0\.5",
        ),
        (
            lambda run: change(run, config={"model": {}, "data": {"stride": 7}}),
            r"stride: None and 7",
        ),
        (lambda run: change(run, history=result(run, [[0.0, 0], [1, 1]])["history"]), r"\[0, 8\]"),
        (
            lambda run: (run.folder / "results.json").write_text("{"),
            r"results\.json is not JSON",
        ),
        (lambda run: change(run, history=[{"step": 0}]), r"lacks after_normalised_return_per_ta"),
    ],
)
def test_bad_runs_are_named(
    spoil: Callable[[Run], Any], message: str, experiment: Experiment, runs: list[Run]
) -> None:
    (run,) = (run for run in runs if run.name == "robot/theirs/seed_1")
    spoil(run)
    with pytest.raises(ValueError, match=message):
        gather(experiment, runs)


def test_arms_may_differ_where_the_experiment_says_so(tmp_path: Path) -> None:
    experiment = write_experiment(tmp_path, varies=["adaptation_steps"])
    runs = plan_of(experiment, tmp_path, families=["robot"])
    protocol = {"split": "default", "episodes": 10, "adaptation_steps": [20]}
    for run in runs:
        changes = {"protocol": protocol} if run.arm == "theirs" else {}
        finish(run, scores_of(run), **changes)
    assert set(gather(experiment, runs).arms["robot"]) == {"ours", "theirs"}
    change(runs[3], protocol={**protocol, "adaptation_steps": [5]})
    with pytest.raises(ValueError, match=r"differ in adaptation_steps: \[20\] and \[5\]"):
        gather(experiment, runs)  # but the seeds of one arm never


@pytest.mark.parametrize("group", [None, "batches"])  # earlier versions had no groups
def test_contexts_of_arms_come_from_the_same_data(group: str | None, tmp_path: Path) -> None:
    for varies in ([], ["inner_slice"]):
        folder = tmp_path / "-".join(["x", *varies])
        experiment = write_experiment(folder, varies=varies)
        runs = plan_of(experiment, folder, families=["robot"])
        for run in runs:
            data: dict[str, Any] = {"inner_slice": ["expert"]} if run.arm == "theirs" else {}
            data = {group: data} if group else data
            finish(run, scores_of(run), config={"model": {"seed": run.seed}, "data": data})
        if varies:
            assert set(gather(experiment, runs).arms["robot"]) == {"ours", "theirs"}
        else:
            with pytest.raises(ValueError, match=r"inner_slice: None and \['expert'\]"):
                gather(experiment, runs)


def test_incomplete_reports_name_what_is_missing(
    experiment: Experiment, runs: list[Run], tmp_path: Path
) -> None:
    remove(runs[0])
    change(runs[1], commit="def")
    gathered = gather(experiment, runs, incomplete=True)
    assert gathered.notes[0] == "robot/ours/seed_0: missing"
    assert gathered.notes[1] == "Runs of 2 commits of the code: abc, def."
    text = (write_report(gathered, tmp_path / "report").with_suffix(".md")).read_text()
    assert "> robot/ours/seed_0: missing" in text
    assert re.search(r"\| Ours \| 2 \| 0\.86 \[0\.\d\d, 0\.\d\d\]\* \|", text)
    assert "Not in the profiles, because their seeds differ between families: Ours." in text
    assert re.search(r"\| Theirs \| 3 \| 0\.36 \[0\.\d\d, 0\.\d\d\] \|", text)
    for run in runs:
        shutil.rmtree(run.folder, ignore_errors=True)
    with pytest.raises(ValueError, match="12 of 12 runs"):
        gather(experiment, runs, incomplete=True)


class Page(HTMLParser):
    """Collects the cells, the pictures and every address of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.sources: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag in ("td", "th")
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells.append(data)


@pytest.fixture
def gathered(experiment: Experiment, runs: list[Run]) -> Gathered:
    return gather(experiment, runs)


def test_the_report_says_what_the_runs_reached(gathered: Gathered, tmp_path: Path) -> None:
    page = write_report(gathered, tmp_path / "report")
    text = page.with_suffix(".md").read_text()
    # The middle half of 0.80 0.81 0.82 0.90 0.91 0.92 is 0.81 0.82 0.90 0.91.
    assert "| Ours | 3 | 0.86 [" in text
    found = statistics.estimate([[0.8, 0.9], [0.81, 0.91], [0.82, 0.92]])
    row = (
        f"| Ours | 3 | {found} | 0.96 [{found.low + 0.1:.2f}, {found.high + 0.1:.2f}] | 8.6 | 10.0"
    )
    assert row in text
    assert "12 runs of 4 or 8 outer steps" in text
    assert "| robot | Ours over Theirs | 1.00 [1.00, 1.00] |" in text
    assert "c0ffeerobot" in text
    summary = json.loads((page.parent / "summary.json").read_text())
    assert summary["families"]["ant"]["theirs"]["final"]["value"] == pytest.approx(0.36)
    assert summary["families"]["ant"]["theirs"]["seeds"] == [0, 1, 2]


def test_the_page_needs_no_other_file(gathered: Gathered, tmp_path: Path) -> None:
    page = write_report(gathered, tmp_path / "report")
    read = Page(page.read_text())
    assert {"Ours", "Theirs", "final", "best"} <= set(read.cells)
    names = ["curves_robot", "curves_ant", "intervals_final", "intervals_best", "profiles"]
    assert len(read.sources) == len(names)
    for source, name in zip(read.sources, names, strict=True):
        kind, code = source.split(",", 1)
        assert kind == "data:image/png;base64"
        picture = (page.parent / f"{name}.png").read_bytes()
        assert base64.b64decode(code) == picture
        assert picture.startswith(b"\x89PNG")
    assert "http" not in re.sub(r"base64,[^\"]*", "", page.read_text())


def test_scores_against_what_varies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = {"a line": {"few": "theirs", "many": "ours"}}
    experiment = write_experiment(tmp_path, against={"label": "tasks", "lines": lines})
    runs = plan_of(experiment, tmp_path, families=["robot"])
    for run in runs:
        finish(run, scores_of(run))
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    monkeypatch.setattr(report, "write_page", lambda blocks, folder: folder)
    write_report(gather(experiment, runs), tmp_path / "report")
    axes = next(f.axes[0] for f in drawn if f.axes[0].get_xlabel() == "tasks")
    assert [text.get_text() for text in axes.get_xticklabels()] == ["few", "many"]
    line, *_ = axes.get_lines()
    assert line.get_ydata() == pytest.approx([0.36, 0.86])
    curves = next(f.axes[0] for f in drawn if f.axes[0].get_xlabel() == "outer steps")
    assert curves.get_lines()[0].get_xdata().tolist() == [0, 4, 8]
    assert curves.get_lines()[0].get_ydata() == pytest.approx([0.0, 1.0 - 0.04, 0.86], abs=0.01)


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    experiment = write_experiment(tmp_path)
    runs = plan_of(experiment, tmp_path, seeds=[0], families=["robot"])
    for run in runs:
        finish(run, scores_of(run))
    page = write_report(gather(experiment, runs), tmp_path / "report")
    assert "| Ours | 1 | 0.85** | 0.95** |" in page.with_suffix(".md").read_text()
    assert figures.marked("Ours", 1) == "Ours (1 seed)"
    assert figures.marked("Ours", 3) == "Ours"


def test_untrained_weights_are_never_the_best(experiment: Experiment, runs: list[Run]) -> None:
    finish(runs[0], [[5.0, 5.0], [0.1, 0.1], [0.7, 0.5]])
    scores = gather(experiment, runs).arms["robot"]["ours"].scores("best")
    assert scores[0] == pytest.approx([0.7, 0.5])


def test_html_is_escaped(tmp_path: Path) -> None:
    experiment = write_experiment(tmp_path, title="<b>bold</b> & more")
    runs = plan_of(experiment, tmp_path, seeds=[0], families=["robot"])
    for run in runs:
        finish(run, scores_of(run))
    page = write_report(gather(experiment, runs), tmp_path / "report").read_text()
    assert "<b>" not in page
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; more" in page


def test_a_page_marks_code_and_numbers_and_escapes_the_rest(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"png")
    blocks = [
        Heading('A "title"', 1),
        Text("see `<x>` & more"),
        Text("two\nlines", note=True),
        Table(("name", "1"), [["a|b", "-1.5 [0, 2]"], ["</td>", "n/a"]]),
        Picture(picture, 'a "caption"'),
    ]
    text = write_page(blocks, tmp_path).read_text()
    assert "<title>A &#34;title&#34;</title>" in text
    assert "<p>see <code>&lt;x&gt;</code> &amp; more</p>" in text
    assert '<pre class="note">two\nlines</pre>' in text
    assert "<tr><th>name</th><th>1</th></tr>" in text
    assert '<tr><td>a|b</td><td class="number">-1.5 [0, 2]</td></tr>' in text
    assert "<tr><td>&lt;/td&gt;</td><td>n/a</td></tr>" in text
    assert 'alt="a &#34;caption&#34;" src="data:image/png;base64,cG5n"' in text
    markdown = (tmp_path / "report.md").read_text()
    assert "> two\n> lines" in markdown
    assert "| a\\|b | -1.5 [0, 2] |" in markdown


def test_profiles_join_families_of_equal_seeds(gathered: Gathered) -> None:
    joined = report.joined_scores(gathered)
    assert joined["ours"].shape == (3, 4)
    assert joined["ours"][:, 2:] == pytest.approx(joined["ours"][:, :2])  # the same scores


def test_curves_of_fine_tuning_are_steps() -> None:
    content = {
        "tasks": [4, 7],
        "settings": {"environment_steps": 20},
        "curves": {
            "4": {"steps": [0, 10, 20], "return": [1.0, 2.0, 3.0]},
            "7": {"steps": [0, 7, 14, 21], "return": [5.0, 6.0, 7.0, 8.0]},
        },
        "references": {"random": [0.0, 0.0], "best_behaviour": [10.0, 2.0]},
    }
    found = fine_tuning_curve(content, "after_return")
    assert found.axis == "environment steps"
    assert found.steps.tolist() == list(range(21))
    assert found.scores[:, 0].tolist() == [1.0, *[2.0] * 10, *[3.0] * 10]
    assert found.scores[:, 1].tolist() == [5.0, *[6.0] * 7, *[7.0] * 7, *[8.0] * 6]
    scaled = fine_tuning_curve(content, "after_normalised_return").scores
    assert scaled == pytest.approx(found.scores / [10.0, 2.0])


def test_reports_of_fine_tuning(tmp_path: Path) -> None:
    after = [{"command": "test", "configs": ["all"], "result": "fine_tuning.json"}]
    experiment = write_experiment(tmp_path, after=after, metric="after_return")
    runs = plan_of(experiment, tmp_path, families=["robot"])
    for run in runs:
        curve = {"steps": [0, 10, 20], "return": [1.0, 5.0, 7.0]}
        tuned = {
            "tasks": [3, 5],
            "settings": {"environment_steps": 20, "batch_size": 4},
            "curves": {"3": curve, "5": curve},
        }
        finish(run, scores_of(run))
        (run.folder / "fine_tuning.json").write_text(json.dumps(tuned))
    text = (
        write_report(gather(experiment, runs), tmp_path / "report").with_suffix(".md").read_text()
    )
    assert (
        "| arm | seeds | 0 environment steps | 10 environment steps | 20 environment steps |"
        in text
    )
    assert "| Ours | 3 | 1.00 [1.00, 1.00] | 5.00 [5.00, 5.00] | 7.00 [7.00, 7.00] |" in text
    assert "`final` is the end of the fine-tuning" in text
    assert ".ckpt" not in text
    tuned["settings"]["batch_size"] = 5
    (runs[-1].folder / "fine_tuning.json").write_text(json.dumps(tuned))
    with pytest.raises(ValueError, match="fine-tuning batch_size: 4 and 5"):
        gather(experiment, runs)


def test_training_curves_need_scores_of_tasks() -> None:
    history = [{"step": 0, "after_return": 1.0}]
    content = {"history": history, "after_adaptation": {"per_task": {"1": {}}}}
    with pytest.raises(ValueError, match="lacks after_return_per_task"):
        training_curve(content, "after_return")


def test_command(
    experiment: Experiment, runs: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(experiment.folder / "experiment.yaml")
    options = ["--scale", "tiny", "--root", str(tmp_path / "runs"), "--families", "robot"]
    experiment_command(["report", path, *options])
    page = tmp_path / "runs" / "small" / "tiny" / "report" / "report.html"
    assert capsys.readouterr().out.strip() == str(page)
    assert page.is_file()
    remove(runs[0])
    with pytest.raises(SystemExit, match="robot/ours/seed_0: missing"):
        experiment_command(["report", path, *options])
