"""Run what a plan holds: skip what is finished, continue what was interrupted, name what failed.

Runs go to workers: the GPUs of this machine, or else its cores. Every worker takes runs from a
queue and waits for their processes: the first one in this thread, the others in threads of their
own. Ctrl-C and SIGTERM are handed on: every process finishes its outer step and writes a
checkpoint, and the same command goes on later. A process inherits its run's lock, so a run whose
runner was killed is not started twice.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from offline_meta_rl.common.files import read_json
from offline_meta_rl.experiments.plan import INTERRUPTED_CODES, Run
from offline_meta_rl.experiments.states import (
    State,
    begin,
    check_begun,
    end,
    last_lines,
    state_of,
    try_lock,
)

Launch = Callable[[Sequence[str], Mapping[str, str], IO[str], Sequence[int]], int]
"""Runs one command: arguments of ``lightning``, variables, log, files to keep open -> exit code."""

LOCK_TRIES = 10


@dataclass(frozen=True)
class Worker:
    """A place for one run at a time.

    Attributes:
        cores: Cores that its processes may use; empty where they cannot be bound to cores.
        gpu: Index of its GPU among the visible ones; None without one.
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
        count: Number of workers. Several may share a GPU; fewer workers than cores get several
            cores each.

    Raises:
        ValueError: A count below 1.
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


class Runner:
    """Runs a plan on workers.

    Args:
        runs: Runs of a plan.
        workers: Where they run.
        retry_failed: Also run what failed before.
        launch: Runs one command; None for a process.
        say: Prints a line.
        ended: Is told when one of the runs to do is over, however it ended.

    Raises:
        ValueError: A run that was begun with other settings.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        workers: Sequence[Worker],
        *,
        retry_failed: bool = False,
        launch: Launch | None = None,
        say: Callable[[str], None] = print,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.runs, self.workers, self.say, self.ended = runs, workers, say, ended
        self.launch: Launch = launch or self._process
        again = {State.WAITING, State.INTERRUPTED} | ({State.FAILED} if retry_failed else set())
        states = [state_of(run) for run in runs]
        for run in runs:
            check_begun(run)
        self.todo = [run for run, state in zip(runs, states, strict=True) if state in again]
        self.stopping = threading.Event()
        self._processes: set[subprocess.Popen[str]] = set()
        self._queue: queue.SimpleQueue[Run] = queue.SimpleQueue()
        self._errors: list[BaseException] = []

    def run(self) -> bool:
        """Run everything that is to do; return whether all runs of the plan are finished.

        Raises:
            ValueError: a run that was begun with other settings.
        """
        for run in self.todo:
            self._queue.put(run)
        workers = self.workers[: len(self.todo)]
        threads = [threading.Thread(target=self._work, args=(worker,)) for worker in workers[1:]]
        with self._signals():
            for thread in threads:
                thread.start()
            if workers:
                self._work(workers[0])  # the signals' handlers run in this thread
            for thread in threads:
                thread.join()
        if self._errors:
            raise self._errors[0]
        return self._report()

    def _work(self, worker: Worker) -> None:
        with bound_to(worker):
            while not self.stopping.is_set():
                try:
                    self._one(self._queue.get_nowait(), worker)
                except queue.Empty:
                    return
                except BaseException as error:
                    self._errors.append(error)
                    self.stopping.set()

    def _one(self, run: Run, worker: Worker) -> None:
        lock = _lock(run.folder)
        if lock is None:
            self.say(f"{run.name}: another process runs it")
            return
        with lock, open(run.folder / "log.txt", "a") as log:
            tracker = {"WANDB_RUN_ID": begin(run), "WANDB_NAME": f"{run.name}/{run.scale}"}
            tracker["WANDB_RESUME"] = "allow"  # a resumed run is the same run, its curve goes on
            variables = {**run.environment, **tracker, **worker.environment()}
            self.say(f"{run.name}: started on {worker}")
            start = time.perf_counter()
            code = self._commands(run, variables, log, lock.fileno())
            seconds = time.perf_counter() - start
            end(run, code, seconds)
        if code == 0:
            self.say(f"{run.name}: finished after {seconds / 60:.1f} min")
        elif code < 0 or code in INTERRUPTED_CODES:
            self.say(f"{run.name}: interrupted; the same command goes on")
        else:
            self.say(f"{run.name}: FAILED with exit code {code}")
        self.ended()

    def _commands(self, run: Run, variables: Mapping[str, str], log: IO[str], lock: int) -> int:
        """Run what is not done yet of a run's commands; return the first exit code but 0."""
        for command, result in zip(run.commands, run.results, strict=True):
            arguments = list(command)
            if command[0] == "fit":
                if _trained(run):
                    continue
                checkpoint = run.checkpoint()
                arguments += ["--ckpt_path", str(checkpoint)] if checkpoint else []
            elif (run.folder / result).is_file():
                continue
            log.write(f"$ lightning {' '.join(arguments)}\n")
            log.flush()
            code = self.launch(arguments, variables, log, [lock])
            if code:
                return code
            if command[0] == "fit" and not _trained(run):
                log.write(f"Expected results and last.ckpt of step {run.steps} in {run.folder}.\n")
                return 1
            if not (run.folder / result).is_file():
                log.write(f"Expected {result} in {run.folder}, found none.\n")
                return 1
        return 0

    def _process(
        self,
        arguments: Sequence[str],
        variables: Mapping[str, str],
        log: IO[str],
        kept: Sequence[int],
    ) -> int:
        with subprocess.Popen(
            [sys.executable, "-m", "offline_meta_rl", *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,  # nothing may ask
            env={**os.environ, **variables},
            pass_fds=tuple(kept),
            start_new_session=True,  # Ctrl-C comes through this process
            text=True,
        ) as process:
            self._processes.add(process)
            if self.stopping.is_set():
                process.send_signal(signal.SIGTERM)
            code = process.wait()
            self._processes.discard(process)
        return code

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Hand Ctrl-C and SIGTERM on to the processes while the block runs."""

        def stop(*_: object) -> None:
            if not self.stopping.is_set():
                self.say("Stopping when every run has written its checkpoint.")
            self.stopping.set()
            for process in list(self._processes):
                process.send_signal(signal.SIGTERM)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _report(self) -> bool:
        states = {run: state_of(run) for run in self.runs}
        failed = [run for run, state in states.items() if state == State.FAILED]
        for run in failed:
            self.say(
                f"\n{run.name} failed; the end of {run.folder / 'log.txt'}:\n{last_lines(run)}"
            )
        if failed:
            self.say("\nRun the same command with --retry_failed to try them again.")
        finished = sum(state == State.FINISHED for state in states.values())
        self.say(f"{finished} of {len(self.runs)} runs are finished.")
        return finished == len(self.runs)


def _lock(folder: Path) -> IO[str] | None:
    """Take a run's lock; wait while another process only looks at the run."""
    for _ in range(LOCK_TRIES):
        lock = try_lock(folder)
        if lock is not None:
            return lock
        time.sleep(0.05)
    return None


def _trained(run: Run) -> bool:
    """Whether training is over: the results are those of the last step, and so is a checkpoint."""
    step = read_json(run.folder / "results.json").get("global_step")
    last: Path = run.folder / "checkpoints" / "last.ckpt"
    newest = run.checkpoint()
    return step == run.steps and last.is_file() and newest == last
