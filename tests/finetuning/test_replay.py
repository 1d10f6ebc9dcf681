"""Replays of many tasks: rings, draws, returns at the end of an episode."""

import pytest
import torch

from offline_meta_rl.finetuning.replay import FIELDS, OnlineReplay, with_returns


def make(capacity: int = 5, fields: tuple[str, ...] = ("observation", "reward")) -> OnlineReplay:
    return OnlineReplay(2, capacity, fields, observation_size=1, action_size=1)


def add(replay: OnlineReplay, first: float, kept: list[list[bool]]) -> None:
    """Add rows numbered from ``first``, the second task's a hundred higher."""
    mask = torch.tensor(kept)
    reward = first + torch.arange(float(mask.shape[1])) + torch.tensor([[0.0], [100.0]])
    replay.add({"observation": reward[..., None], "reward": reward}, mask)


def test_each_task_keeps_its_own_latest_rows() -> None:
    replay = make()
    add(replay, 0, [[True, True, True], [True, False, True]])
    assert replay.size.tolist() == [3, 2]
    assert replay.columns["reward"][1, :2].tolist() == [100, 102]
    add(replay, 10, [[True, True, True], [False, False, False]])
    assert replay.size.tolist() == [5, 2]
    assert sorted(replay.columns["reward"][0].tolist()) == [1, 2, 10, 11, 12]
    add(replay, 20, [[True, False, False], [True, True, True]])
    assert sorted(replay.columns["reward"][0].tolist()) == [2, 10, 11, 12, 20]
    assert sorted(replay.columns["reward"][1].tolist()) == [100, 102, 120, 121, 122]
    assert torch.equal(replay.columns["observation"][..., 0], replay.columns["reward"])


def test_draws_are_of_rows_in_use_and_uniform() -> None:
    replay = make(capacity=50)
    add(replay, 0, [[True] * 4, [True, False, False, True]])
    drawn = replay.draw((100, 200), torch.Generator().manual_seed(0))
    assert drawn.shape == (100, 2, 200)
    for task, count in ((0, 4), (1, 2)):
        share = torch.bincount(drawn[:, task].flatten(), minlength=count) / 20_000
        assert share.tolist() == pytest.approx([1 / count] * count, abs=0.02)
    rows = drawn[0]
    found = replay.gather(rows, ["reward"], {"extra": torch.tensor([[5.0, 6, 7, 8], [1, 2, 3, 4]])})
    for task in range(2):
        assert torch.equal(found["reward"][task], replay.columns["reward"][task, rows[task]])
    assert torch.equal(found["extra"][0], 5.0 + rows[0])
    assert torch.equal(found["extra"][1], 1.0 + rows[1])


def test_continues_where_it_was() -> None:
    replay, other = make(), make()
    add(replay, 0, [[True, True, True], [True, False, True]])
    other.load_state_dict(replay.state_dict())
    for each in (replay, other):
        add(each, 10, [[True, True, True], [True, False, True]])
    assert torch.equal(replay.columns["reward"], other.columns["reward"])
    assert torch.equal(replay.size, other.size)


def test_returns_are_those_of_a_loop() -> None:
    torch.manual_seed(0)
    lengths, discount = [4, 2, 6], 0.9
    episode = {
        "reward": torch.randn(3, 6, dtype=torch.float64),
        "next_observation": torch.randn(3, 6, 2, dtype=torch.float64),
    }
    found = with_returns(episode, torch.tensor(lengths), discount)
    for task, length in enumerate(lengths):
        for step in range(length):
            left = range(step, length)
            reward = episode["reward"][task]
            wanted = sum(float(reward[k]) * discount ** (k - step) for k in left)
            assert float(found["return_to_go"][task, step]) == pytest.approx(wanted)
            assert float(found["terminal_discount"][task, step]) == pytest.approx(
                discount ** len(left)
            )
            last = episode["next_observation"][task, length - 1]
            assert torch.equal(found["terminal_observation"][task, step], last)


def test_bad_use_is_named() -> None:
    with pytest.raises(ValueError, match=r"Unknown fields \['colour'\]: expected some of"):
        make(fields=("reward", "colour"))
    replay = make(capacity=2)
    with pytest.raises(ValueError, match=r"at most 2 transitions of a task at once.*found 3"):
        add(replay, 0, [[True] * 3, [False] * 3])
    add(replay, 0, [[True], [False]])
    with pytest.raises(ValueError, match=r"all 2 tasks in the replay, found \[1, 0\]"):
        replay.draw((1, 1), torch.Generator())


def test_every_field_has_its_shape() -> None:
    replay = OnlineReplay(2, 3, FIELDS, observation_size=4, action_size=5)
    shapes = {name: tuple(column.shape[2:]) for name, column in replay.columns.items()}
    assert shapes["observation"] == shapes["terminal_observation"] == (4,)
    assert shapes["action"] == (5,)
    assert shapes["reward"] == shapes["terminal_discount"] == ()
    assert replay.columns["terminated"].dtype == torch.bool
