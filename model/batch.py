"""Work that pauses at every step of a solver, so that many pieces of it can share the device.

Such work is a generator. It yields the solver whose next step it needs, a call that needs no step (`aside`),
or None where it only lets others have a turn. `alone` runs one piece to its end; a `Batch` runs many, takes
the steps of all as one, and has the calls made in threads meanwhile. What a piece of work is for is not known
here: neither scans nor queues.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import torch

from model.latent import LevenbergMarquardt

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
Owner = TypeVar("Owner")
P = ParamSpec("P")

THREADS = 2
"""Calls at a time at most. Much of them is Python's, so more would not end sooner, but keep its lock from the
steps, which all wait for; and each may need as much of the device's memory as a whole surface does."""

SWITCH_S = 1e-4
"""How long a call may keep Python's lock from a step that asks for it, which is at every launch. Python's own
5 ms let a step of 20 launches take half a second beside two threads that compute (docs/log.md)."""

PATIENCE_S = 0.05
"""How long a turn waits where there are only calls to wait for."""


class Aside:
    """A call that needs no step of a solver, and how it ends."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.ended: Future[Any] = Future()

    def make(self) -> None:
        """Make it here and now. What it raises belongs to the work that asked for it."""
        try:
            self.ended.set_result(self.call())
        except Exception as error:
            self.ended.set_exception(error)

    def make_in(self, pool: ThreadPoolExecutor) -> None:
        """Have it made by a thread."""
        self.ended = pool.submit(self.call)


Steps = Generator[LevenbergMarquardt | Aside | None, None, T]
"""Work with the result T that yields the solver to step, or the call to make, before it goes on, or None."""


def aside(function: Callable[P, T], *args: P.args, **keywords: P.kwargs) -> Steps[T]:
    """Work that is one call of a function, made while others take their steps."""
    call = Aside(partial(function, *args, **keywords))
    yield call
    result: T = call.ended.result()
    return result


def alone(work: Steps[T]) -> T:
    """Run one piece of work to its end, and return its result; what it raises goes through."""
    try:
        while True:
            match next(work):
                case Aside() as call:
                    call.make()
                case LevenbergMarquardt() as solver:
                    solver.step()
    except StopIteration as end:
        result: T = end.value
        return result


def to_the_end(
    method: Callable[Concatenate[Owner, P], Steps[T]],
) -> Callable[Concatenate[Owner, P], T]:
    """The plain twin of a method that pauses: the same parameters, and it returns when all is done."""

    @wraps(method)
    def whole(self: Owner, /, *args: P.args, **keywords: P.kwargs) -> T:
        return alone(method(self, *args, **keywords))

    return whole


@dataclass(frozen=True)
class Ended(Generic[K, T]):
    """A piece of work that is over: with a result, or with what it raised."""

    key: K
    result: T | None = None
    error: Exception | None = None


class Batch(Generic[K, T]):
    """Pieces of work that run together. They come and go at any time; one that breaks goes alone."""

    def __init__(self, threads: int = 1) -> None:
        """As many calls as there are `threads`, `THREADS` at most, are made beside the steps at a time."""
        self._works: dict[K, Steps[T]] = {}
        self._waiting: dict[K, LevenbergMarquardt] = {}
        self._calls: dict[K, Aside] = {}
        threads = max(1, min(threads, THREADS, torch.get_num_threads()))
        share = max(1, torch.get_num_threads() // threads)
        self._pool = ThreadPoolExecutor(threads, "aside", _begin_beside, (share,))

    def __len__(self) -> int:
        return len(self._works)

    def add(self, key: K, work: Steps[T]) -> None:
        """Take one in; it begins with the next turn."""
        self._works[key] = work

    def drop(self, key: K, why: Exception) -> Ended[K, T] | None:
        """Raise `why` in a piece of work where it pauses. It may end with a result all the same, or go on.

        A call that is being made goes on to its end, but nothing waits for it any more.
        """
        return self._go_on(key, why)

    def turn(self) -> list[Ended[K, T]]:
        """Take the step that each waits for, let each go on to its next pause, and say which are over.

        Those whose call is still being made have no turn.
        """
        errors = step_together(self._waiting)
        self._waiting.clear()
        if self._calls.keys() == self._works.keys():
            calls = [call.ended for call in self._calls.values()]
            wait(calls, timeout=PATIENCE_S, return_when=FIRST_COMPLETED)
        called = {key for key, call in self._calls.items() if not call.ended.done()}
        ended = [self._go_on(key, errors.get(key)) for key in list(self._works) if key not in called]
        return [one for one in ended if one is not None]

    def close(self) -> None:
        """Make no further calls, and wait for those that are being made."""
        self._pool.shutdown(cancel_futures=True)

    def _go_on(self, key: K, error: Exception | None) -> Ended[K, T] | None:
        work = self._works[key]
        self._waiting.pop(key, None)
        if (call := self._calls.pop(key, None)) is not None:
            call.ended.cancel()  # if it has not begun
        try:
            wanted = next(work) if error is None else work.throw(error)
        except StopIteration as end:
            del self._works[key]
            return Ended(key, result=end.value)
        except Exception as broken:
            del self._works[key]
            return Ended(key, error=broken)
        if isinstance(wanted, Aside):
            self._calls[key] = wanted
            wanted.make_in(self._pool)
        elif wanted is not None:
            self._waiting[key] = wanted
        return None


def _begin_beside(share: int) -> None:
    """A thread begins that makes calls beside the steps, on its share of the cores."""
    torch.set_num_threads(share)
    sys.setswitchinterval(SWITCH_S)


def step_together(solvers: dict[K, LevenbergMarquardt]) -> dict[K, Exception]:
    """One step of each solver. Those that look at equally many rows of the same fields go as one batch.

    Returns what went wrong, for those whose step could not be taken.
    """
    groups: dict[tuple[object, ...], dict[K, LevenbergMarquardt]] = {}
    for key, solver in solvers.items():
        groups.setdefault(_alike(solver), {})[key] = solver
    errors: dict[K, Exception] = {}
    for group in groups.values():
        for part in _in_parts(group):
            errors |= _step_as_one(part)
    return errors


def _alike(solver: LevenbergMarquardt) -> tuple[object, ...]:
    """What solvers must have in common to be one: rows of other counts would have to be padded."""
    rows = solver.rows
    return (
        id(solver.fields),
        replace(solver.settings, steps=0),
        tuple(rows.weights.shape),
        rows.points.dtype,
    )


def _in_parts(group: dict[K, LevenbergMarquardt]) -> Iterator[dict[K, LevenbergMarquardt]]:
    """Where steps are replayed, 1, 2, 4 or so at a time: of few sizes there soon are recordings."""
    solvers = list(group.items())
    most = solvers[0][1].replayed_together
    while solvers:
        size = 1 << min(most, len(solvers)).bit_length() - 1 if most else len(solvers)
        yield dict(solvers[:size])
        solvers = solvers[size:]


def _step_as_one(group: dict[K, LevenbergMarquardt]) -> dict[K, Exception]:
    """Halves what does not fit into memory, or breaks, until it does fit, or the one that breaks is found."""
    try:
        _step(list(group.values()))
        return {}
    except Exception as error:
        if len(group) == 1:
            return dict.fromkeys(group, error)
        if out_of_memory(error) and torch.cuda.is_available():
            torch.cuda.empty_cache()
    items, half = list(group.items()), len(group) // 2
    return _step_as_one(dict(items[:half])) | _step_as_one(dict(items[half:]))


def _step(solvers: Iterable[LevenbergMarquardt]) -> None:
    """No solver has changed if this raises."""
    first, *others = solvers
    if not others:
        first.step()
        return
    together = LevenbergMarquardt.joined([first, *others])
    together.step()
    together.part_into([first, *others])


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the device or beside it."""
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or "can't allocate memory" in str(error)  # a plain RuntimeError of torch's on CPUs
