"""The batched engine against gymnasium's SyncVectorEnv over the same environment class."""

import time

import gymnasium
import numpy as np
import pytest

from offline_meta_rl.envs import FAMILIES
from tests.benchmarks.record import record

NUM_ENVS, STEPS, REPEATS = 40, 50, 4


@pytest.mark.parametrize("name", ["cheetah_vel", "ant_dir", "walker_params"])
def test_environment_steps_per_second(name: str) -> None:
    family = FAMILIES[name]
    tasks = np.arange(NUM_ENVS) % family.num_tasks
    engine = family.make_engine(family.task_parameters(0)[tasks], seed=0, num_threads=2)
    makers = [
        lambda task=task: gymnasium.make(family.env_id, task=task, disable_env_checker=True)
        for task in tasks
    ]
    vector = gymnasium.vector.SyncVectorEnv(makers)
    actions = np.random.default_rng(0).uniform(-1, 1, (STEPS, NUM_ENVS, family.action_size))
    actions = actions.astype(np.float32)

    def batched() -> None:
        engine.reset()
        for action in actions:
            result = engine.step(action)
            ended = result.terminated | result.truncated
            if ended.any():
                engine.reset(ended)

    def one_by_one() -> None:
        vector.reset(seed=0)
        for action in actions:
            vector.step(action)

    seconds: dict[str, float] = {}
    for run in (batched, one_by_one):
        run()
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        seconds[run.__name__] = min(times)
    vector.close()
    engine.close()
    rate = {name: NUM_ENVS * STEPS / value for name, value in seconds.items()}
    ratio = rate["batched"] / rate["one_by_one"]
    record(
        f"engine_{name}",
        environments=NUM_ENVS,
        threads=2,
        engine_steps_per_second=rate["batched"],
        sync_vector_env_steps_per_second=rate["one_by_one"],
        ratio=ratio,
    )
    assert ratio >= 2.0
