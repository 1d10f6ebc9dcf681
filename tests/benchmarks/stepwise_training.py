"""Trains MACAW with the sizes of the ant, some outer steps whenever a line of input says so.

Run as a program with one argument, settings as JSON: ``data`` (of TaskBuffers), ``cgroup`` (folder
of a control group to join, or null), ``forget`` (drop the data's pages from memory after each
step), ``threads``. Input lines are ``steps N`` and ``batches N``; the latter makes batches without
training and ends. Each is answered with the seconds, processor seconds and bytes read from the
disk.
"""

import json
import mmap
import os
import sys
import time
from pathlib import Path
from typing import Any

from offline_meta_rl.common.settings import arguments_of
from tests.helpers import build

SKIPPED = 6  # steps of each round that are not timed: a thread made their batches in the pause


class Meter:
    """Measures from its making on."""

    def __init__(self) -> None:
        self.start = self.now()

    @staticmethod
    def now() -> list[float]:
        lines = Path("/proc/self/io").read_text().splitlines()
        read = float(next(line for line in lines if line.startswith("read_bytes")).split()[1])
        return [time.perf_counter(), time.process_time(), read]

    def answer(self, count: int) -> None:
        """Print what one of ``count`` steps took since the start."""
        spent = [(b - a) / count for a, b in zip(self.start, self.now(), strict=True)]
        print("took", json.dumps(spent), flush=True)


def forget(dataset: Any) -> None:
    """Drop the pages of all arrays from this process and from the system's cache."""
    for array in dataset._arrays.values():
        array._map.madvise(mmap.MADV_DONTNEED)
        with open(array.file, "rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(settings: dict[str, Any]) -> None:
    if settings["cgroup"]:
        Path(settings["cgroup"], "cgroup.procs").write_text(str(os.getpid()))
    # The libraries' memory counts too.
    import lightning
    import torch

    from datamodules import TaskBuffers
    from offline_meta_rl.methods.macaw import Macaw

    class Rounds(lightning.Callback):
        """Trains when told to."""

        def on_train_start(self, trainer: Any, module: Any) -> None:
            trainer.datamodule.dataset.validate()  # once, not while the steps are timed
            forget(trainer.datamodule.dataset)
            print("ready", flush=True)
            self.count = self.left = 0
            self.next(trainer)

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if settings["forget"]:
                forget(trainer.datamodule.dataset)
            self.left -= 1
            if self.left == self.count:
                self.meter = Meter()
            elif self.left == 0:
                self.meter.answer(self.count)
                self.next(trainer)

        def next(self, trainer: Any) -> None:
            """Wait for the next command."""
            self.command, count = sys.stdin.readline().split()
            self.count, self.left = int(count), int(count) + SKIPPED
            trainer.should_stop = self.command == "batches"

    data = TaskBuffers(
        **arguments_of(TaskBuffers, settings["data"]), env="point_robot", steps_per_epoch=10**6
    )
    rounds = Rounds()
    trainer = lightning.Trainer(
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        callbacks=[rounds],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    torch.set_num_threads(settings["threads"])
    trainer.fit(build(Macaw, observation_size=27, action_size=8), datamodule=data)
    meter = Meter()
    for step in range(rounds.count):
        data.batch(data.batches_served + 10 + step)
        if settings["forget"]:
            forget(data.dataset)
    meter.answer(rounds.count)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
