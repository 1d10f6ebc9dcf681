"""Where runs go: cores and GPUs of this machine, as many runs at a time as there are of them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Worker:
    """A place for one run at a time.

    Attributes:
        cores: that its processes may use; empty where processes cannot be bound to cores.
        gpu: index of its GPU among the visible ones; None without one.
    """

    cores: tuple[int, ...]
    gpu: str | None = None

    def __str__(self) -> str:
        """Return the place in words."""
        cores = f"core {','.join(map(str, self.cores))}" if self.cores else "any core"
        return cores if self.gpu is None else f"GPU {self.gpu}, {cores}"

    def environment(self) -> dict[str, str]:
        """Return variables for the processes; those that are set already win."""
        threads = str(max(1, len(self.cores)))
        wanted = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        found = {key: os.environ.get(key, value) for key, value in wanted.items()}
        return found if self.gpu is None else {**found, "CUDA_VISIBLE_DEVICES": self.gpu}


def find_workers(count: int | None = None) -> list[Worker]:
    """Return one worker for each GPU, or else for each core.

    Args:
        count: workers; several may share a GPU, and fewer workers than cores get several each.

    Raises:
        ValueError: a count below 1.
    """
    if count is not None and count < 1:
        raise ValueError(f"--workers: expected at least 1, found {count}.")
    cores, gpus = available_cores(), visible_gpus()
    number = count or len(gpus) or max(1, len(cores))
    shares = [tuple(cores[index::number]) for index in range(number)]
    if len(cores) < number:
        shares = [(cores[index % len(cores)],) if cores else () for index in range(number)]
    return [
        Worker(share, gpus[index % len(gpus)] if gpus else None)
        for index, share in enumerate(shares)
    ]


def available_cores() -> list[int]:
    """Return the cores that this process may use; empty where that is not known."""
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []


def visible_gpus() -> list[str]:
    """Return the names that CUDA_VISIBLE_DEVICES may have, one for each GPU."""
    import torch

    if "CUDA_VISIBLE_DEVICES" in os.environ:
        names = [name.strip() for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",")]
        hidden = [index for index, name in enumerate(names) if name in ("", "-1")]
        return names[: hidden[0]] if hidden else names  # CUDA reads up to the first invalid one
    return [str(index) for index in range(torch.cuda.device_count())]


@contextmanager
def bound_to(worker: Worker) -> Iterator[None]:
    """Bind the calling thread, and the processes that it starts, to a worker's cores."""
    before = available_cores()
    if worker.cores and before:
        os.sched_setaffinity(0, worker.cores)  # of this thread alone
    try:
        yield
    finally:
        if worker.cores and before:
            os.sched_setaffinity(0, before)
