"""Where runs go: cores and GPUs are shared out, hidden ones left alone."""

import pytest

from offline_meta_rl.experiments import runner
from offline_meta_rl.experiments.runner import Worker, find_workers


def test_workers_share_cores_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "available_cores", lambda: [2, 3, 6, 7])
    monkeypatch.setattr(runner, "visible_gpus", list)
    assert find_workers() == [Worker((core,)) for core in (2, 3, 6, 7)]
    assert find_workers(2) == [Worker((2, 6)), Worker((3, 7))]
    assert find_workers(5)[4] == Worker((2,))
    monkeypatch.setattr(runner, "visible_gpus", lambda: ["0", "GPU-1"])
    assert find_workers() == [Worker((2, 6), "0"), Worker((3, 7), "GPU-1")]
    assert [worker.gpu for worker in find_workers(3)] == ["0", "GPU-1", "0"]
    assert find_workers(1)[0].environment()["CUDA_VISIBLE_DEVICES"] == "0"
    with pytest.raises(ValueError, match="--workers: expected at least 1, found 0"):
        find_workers(0)
    monkeypatch.undo()
    for hidden in ("-1", "", "-1,0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert runner.visible_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 0,-1,1")
    assert runner.visible_gpus() == ["2", "0"]
