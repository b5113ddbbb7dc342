"""Completions a second: so many in flight all the time, in one process or spread over several on one device.

Each process is what a worker is: a model of its own, warm, and a batch of the completions that it has in
flight. All are started before anything is measured; who is not asked waits. They tell whenever a completion
has ended, and whoever asked them counts, so that all are counted in the same window. It begins once as many
have ended as are in flight: what begins together must come apart first. It goes from one end to another, with
a multiple of those in flight between them where there is the time: completions that go in step end in bursts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from benchmarks.common import Figure, example
from model.batch import Batch, Steps, alone
from model.checkpoint import load_checkpoint
from model.completion import Completer, Completion

WARM_UP = 2
"""Completions that are not measured: they record what is replayed later."""

SETTLING, LONGEST = 2, 3
"""How long completions in flight may take to come apart, and be counted at most, in times of `seconds`."""

START_S = 180.0
"""Until a process must be warm."""

HANGS_S = {"cuda": 60.0, "cpu": 3600.0}
"""Until something must have ended while processes work on a device: on a CPU many in flight take long."""

CORES, MOST = 2, 8
"""Cores for each process, which steps in one thread while others hold Python's lock; processes at most."""


@dataclass(frozen=True)
class Load:
    """With what the example scan is completed again and again, its turn given."""

    checkpoint: Path
    device: str  # cpu, cuda or cuda:N
    options: dict[str, Any] = field(default_factory=dict)  # as `Completer.complete` takes them

    @property
    def patience_s(self) -> float:
        """How long nothing may end."""
        return HANGS_S[torch.device(self.device).type]

    def completer(self) -> Completer:
        """The model, loaded."""
        return Completer(load_checkpoint(self.checkpoint, self.device))

    def one(self, completer: Completer, seed: int) -> Steps[Completion]:
        """One completion."""
        return completer.completing([example()], pose="canonical", seed=seed, **self.options)


class Stopped(RuntimeError):
    """A process of the benchmark ended, or nothing came of it."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def processes_for(cores: int) -> list[int]:
    """Numbers of processes to compare on a machine: one, and as many as its cores can keep going."""
    return sorted({1, max(1, min(MOST, cores // CORES))})


def measured(load: Load, processes: Sequence[int], in_flight: Sequence[int], seconds: float) -> list[Figure]:
    """Completions a second, for each number of `processes` and in flight; of few in flight each has one."""
    with started(load, min(max(processes), max(in_flight))) as team:
        rates = {
            (used, jobs): rate(team[:used], jobs, seconds, load.patience_s)
            for used, jobs in sorted({(min(some, jobs), jobs) for some in processes for jobs in in_flight})
        }
    figures = [Figure(_name(used, jobs), value, "completions/s") for (used, jobs), value in rates.items()]
    most = max(in_flight)
    used = max(used for used, jobs in rates if jobs == most)
    if (1, most) in rates and used > 1:
        times = rates[used, most] / rates[1, most]
        figures.append(Figure(f"{most} in flight, {used} processes / 1 process", times, "x"))
    return figures


def _name(processes: int, jobs: int) -> str:
    return f"{jobs} in flight, {processes} process{'es' if processes > 1 else ''}"


# Whoever asks


@dataclass(frozen=True)
class Worker:
    """A process that completes, and the way to it."""

    process: BaseProcess
    connection: Connection

    def ask(self, jobs: int, threads: int = 1) -> None:
        """Keep so many in flight from now on, with so many of torch's threads; 0: none."""
        self._tried(lambda: self.connection.send((jobs, threads)))

    def told(self) -> float | None:
        """When a completion ended, or None: it is warm, or has stopped. Raises Stopped if it is gone."""
        told: float | None = self._tried(self.connection.recv)
        return told

    def _tried(self, talk: Callable[[], float | None]) -> float | None:
        try:
            return talk()
        except (EOFError, OSError):
            self.process.join(10)
            code = self.process.exitcode
            raise Stopped(
                f"a process of the benchmark ended with code {code}: its error is above; with -9 memory "
                "may have run out: try fewer --processes"
            ) from None


@contextmanager
def started(load: Load, processes: int) -> Iterator[list[Worker]]:
    """So many processes, all warm; they end with the block. Raises Stopped."""
    context, team = get_context("spawn"), []
    try:
        for _ in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, load), daemon=True)
            process.start()
            theirs.close()  # so that we hear of its end
            team.append(Worker(process, ours))
        _quiet(team, START_S, "warm")
        yield team
    finally:
        for worker in team:
            worker.process.kill()
        for worker in team:
            worker.process.join()
            worker.connection.close()


def rate(team: Sequence[Worker], jobs: int, seconds: float, patience_s: float) -> float:
    """Completions a second with so many in flight, spread evenly over a team. Raises Stopped."""
    for number, worker in enumerate(team):
        worker.ask(jobs // len(team) + (number < jobs % len(team)), max(1, cores() // len(team)))
    begun = monotonic()
    *_, since = _ends(
        team, patience_s, begun, lambda ends: len(ends) >= jobs or monotonic() - begun > SETTLING * seconds
    )
    ends = _ends(
        team,
        patience_s,
        since,
        lambda ends: monotonic() - since > (seconds if len(ends) >= jobs else LONGEST * seconds),
    )
    for worker in team:
        worker.ask(0)
    _quiet(team, patience_s, "done")
    return rate_of(ends, since, jobs)


def rate_of(ends: Sequence[float], since: float, jobs: int) -> float:
    """From one end to another, a multiple of `jobs` later if there are as many; `ends` ascend."""
    counted = len(ends) - len(ends) % jobs or len(ends)
    return counted / (ends[counted - 1] - since)


def _ends(
    team: Sequence[Worker], patience_s: float, since: float, enough: Callable[[list[float]], bool]
) -> list[float]:
    """When completions ended after `since`, ascending, until it is enough: of one at least."""
    ends: list[float] = []
    while not ends or not enough(ends):
        for worker in _heard(team, patience_s, "through with anything"):
            if (end := worker.told()) is not None and end > since:
                ends.append(end)
    return sorted(ends)


def _quiet(team: Iterable[Worker], patience_s: float, what: str) -> None:
    """Wait until each has said that it is warm, or has stopped."""
    busy = list(team)
    while busy:
        for worker in _heard(busy, patience_s, what):
            if worker.told() is None:
                busy.remove(worker)


def _heard(team: Sequence[Worker], patience_s: float, what: str) -> list[Worker]:
    """Who has something to tell."""
    ready = wait([worker.connection for worker in team], patience_s)
    if not ready:
        raise Stopped(f"no process is {what} within {patience_s:.0f} s: try fewer --processes")
    return [worker for worker in team if worker.connection in ready]


# Whoever works


def _work(connection: Connection, load: Load) -> None:
    """Do what is asked until nobody asks any more."""
    completer, most = load.completer(), torch.get_num_threads()
    for seed in range(WARM_UP):
        alone(load.one(completer, seed))
    try:
        while True:
            connection.send(None)
            jobs, threads = connection.recv()
            torch.set_num_threads(min(threads, most))
            _keep(jobs, load, completer, connection)
            connection.recv()
    except (EOFError, BrokenPipeError):
        return


def _keep(jobs: int, load: Load, completer: Completer, connection: Connection) -> None:
    """Have so many in flight until something else is asked."""
    batch: Batch[int, Completion] = Batch(threads=jobs)
    seeds = count()
    while not connection.poll():
        while len(batch) < jobs:
            seed = next(seeds)
            batch.add(seed, load.one(completer, seed))
        for ended in batch.turn():
            if ended.error is not None:
                raise ended.error
            connection.send(monotonic())
    batch.close()
