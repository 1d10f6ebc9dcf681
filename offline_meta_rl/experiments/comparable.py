"""Refuse to compare runs that were not measured alike, on the same data."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from offline_meta_rl.experiments.plan import Run

CONTEXT_DATA = ("inner_slice", "stride")
"""Settings of the data that say where contexts come from, in evaluations too."""
OF_ONE_RUN = {"seed", "path"}
"""Settings that may differ between the runs of an arm; data are known by their checksum."""


def check_comparable(results: Mapping[Run, Mapping[str, Any]], varies: Sequence[str]) -> None:
    """Check that runs on one family were measured alike, on the same data.

    Args:
        results: run -> content of its result file.
        varies: fields of the protocol, ``dataset_checksum``, ``inner_slice`` or ``stride``, that
            may differ between arms; they never differ between seeds of one arm, and neither do
            settings of method and data.

    Raises:
        ValueError: names two runs and each field that differs.
    """
    first: dict[str, Run] = {}
    reference = next(iter(results))
    for run, result in results.items():
        twin = first.setdefault(run.arm, run)
        for other, allowed in ((twin, ()), (reference, tuple(varies))):
            differences = list(_differences(results[other], result))
            if other is twin:
                differences += _setting_differences(results[other], result)
            found = [
                f"{field}: {one!r} and {two!r}"
                for field, one, two in differences
                if field not in allowed
            ]
            if found:
                raise ValueError(
                    f"{other.name} and {run.name} cannot be compared; they differ in "
                    f"{'; '.join(found)}. Run them again on equal terms, or select other runs."
                )


def _differences(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Yield the fields of protocol and data in which two results differ."""
    fields = {**first["protocol"], **second["protocol"]}
    for field in fields:
        one, two = (each["protocol"].get(field) for each in (first, second))
        if one != two:
            yield field, one, two
    for field in ("dataset_checksum", "environment"):
        if first.get(field) != second.get(field):
            yield field, first.get(field), second.get(field)
    for field in CONTEXT_DATA:
        one, two = (each.get("config", {}).get("data", {}).get(field) for each in (first, second))
        if one != two:
            yield field, one, two
    one, two = (each.get("fine_tuning", {}).get("settings", {}) for each in (first, second))
    for field in {**one, **two}:
        if one.get(field) != two.get(field):
            yield f"fine-tuning {field}", one.get(field), two.get(field)


def _setting_differences(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Yield the arguments of method and data in which two results differ."""
    for part in ("model", "data"):
        one, two = (dict(each.get("config", {}).get(part) or {}) for each in (first, second))
        for name in {**one, **two}:
            if name not in OF_ONE_RUN and one.get(name) != two.get(name):
                yield f"{part} {name}", one.get(name), two.get(name)
