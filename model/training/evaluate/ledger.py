"""Every measurement as it comes, one line a task: an evaluation that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from model.checkpoint import DECODER_FILE, ENCODER_FILE, LATENTS_FILE, read_card
from model.training.evaluate.measuring import Extent, Measured, Setup, measure
from model.training.evaluate.tasks import Task

Result = TypeVar("Result")


class Ledger:
    """Measurements of one checkpoint, in a file of JSON lines, or in memory alone.

    The first line tells which checkpoint was measured. A file of another one is begun anew, and so is a
    file that `fresh` asks to forget. A last line that was cut off in writing is dropped.
    """

    def __init__(self, file: Path | None, checkpoint: str, fresh: bool = False) -> None:
        self._file = file
        self._done: dict[str, list[Measured]] = {}
        if file is None:
            return
        head = json.dumps({"checkpoint": checkpoint})
        lines = [] if fresh or not file.exists() else _whole_lines(file)
        if not lines or lines[0] != head:
            lines = [head]
        for line in lines[1:]:
            entry = json.loads(line)
            self._done[entry["task"]] = [Measured(**one) for one in entry["measured"]]
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".part")
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
        partial.replace(file)

    def found(self, task: Task, extent: Extent) -> list[Measured] | None:
        """What was measured of a task in this extent or a larger one; None if nothing was."""
        for larger in _LARGER[extent]:
            if (measured := self._done.get(_key(task, larger))) is not None:
                return measured
        return None

    def add(self, task: Task, extent: Extent, measured: Sequence[Measured]) -> None:
        """Write down what was measured of a task."""
        self._done[_key(task, extent)] = list(measured)
        if self._file is not None:
            entry = {"task": _key(task, extent), "measured": [asdict(one) for one in measured]}
            with self._file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(entry) + "\n")


_LARGER: dict[Extent, tuple[Extent, ...]] = {
    "all": ("all",),
    "no adam": ("no adam", "all"),
    "ours": ("ours", "no adam", "all"),
}


def _key(task: Task, extent: Extent) -> str:
    return f"{task.key}/{extent}"


def _whole_lines(file: Path) -> list[str]:
    *whole, _ = file.read_text(encoding="utf-8").split("\n")
    return whole


def fingerprint(folder: Path) -> str:
    """What changes when a checkpoint measures otherwise: its weights, its codes, the settings in its card."""
    digest = hashlib.sha256()
    for name in (DECODER_FILE, LATENTS_FILE, ENCODER_FILE):
        if (folder / name).exists():  # a checkpoint may have no encoder
            digest.update((folder / name).read_bytes())
    measured = ("evaluation", "evaluation_by_category")
    card = {name: value for name, value in read_card(folder).items() if name not in measured}
    digest.update(json.dumps(card, sort_keys=True).encode())
    return digest.hexdigest()


def measured(tasks: Sequence[Task], setup: Setup, ledger: Ledger, jobs: int) -> list[Measured]:
    """Everything measured of the tasks: what the ledger has, and the rest, written down as it comes."""
    todo = [task for task in tasks if ledger.found(task, setup.extent) is None]
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("measure", total=len(tasks), completed=len(tasks) - len(todo))
        for index, result in worked_through(measure, todo, setup, jobs):
            ledger.add(todo[index], setup.extent, result)
            progress.advance(bar)
    return [one for task in tasks for one in ledger.found(task, setup.extent) or []]


def worked_through(
    work: Callable[[Task, Setup], Result], tasks: Sequence[Task], setup: Setup, jobs: int
) -> Iterator[tuple[int, Result]]:
    """The number of each task and its result, as they come; in fresh processes if `jobs` exceeds 1."""
    if jobs == 1:
        yield from ((index, work(task, setup)) for index, task in enumerate(tasks))
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(work, task, setup): index for index, task in enumerate(tasks)}
        try:
            yield from ((running[future], future.result()) for future in as_completed(running))
        finally:
            pool.shutdown(cancel_futures=True)
