"""Fine-tuning of all held-out tasks as one batch, against one task after another.

Both sides do the authors' schedule once the warm-up is over: three episodes with mean actions, one
with noise, 100 value and 200 policy updates on 256 transitions; same sizes, data type, threads and
fused Adam, nothing compiled. The sequential side is written as for a single task: its gymnasium
environment, ``tests.references.awr`` and its own replay, with advantages computed for each batch.
``same_code_ratio`` compares with our own code for one task at a time instead; for PEARL (200
updates after an episode) there is that one alone. Rounds are interleaved, so that another busy
process slows all sides alike.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from offline_meta_rl.envs import FAMILIES
from offline_meta_rl.finetuning.awr import AwrLearner
from offline_meta_rl.finetuning.learner import OnlineLearner
from offline_meta_rl.finetuning.loop import FineTuning
from offline_meta_rl.finetuning.settings import FineTuningSettings
from offline_meta_rl.methods.macaw import Macaw
from offline_meta_rl.methods.pearl import Pearl
from tests.benchmarks.record import record
from tests.references.awr import ReferenceAwr, ordinary

DISCOUNT = 0.99


class OneTask:
    """One task's agent, environment and replay."""

    def __init__(self, agent: AwrLearner, index: int, family: Any, task: int, device: str) -> None:
        networks: list[Any] = [[ordinary(t[index]) for t in p] for p in (agent.policy, agent.value)]
        rates = {"policy": 1e-5, "value": 1e-5}
        self.agent = ReferenceAwr(networks[0], networks[1], rates, fused=True)
        self.env = gymnasium.make(family.env_id, task=task)
        self.env.reset(seed=task)
        self.device, self.updates = device, AwrLearner.updates
        self.rows: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def episode(self, sigma: float) -> list[tuple[Any, ...]]:
        """Run one episode; return its transitions."""
        observation, _ = self.env.reset()
        rows, ended = [], False
        while not ended:
            seen = torch.as_tensor(observation, dtype=torch.float32)
            action = self.agent.mean_action(seen[None].to(self.device))[0].cpu()
            action = action + sigma * torch.randn(action.shape)
            following, reward, terminated, truncated, _ = self.env.step(action.clamp(-1, 1).numpy())
            rows.append((seen, action.clamp(-1, 1), reward, following))
            observation, ended = following, terminated or truncated
        return rows

    def collect(self) -> None:
        """Put one noisy episode into the replay."""
        rows = self.episode(0.2)
        returns, carry = [], 0.0
        for row in reversed(rows):
            carry = float(row[2]) + DISCOUNT * carry
            returns.append(carry)
        left = torch.arange(len(rows), 0, -1.0)
        end = torch.as_tensor(rows[-1][3], dtype=torch.float32)
        columns = {
            "observation": torch.stack([row[0] for row in rows]),
            "action": torch.stack([row[1] for row in rows]),
            "return_to_go": torch.tensor(returns[::-1]),
            "terminal_observation": end.expand(len(rows), -1),
            "terminal_discount": DISCOUNT**left,
        }
        for name, column in columns.items():
            self.rows.setdefault(name, []).append(column.to(self.device))

    def advance(self) -> None:
        """Measure, collect, update."""
        for _ in range(3):
            self.episode(0.0)
        self.collect()
        replay = {name: torch.cat(parts) for name, parts in self.rows.items()}
        for kind, count in self.updates.items():
            for _ in range(count):
                chosen = torch.randint(len(replay["observation"]), (256,), device=self.device)
                self.agent.update(kind, {name: column[chosen] for name, column in replay.items()})


def agents(
    method: type[Macaw | Pearl], family: Any, tasks: list[int], width: int, device: str
) -> OnlineLearner:
    """The agents of some tasks, adapted to random numbers."""
    torch.manual_seed(0)
    module = method(
        observation_size=family.observation_size, action_size=family.action_size, width=width
    ).to(device)
    context = {
        "observation": torch.randn(len(tasks), 256, family.observation_size),
        "action": torch.rand(len(tasks), 256, family.action_size) * 2 - 1,
        "return_to_go": torch.randn(len(tasks), 256),
        "reward": torch.randn(len(tasks), 256),
    }
    batch = TensorDict(context, batch_size=[len(tasks), 256]).to(device)
    return module.fine_tuner(batch)


def ours(
    method: type[Macaw | Pearl],
    family: Any,
    tasks: list[int],
    width: int,
    warmup: int,
    device: str,
) -> Callable[[], object]:
    """Return a function that advances all tasks by one episode, after the warm-up."""
    settings = FineTuningSettings(warmup_episodes=warmup)
    run = FineTuning(
        agents(method, family, tasks, width, device),
        family,
        family.task_parameters(0)[tasks],
        settings,
        discount=DISCOUNT,
        context=TensorDict({}, batch_size=[len(tasks)], device=device),
        num_threads=torch.get_num_threads(),
    )
    for _ in range(warmup):
        run.advance()
    return run.advance


def sequential(
    family: Any, tasks: list[int], width: int, warmup: int, device: str
) -> Callable[[], object]:
    """Return a function that advances one task after another by one episode."""
    start = agents(Macaw, family, tasks, width, device)
    assert isinstance(start, AwrLearner)
    singles = [OneTask(start, i, family, task, device) for i, task in enumerate(tasks)]
    for single in singles:
        for _ in range(warmup):
            single.collect()

    def advance() -> None:
        for single in singles:
            single.advance()

    return advance


def compare(
    name: str,
    *,
    width: int,
    repeats: int,
    device: str = "cpu",
    method: type[Macaw | Pearl] = Macaw,
) -> float:
    """Record environment steps per second of all sides; return the ratio of processor time.

    Processor time tells on a busy machine, whose clock also counts the time of others.
    """
    family = FAMILIES[name]
    tasks = list(family.splits["default"][1])
    warmup = -(-256 // family.horizon)
    size = (width, warmup, device)
    alone = [ours(method, family, [task], *size) for task in tasks]
    sides: dict[str, Callable[[], object]] = {
        "batched": ours(method, family, tasks, *size),
        "same_code": lambda: [advance() for advance in alone],
    }
    if method is Macaw:
        sides["sequential"] = sequential(family, tasks, *size)
    seconds: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for advance in sides.values():
        advance()
    for _ in range(repeats):
        for side, advance in sides.items():
            begin = time.perf_counter(), time.process_time()
            advance()
            if device == "cuda":
                torch.cuda.synchronize()
            end = time.perf_counter(), time.process_time()
            seconds[side].append((end[0] - begin[0], end[1] - begin[1]))
    clock, processor = (
        {side: float(np.median([pair[kind] for pair in s])) for side, s in seconds.items()}
        for kind in range(2)
    )
    steps = len(tasks) * family.horizon
    ratios = {
        f"{side}_ratio{suffix}": measured[side] / measured["batched"]
        for side in sides
        if side != "batched"
        for suffix, measured in (("", clock), ("_of_processor_time", processor))
    }
    record(
        f"{Path(__file__).stem}_{method.__name__.lower()}_{name}_{device}",
        tasks=len(tasks),
        width=width,
        device=device,
        threads=torch.get_num_threads(),
        load_of_the_machine=os.getloadavg()[0],
        **{f"{side}_steps_per_second": steps / seconds for side, seconds in clock.items()},
        **ratios,
    )
    compared = "sequential" if method is Macaw else "same_code"
    measured = clock if device == "cuda" else processor
    return measured[compared] / measured["batched"]


@pytest.mark.usefixtures("threads")
def test_point_robots() -> None:
    assert compare("point_robot", width=64, repeats=3) >= 3


@pytest.mark.mujoco
@pytest.mark.usefixtures("threads")
def test_half_cheetahs() -> None:
    compare("cheetah_vel", width=100, repeats=2)


@pytest.mark.usefixtures("threads")
def test_point_robots_of_pearl() -> None:
    assert compare("point_robot", width=64, repeats=3, method=Pearl) > 1


@pytest.mark.gpu
@pytest.mark.mujoco
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_half_cheetahs_on_a_gpu() -> None:
    assert compare("cheetah_vel", width=100, repeats=5, device="cuda") >= 3
