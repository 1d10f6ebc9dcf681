"""MACAW's compiled outer step: equal to eager; without a compiler training goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch

from offline_meta_rl.methods.macaw import Macaw
from tests.helpers import build
from tests.methods import tiny
from tests.references import macaw as reference


def test_compiled_outer_step_equals_eager() -> None:
    sizes = {"observation_size": 2, "action_size": 2, "depth": 1, **tiny.MODEL["Macaw"]}
    torch.manual_seed(1)
    eager = build(Macaw, **sizes)
    compiled = build(Macaw, **sizes, compile=True)
    compiled.load_state_dict(eager.state_dict())
    inner, outer = (reference.random_batch(3, 4, 2, 2, dtype=torch.float32) for _ in range(2))
    weight = torch.full((3,), 1 / 3)
    expected = eager._gradient(eager.meta_parameters(), inner, outer, weight)
    found = compiled._gradient(compiled.meta_parameters(), inner, outer, weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert compiled._gradient.proven
    assert compiled._gradient.call is not compiled._gradient.function


def test_failed_compilation_falls_back_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def compile_to_failure(function: Any, **options: Any) -> Any:
        def call(*args: Any) -> Any:
            calls.append(len(args))
            raise RuntimeError("no compiler found")

        return call

    monkeypatch.setattr(torch, "compile", compile_to_failure)
    data_path = tiny.dataset(tmp_path)
    settings = tiny.config("Macaw", data_path, max_steps=2, callbacks=[])
    eager = tiny.fit(settings, tmp_path / "eager")
    settings["model"]["init_args"]["compile"] = True
    with pytest.warns(UserWarning, match=r"failed \(RuntimeError: no compiler found\); going on"):
        fallen_back = tiny.fit(settings, tmp_path / "run")
    assert calls == [4]
    assert tiny.difference(tiny.state(fallen_back), tiny.state(eager)) is None
