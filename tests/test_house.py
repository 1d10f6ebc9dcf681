"""The design rules that can be counted; ``python tests/measure_house.py`` prints all numbers."""

import textwrap
from pathlib import Path

import pytest

from tests.measure_house import House, measure

MOST_LINES_OF_A_FILE = 350
MOST_ANY = 8.0  # per 1000 lines
MOST_ARGUMENTS = 14  # of a constructor
MOST_NAMES_TWICE = 3
MOST_MODULES = 12  # of a folder


@pytest.fixture(scope="module")
def house() -> House:
    return measure()


def test_everything_public_is_typed_and_documented(house: House) -> None:
    assert house.typed == 1.0
    assert house.documented == 1.0


def test_few_values_are_of_any_type(house: House) -> None:
    assert house.any_per_1000 <= MOST_ANY


def test_settings_come_in_groups(house: House) -> None:
    assert house.most_arguments <= MOST_ARGUMENTS


def test_a_public_name_stands_for_one_thing(house: House) -> None:
    assert len(house.defined_twice) <= MOST_NAMES_TWICE, house.defined_twice


def test_files_and_folders_stay_small(house: House) -> None:
    assert house.lines[-1] <= MOST_LINES_OF_A_FILE
    assert house.largest_folder <= MOST_MODULES


def written(root: Path, **modules: str) -> Path:
    """Return a checkout with modules of the package ``callbacks``."""
    folder = root / "callbacks"
    folder.mkdir()
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    return root


def test_the_measure_counts(tmp_path: Path) -> None:
    found = measure(
        written(
            tmp_path,
            first='''\
            from typing import Any, overload


            class Shared:
                """Has one."""

                def __init__(self, one: int, *, two: Any = None) -> None:
                    # why
                    self.one = one  # beside code


            @overload
            def untyped(tensor: int) -> int: ...


            def untyped(tensor):
                """Double a tensor.

                Args:
                    tensor: [T, B].
                """
                return 2 * tensor


            def _private() -> None:
                pass
            ''',
            second="""\
            class Shared:
                def public(self) -> int:
                    return 1
            """,
        )
    )
    assert found.files == 2
    assert found.lines == (14.5, 26, 26)
    assert found.function_lines == (2.0, 3)
    assert found.typed == pytest.approx(4 / 5)
    assert found.documented == pytest.approx(2 / 4)
    assert found.with_shapes == pytest.approx(1 / 2)
    assert found.any_per_1000 == pytest.approx(2 / 29 * 1000)
    assert found.comments_per_1000 == pytest.approx(1 / 29 * 1000)
    assert found.defined_twice == ("Shared",)
    assert (found.public_names, found.most_arguments, found.largest_folder) == (2, 2, 2)
