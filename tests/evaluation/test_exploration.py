"""Meta-episodes: what the agent is shown, what is carried across, what is counted."""

from dataclasses import fields, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from offline_meta_rl.envs.base import StepResult
from offline_meta_rl.evaluation.exploration import Exploration, explore, share_of, summarise
from tests.doors import DoorExplorer, Doors, DoorsEngine

FAMILY = Doors()


def run(explorer: DoorExplorer | None = None, **options: Any) -> Exploration:
    settings: dict[str, Any] = {"meta_episodes": 12, "num_episodes": 3, "seed": 4} | options
    family = settings.pop("family", FAMILY)
    return explore(family, explorer or DoorExplorer(), family.task_parameters(0), **settings)


def test_what_was_learned_is_carried_across_episodes() -> None:
    found = run()
    assert np.bincount(found.target).tolist() == [6, 6]
    assert found.success.shape == (12, 3)
    np.testing.assert_array_equal(found.success[:, 0], found.target == 0)
    assert found.success[:, 1:].all()
    assert run(DoorExplorer(remembers=False)).success.mean(axis=0).tolist() == [0.5] * 3


def test_the_agent_is_shown_every_position_with_what_led_there() -> None:
    explorer = DoorExplorer()
    found = run(explorer, num_frames=2)
    horizon = FAMILY.horizon
    assert len(explorer.seen) == 3 * (horizon + 1)
    for number, (observation, action, reward, noise) in enumerate(explorer.seen):
        episode, step = divmod(number, horizon + 1)
        assert noise.shape == (12, 3)
        assert observation.dtype == torch.uint8
        assert (observation // 10 == step).all()
        np.testing.assert_array_equal(found.frames[:, episode, step], observation[:2].numpy())
        np.testing.assert_array_equal(found.reward[:, episode, step], reward.numpy())
        if step == 0:
            assert not action.any()
            assert not reward.any()
        else:
            expected = np.where(found.belief[:, episode, step - 1, 0] > 0.5, 1.0, -1.0)
            np.testing.assert_array_equal(action[:, 0].numpy(), expected)
    assert found.frames.shape == (2, 3, horizon + 1, 1, 2, 2)
    assert found.belief.shape == (12, 3, horizon + 1, 3)


def test_one_seed_one_result_and_the_global_state_is_left_alone() -> None:
    state = torch.get_rng_state()
    first, second, other = run(num_frames=3), run(num_frames=3), run(seed=5)
    for field in fields(Exploration):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name))
    assert (first.belief[..., 2] != other.belief[..., 2]).all()
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_of_meta_episodes_differ_in_noise_and_stay_balanced() -> None:
    found = run(batch_size=5, num_frames=7)
    np.testing.assert_array_equal(found.target, run().target)
    np.testing.assert_array_equal(found.success, run().success)
    assert len(np.unique(found.belief[..., 2])) == found.belief[..., 2].size
    assert len(found.frames) == 7


def test_sampled_actions_open_other_doors_too() -> None:
    found = run(sample_actions=True, meta_episodes=40)
    assert 0.2 < (found.first_opened[:, 0] == 1).mean() < 0.8
    assert (run(meta_episodes=40).first_opened[:, 0] == 0).all()


def test_first_opened() -> None:
    opened = np.zeros((3, 1, 4, 2), dtype=bool)
    opened[0, 0, 2:, 1] = True
    opened[0, 0, 3:, 0] = True
    opened[2, 0, 1:, 0] = True
    found = replace(run(meta_episodes=3, num_episodes=1), opened=opened)
    assert found.first_opened[:, 0].tolist() == [1, -1, 0]
    assert replace(found, opened=opened[..., :0]).first_opened[:, 0].tolist() == [-1, -1, -1]


def test_summary_counts_by_exploration_episodes_done() -> None:
    found = run(meta_episodes=20)
    points = summarise(found, [3, 8], FAMILY.nearest)
    assert [point["exploration_episodes"] for point in points] == [0, 1, 2]
    assert [point["success"]["share"] for point in points] == [0.5, 1.0, 1.0]
    assert points[0]["success_by_task"]["3"]["share"] == 1.0
    assert points[0]["success_by_task"]["8"] == share_of(np.zeros(10, dtype=bool))
    assert [point["nearest_of_opened"]["share"] for point in points] == [1.0, 0.5, 0.5]
    assert all(point["opened_any"]["share"] == 1.0 for point in points)
    assert "opened_any" not in summarise(found, [3, 8], None)[0]


def test_the_share_of_nothing_is_not_known() -> None:
    assert share_of(np.zeros(0, dtype=bool)) == {"share": None, "interval": [0.0, 1.0], "count": 0}


class Short(Doors):
    """Says that its episodes are longer than they are."""

    horizon: ClassVar[int] = 6

    def make_engine(self, parameters: Any, **options: Any) -> DoorsEngine:
        return FAMILY.make_engine(parameters, **options)


def test_episodes_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected episodes of 6 steps, found one .* after 4"):
        run(family=Short())


class Diverging(Doors):
    """The simulator of the third row diverges in the second episode, which ends there."""

    def make_engine(self, parameters: Any, **options: Any) -> DoorsEngine:
        class Engine(DoorsEngine):
            episodes = 0

            def reset(self, mask: Any = None) -> Any:
                self.episodes += 1
                return super().reset(mask)

            def step(self, action: Any) -> StepResult:
                result = super().step(action)
                bad = np.arange(self.num_envs) == (2 if self.episodes == 2 else -1)
                return result._replace(diverged=bad, truncated=result.truncated | bad)

        return Engine(self, parameters, options["seed"])


def test_meta_episodes_that_diverge_are_left_out() -> None:
    kept = np.arange(12) != 2
    whole, found = run(num_frames=5), run(family=Diverging(), num_frames=5)
    np.testing.assert_array_equal(found.target, whole.target[kept])
    np.testing.assert_array_equal(found.belief, whole.belief[kept])
    np.testing.assert_array_equal(found.frames, whole.frames[kept[:5]])


def test_actions_that_are_not_finite_are_refused() -> None:
    class Diverged(DoorExplorer):
        def act(self, belief: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
            return belief[:, :1] * torch.nan

    with pytest.raises(FloatingPointError, match="actions that are not finite"):
        run(Diverged())


def test_too_few_meta_episodes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one meta-episode for each of 2 tasks.* found 1"):
        run(meta_episodes=1)
