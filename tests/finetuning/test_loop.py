"""The schedule of online fine-tuning: what is collected, measured and updated when."""

import io
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

from offline_meta_rl.envs import FAMILIES
from offline_meta_rl.envs.base import Array, Bools, StepResult
from offline_meta_rl.envs.point_robot import PointRobot
from offline_meta_rl.finetuning.awr import AwrLearner
from offline_meta_rl.finetuning.learner import OnlineLearner
from offline_meta_rl.finetuning.loop import FineTuning
from offline_meta_rl.finetuning.replay import FIELDS, Columns, OnlineReplay
from offline_meta_rl.finetuning.settings import FineTuningSettings, check_options
from offline_meta_rl.methods.macaw import Macaw
from tests.helpers import build
from tests.methods.tiny import difference

HORIZON = 4


class Recorder(OnlineLearner):
    """Notes what it is asked for; moves by its noise."""

    fields = FIELDS
    updates: ClassVar = {"critic": 2, "actor": 3}
    reads: ClassVar = {"critic": ("reward", "next_observation"), "actor": ("observation",)}

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.rows: dict[str, Tensor] = {}

    def act(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        self.events.append(("explore" if noise is not None else "measure", observation.shape[1]))
        return torch.zeros(*observation.shape[:2], 2) if noise is None else noise

    def prepare(self, kind: str, replay: OnlineReplay) -> dict[str, Tensor]:
        self.events.append(("prepare", kind, replay.size.tolist()))
        return {"half": replay.columns["reward"][:, : replay.filled] / 2}

    def update(self, kind: str, batch: Columns, generator: torch.Generator) -> dict[str, Tensor]:
        assert set(batch) == {*self.reads[kind], "half"}
        if kind == "critic":
            assert torch.equal(batch["half"], batch["reward"] / 2)
        self.events.append((kind, tuple(batch["half"].shape)))
        return {kind: torch.zeros(len(batch["half"]))}

    def observe(self, episode: Columns, kept: Tensor) -> None:
        self.events.append(("observe", kept.sum(dim=1).tolist()))
        self.rows = dict(episode)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class Engine:
    """Environments that fall after their task's first number of steps; the second one's diverge."""

    def __init__(self, parameters: Array) -> None:
        self.lengths, self.num_envs = parameters[:, 0], len(parameters)
        self.diverging, self.elapsed = parameters[:, 1] > 0, np.zeros(len(parameters))

    def reset(self, mask: Bools | None = None) -> NDArray[np.float32]:
        self.elapsed[slice(None) if mask is None else mask] = 0
        return np.repeat(self.elapsed[:, None], 2, axis=1).astype(np.float32)

    def step(self, action: NDArray[np.floating[Any]]) -> StepResult:
        self.elapsed = self.elapsed + 1
        ended = self.elapsed >= self.lengths
        observation = np.repeat(self.elapsed[:, None], 2, axis=1).astype(np.float32)
        diverged = ended & self.diverging
        return StepResult(
            observation, self.elapsed * 1.0, ended & ~diverged, diverged, diverged, {}
        )

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def close(self) -> None:
        """Nothing to release."""


class Falling(PointRobot):
    """A family of ``Engine``."""

    horizon = HORIZON

    def make_engine(self, parameters: Array, *, seed: int, num_threads: int | None = None) -> Any:
        return Engine(parameters)


SETTINGS = FineTuningSettings(
    environment_steps=11,
    warmup_episodes=2,
    updates={"actor": 1},
    batch_size=5,
    evaluation_episodes=2,
    comparison_episodes=2,
)


def recorded(parameters: list[list[float]], **options: Any) -> tuple[FineTuning, Recorder]:
    """Fine-tune with a recorder until it is done."""
    recorder = Recorder()
    settings = replace(SETTINGS, **options)
    run = FineTuning(recorder, Falling(), np.array(parameters), settings, discount=0.5)
    while not run.done:
        run.advance()
    return run, recorder


def test_schedule_is_evaluate_collect_update() -> None:
    run, recorder = recorded([[4, 0], [4, 0]])
    measured, explored = [("measure", 2)] * HORIZON, [("explore", 1)] * HORIZON
    collected = [*measured, *explored, ("observe", [4, 4])]
    shape = (2, 5)
    updates = [("prepare", "critic", [12, 12]), *[("critic", shape)] * 2]
    updates += [("prepare", "actor", [12, 12]), ("actor", shape)]
    assert recorder.events == [*collected * 2, *collected, *updates, *measured]
    assert run.updates_taken == {"critic": 2, "actor": 1}
    assert run.episodes == 3
    assert [point["steps"] for point in run.curve] == [[0, 0], [4, 4], [8, 8], [12, 12]]
    assert run.curve[0]["returns"] == [[10.0, 10.0], [10.0, 10.0]]


def test_no_update_before_every_task_has_a_batch() -> None:
    _, recorder = recorded([[4, 0], [2, 0]], warmup_episodes=0)
    first = next(event for event in recorder.events if event[0] == "prepare")
    assert first == ("prepare", "critic", [12, 6])


def test_points_of_the_curve_come_every_so_many_episodes_and_at_the_end() -> None:
    run, _ = recorded([[4, 0]], environment_steps=29, evaluate_every=3)
    assert [point["episodes"] for point in run.curve] == [0, 3, 6, 8]


def test_fallers_go_on_until_the_slowest_has_its_steps_and_what_diverged_is_dropped() -> None:
    parameters = [[4.0, 0], [2, 0], [3, 1]]
    run, recorder = recorded(parameters, environment_steps=7, warmup_episodes=1)
    assert run.episodes == 4
    assert run.steps.tolist() == [16, 8, 12]
    assert run.diverged.tolist() == [0, 0, 4]
    assert run.replay.size.tolist() == [16, 8, 0]
    assert run.updates_taken["critic"] == 0  # the third task never has a batch
    assert recorder.rows["return_to_go"][1, 0] == 1 + 0.5 * 2
    assert recorder.rows["terminated"][:, :2].tolist() == [
        [False, False],
        [False, True],
        [False] * 2,
    ]
    assert np.isnan(run.curve[0]["returns"][2]).all()
    assert run.curve[0]["returns"][:2] == [[10.0, 10.0], [3.0, 3.0]]


def test_the_context_stays_in_the_replay_if_asked() -> None:
    size = {"observation": (2,), "next_observation": (2,), "terminal_observation": (2,)}
    shapes = {name: size.get(name, (2,) if name == "action" else ()) for name in FIELDS}
    context = TensorDict({n: torch.ones(2, 7, *s) for n, s in shapes.items()}, batch_size=[2, 7])
    for keep, rows in ((True, 7), (False, 0)):
        settings = replace(SETTINGS, keep_context=keep)
        parameters = np.array([[4.0, 0], [4, 0]])
        run = FineTuning(Recorder(), Falling(), parameters, settings, discount=1, context=context)
        assert run.replay.size.tolist() == [rows, rows]


def test_defaults_are_the_authors_schedule() -> None:
    settings = FineTuningSettings()
    assert (settings.warmup_episodes, settings.batch_size) == (26, 256)
    assert (settings.replay_size, settings.evaluation_episodes) == (50_000, 3)
    assert (settings.environment_steps, settings.keep_context) == (20_000, False)
    assert settings.updates_of(AwrLearner.updates) == {"value": 100, "policy": 200}
    assert list(settings.updates_of(AwrLearner.updates)) == ["value", "policy"]
    run, recorder = recorded([[20, 0]], warmup_episodes=26, batch_size=2, environment_steps=107)
    assert run.episodes == 27
    before = recorder.events[: recorder.events.index(("prepare", "critic", [108]))]
    assert sum(event[0] == "observe" for event in before) == 27


def learning(seed: int = 0, **options: Any) -> FineTuning:
    """A small MACAW on three point robots."""
    torch.manual_seed(0)
    module = build(Macaw, observation_size=2, action_size=2, width=8, head_width=4, latent_size=3)
    batch = {
        name: torch.randn(3, 9, *size)
        for name, size in {"observation": (2,), "action": (2,)}.items()
    }
    context = TensorDict({**batch, "return_to_go": torch.randn(3, 9)}, batch_size=[3, 9])
    family = FAMILIES["point_robot"]
    settings = FineTuningSettings(
        environment_steps=160,
        warmup_episodes=1,
        updates={"value": 3, "policy": 4},
        batch_size=16,
        replay_size=100,
        seed=seed,
    )
    agent = module.fine_tuner(context, policy_learning_rate=1e-2, value_learning_rate=1e-2)
    parameters = family.task_parameters(0)[[3, 11, 19]]
    return FineTuning(agent, family, parameters, settings, discount=0.99, **options)


def finish(run: FineTuning) -> dict[str, Any]:
    while not run.done:
        run.advance()
    return run.state_dict()


@pytest.mark.parametrize("episodes", [1, 5])
def test_resumed_equals_uninterrupted_and_measuring_changes_nothing(episodes: int) -> None:
    uninterrupted = finish(learning())
    first = learning()
    while first.episodes < episodes:
        first.advance()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = learning()
    second.advance()
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.compare() == second.compare()
    assert difference(finish(second), uninterrupted) is None
    assert uninterrupted["updates_taken"] == {"value": 21, "policy": 28}
    assert difference(finish(learning(seed=1)), uninterrupted) is not None


def test_numbers_that_are_not_finite_stop_it_and_name_the_task() -> None:
    run = learning()
    theta: Any = run.learner.policy[0]  # type: ignore[attr-defined]
    theta.data[1] = torch.nan
    with pytest.raises(
        FloatingPointError, match=r"action is not finite .* positions \[1\] of the 3"
    ):
        run.advance()
    run = learning()
    theta = run.learner.value[0]  # type: ignore[attr-defined]
    theta.data[2] = torch.inf
    with pytest.raises(FloatingPointError, match=r"value_loss is not finite .* positions \[2\]"):
        finish(run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"environment_steps": 0}, "environment_steps must be at least 1, found 0"),
        ({"warmup_episodes": -1}, "warmup_episodes must be at least 0, found -1"),
        ({"batch_size": 60_000}, "batch_size must be at most replay_size, 50000, found 60000"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FineTuningSettings(**options)


@pytest.mark.parametrize(
    "options", [{"environment_steps": 5200}, {"batch_size": 3000, "environment_steps": 2900}]
)
def test_a_fine_tuning_without_updates_is_refused(options: dict[str, int]) -> None:
    settings = FineTuningSettings(**options, warmup_episodes=26 if len(options) == 1 else 0)
    with pytest.raises(ValueError, match="No update would be taken: environment_steps is"):
        settings.check_updates(200)
    replace(settings, environment_steps=5201).check_updates(200)


def test_unknown_kinds_and_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"kinds \['value', 'policy'\].*found \{'actor': 3\}"):
        replace(SETTINGS, updates={"actor": 3}).updates_of(AwrLearner.updates)
    with pytest.raises(ValueError, match="Macaw has no setting rate: expected some of a, b"):
        check_options({"rate": 1, "b": 2}, ["b", "a"], "Macaw")
