"""What ``results.json`` and ``fine_tuning.json`` hold, as types.

In the files NaN is null. Files of earlier versions may lack what was added later.
"""

from typing import NotRequired, TypedDict

from offline_meta_rl.common.files import Json
from offline_meta_rl.data.description import Environment
from offline_meta_rl.evaluation.protocol import ResultContent


class RunConfig(TypedDict):
    """Constructor arguments of the method and of its datamodule."""

    model: dict[str, Json]
    data: dict[str, Json]


class Origin(TypedDict):
    """Where a result comes from.

    Attributes:
        global_step: Outer steps of the weights.
        method: Full name of the method's class.
        environment: Id, version and arguments of the gymnasium environment.
        dataset_checksum: Checksum of the data.
        seed: Seed of the run; None where none was set.
        commit: Commit of the code; None outside of a checkout.
        config: Constructor arguments.
    """

    global_step: int
    method: str
    environment: Environment
    dataset_checksum: str
    seed: int | None
    commit: str | None
    config: RunConfig


class HistoryPoint(TypedDict):
    """One point of a learning curve.

    Attributes:
        step: Outer steps.
        wall_time: Seconds since the start, of all processes of a resumed run together.
        before_return: Mean over tasks before adaptation.
        before_normalised_return: The same, normalised.
        after_return: Mean over tasks after adaptation.
        after_normalised_return: The same, normalised.
        after_return_per_task: Task -> mean return after adaptation, for statistics.
        after_normalised_return_per_task: The same, normalised.
    """

    step: int
    wall_time: float
    before_return: float
    before_normalised_return: float
    after_return: float
    after_normalised_return: float
    after_return_per_task: dict[str, float]
    after_normalised_return_per_task: dict[str, float]


class ResultFile(ResultContent, Origin):
    """Content of ``results.json``.

    Attributes:
        wall_time: Seconds of training, evaluations included.
        evaluation_time: Seconds of evaluations.
        steps_per_second: Outer steps a second without evaluations; None without training.
        history: The learning curve so far.
    """

    wall_time: float
    evaluation_time: float
    steps_per_second: float | None
    history: list[HistoryPoint]


TaskCurve = TypedDict(
    "TaskCurve",
    {
        "steps": list[int],
        "return": list[float],
        "returns": NotRequired[list[list[float]]],
        "references": NotRequired[dict[str, float]],
    },
)
"""One task's fine-tuning: environment steps, mean returns then, all episodes' returns, and for
pictures the returns of reference policies."""


class FineTuningFile(TypedDict):
    """What reports read of ``fine_tuning.json``.

    Attributes:
        tasks: Indices of the T tasks.
        settings: Settings of the fine-tuning; ``environment_steps`` is the length of the curves.
        curves: Task -> its curve.
        references: Name of a reference policy -> its mean return in each task, [T].
    """

    tasks: list[int]
    settings: dict[str, Json]
    curves: dict[str, TaskCurve]
    references: NotRequired[dict[str, list[float]]]
