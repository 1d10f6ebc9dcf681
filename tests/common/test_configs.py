"""Configs that include others: their order, what is refused, and the folder of a combined run."""

from pathlib import Path

import pytest
import yaml

from offline_meta_rl import cli
from offline_meta_rl.common.configs import expand, with_includes
from offline_meta_rl.launch import with_folder


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)


def test_included_files_come_first_and_only_once_each(tmp_path: Path) -> None:
    write(tmp_path, a="x: 1", b="include: [a.yaml]\nx: 2", c="include: [a.yaml, b.yaml]\nx: 3")
    names = [path.stem for path in with_includes(tmp_path / "c.yaml")]
    assert names == ["a", "a", "b", "c"]


def test_the_command_line_gets_every_file_without_the_key(tmp_path: Path) -> None:
    numbers = "x: 3.0e-4 # a comment\nname: ${trainer.default_root_dir}\n"
    write(tmp_path, a="x: 1", c=f"include:\n  - a.yaml\n{numbers}")
    folder = tmp_path / "copies"
    folder.mkdir()
    for form in (["--config", str(tmp_path / "c.yaml")], [f"--config={tmp_path / 'c.yaml'}"]):
        first, a, second, c, *rest = expand(["fit", *form, "--x=4"], folder)[1:]
        assert (first, a, second, rest) == (
            "--config",
            str(tmp_path / "a.yaml"),
            "--config",
            ["--x=4"],
        )
        assert Path(c).read_text() == numbers  # to the letter


def test_files_that_include_nothing_are_passed_on_as_they_are(tmp_path: Path) -> None:
    write(tmp_path, a="x: [")
    arguments = ["fit", "--config", str(tmp_path / "a.yaml"), "--config", "nowhere.yaml"]
    assert expand(arguments, tmp_path) == arguments
    assert expand(["fit", "--config"], tmp_path) == ["fit", "--config"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("include: [c.yaml]", r"in a circle: .*c\.yaml -> .*c\.yaml\. Remove"),
        ("include: [nowhere.yaml]", r"includes nowhere\.yaml, which is not a file: expected /"),
        ("include: a.yaml", r"expected a list of files under include, .*found 'a\.yaml'"),
    ],
)
def test_what_cannot_be_included(text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, c=text)
    with pytest.raises(ValueError, match=message):
        with_includes(tmp_path / "c.yaml")


def test_a_combined_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    write(
        tmp_path,
        ant="trainer: {max_steps: 1}",
        bc="model: {}",
        own="trainer: {default_root_dir: x}",
    )
    ant, bc, own = (["--config", str(tmp_path / f"{name}.yaml")] for name in ("ant", "bc", "own"))
    given = ["fit", *ant, *bc]
    assert with_folder(given, given) == [*given, "--trainer.default_root_dir=runs/ant_bc"]
    for kept in (["fit", *ant], ["fit", *ant, *own], ["test", *ant, *bc]):
        assert with_folder(kept, kept) == kept
    told = [*given, "--trainer.default_root_dir=here"]
    assert with_folder(told, told) == told


def test_a_family_and_a_method_make_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    configs = Path(__file__).resolve().parents[2] / "configs"
    files = [str(configs / name) for name in ("families/ant.yaml", "methods/meta_bc.yaml")]
    with pytest.raises(SystemExit, match="0"):
        cli.main(["fit", "--config", files[0], "--config", files[1], "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["trainer"]["default_root_dir"] == "runs/ant_meta_bc"
    assert printed["model"]["class_path"].endswith("MetaBehaviourCloning")
    assert printed["data"]["init_args"]["env"] == "ant_dir"
