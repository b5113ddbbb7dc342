"""A worker's loop: several completions at a time, and every way in which one may leave it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from threading import Timer
from typing import Any

import pytest

from app.queue import CompletionQueue, connect
from app.schemas import CompletionOptions
from app.settings import Settings
from worker import tasks
from worker.__main__ import slots_on
from worker.listener import Listener
from worker.progress import Reporter

Task = Callable[[str, dict[str, Any], Reporter], Iterator[None]]
DONE = {"status": "succeeded", "report": {"faces": 4}}


@pytest.fixture
def queue(settings: Settings) -> CompletionQueue:
    """An empty queue."""
    return CompletionQueue(connect(settings, 1), settings)


pytestmark = pytest.mark.usefixtures("own_signals")


@pytest.fixture
def listener(settings: Settings) -> Listener:
    """A worker of three slots."""
    return Listener(connect(settings, 1), settings, slots=3)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every task takes five turns, and notes its completion's id at each."""
    seen: list[str] = []

    def task(completion_id: str, options: dict[str, Any], reporter: Reporter) -> Iterator[None]:
        for step in range(5):
            seen.append(completion_id)
            reporter.tell("fit", step, 5)
            yield None
        return DONE

    monkeypatch.setattr(tasks, "complete_scan", task)
    return seen


def submit(queue: CompletionQueue, *ids: str) -> None:
    for completion_id in ids:
        queue.submit(completion_id, CompletionOptions(model="tiny"))


def take_in(listener: Listener, count: int) -> None:
    """So many, without a turn in between."""
    for _ in range(count):
        listener._has_work(burst=True)


def test_completions_take_turns_and_the_next_joins_as_soon_as_one_ends(queue, listener, seen):
    submit(queue, "a", "b", "c", "d")
    listener.listen(burst=True)
    turns = ["a", "ab", "abc", "abc", "abc", "bc", "cd", "d", "d", "d", "d"]  # one joins at a time
    assert "".join(seen) == "".join(turns)
    assert {queue.get(name).status for name in "abcd"} == {"succeeded"}
    assert not queue.queue.started_job_registry.get_job_ids(cleanup=False)


def test_workers_of_a_gpu_share_its_slots_and_each_can_overlap_two():
    slots = [slots_on("cuda", Settings(workers_per_device=workers)) for workers in (1, 4, 32)]
    assert slots == [16, 4, 2]
    assert slots_on("cpu", Settings(workers_per_device=4)) == 1


def test_an_idle_worker_finds_something_left_to_take(queue, listener, seen, settings):
    other = Listener(connect(settings, 1), settings, slots=3)
    submit(queue, "a", "b", "c")
    for _ in range(2):
        for one in (listener, other):
            one._has_work(burst=True)
    assert [list(one.in_hand) for one in (listener, other)] == [["a", "c"], ["b"]]
    other.batch.close()


def test_one_that_breaks_is_tried_again_and_then_fails_alone(queue, listener, seen, settings, monkeypatch):
    sound, tried = tasks.complete_scan, 0

    def task(completion_id: str, options: dict[str, Any], reporter: Reporter) -> Iterator[None]:
        nonlocal tried
        if completion_id == "b":
            tried += 1
            raise LookupError("a defect")
        return (yield from sound(completion_id, options, reporter))

    monkeypatch.setattr(tasks, "complete_scan", task)
    submit(queue, "a", "b", "c")
    listener.listen(burst=True)
    assert {queue.get(name).status for name in "ac"} == {"succeeded"}
    broken = queue.get("b")
    assert (broken.status, broken.error.code, tried) == ("failed", "internal", 1 + settings.retries)
    assert broken.ended_at is not None


def test_one_whose_worker_broke_runs_alone_and_takes_no_others_down(queue, listener, seen):
    """Until all before it have ended nothing else is taken in, and nothing beside it."""
    submit(queue, "a", "b", "c")
    broken = listener.leases.take(queue.line.claim())
    submit(queue, "d")
    take_in(listener, 3)  # b, c, d
    listener.leases.give_back(broken, costs_a_retry=True)
    submit(queue, "e")
    while listener._has_work(burst=True):
        listener._turn()
    assert "".join(seen) == "bcd" * 5 + "a" * 5 + "e" * 5
    assert [queue.get(name).attempt for name in "abe"] == [2, 1, 1]


def test_what_is_cancelled_leaves_the_batch_and_the_others_go_on(queue, listener, seen):
    submit(queue, "a", "b")
    listener._has_work(burst=True)
    listener._turn()
    cancelled = queue.cancel("a")
    assert cancelled.status == "cancelled" and cancelled.ended_at is not None
    time.sleep(0.06)
    while listener._has_work(burst=True):
        listener._turn()
    assert seen.count("a") == 1 and seen.count("b") == 5
    assert [queue.get(name).status for name in "ab"] == ["cancelled", "succeeded"]


def test_a_cancelled_completion_stays_cancelled_even_if_its_work_is_done(queue, listener, monkeypatch):
    def task(completion_id: str, options: dict[str, Any], reporter: Reporter) -> Iterator[None]:
        yield None
        queue.cancel(completion_id)
        return DONE

    monkeypatch.setattr(tasks, "complete_scan", task)
    submit(queue, "a")
    listener.listen(burst=True)
    assert queue.get("a").status == "cancelled"


def test_a_completion_cancelled_between_queue_and_hand_is_left_alone(queue, listener, seen):
    submit(queue, "a")
    job = queue.line.claim()
    queue.cancel("a")
    assert not listener._begun(job)
    assert not listener.in_hand and not seen
    assert not queue.queue.intermediate_queue.get_job_ids()


def test_a_stopping_worker_gives_back_what_it_cannot_finish(queue, settings, monkeypatch):
    def endless(completion_id: str, options: dict[str, Any], reporter: Reporter) -> Iterator[None]:
        while True:
            time.sleep(0.01)
            yield None

    monkeypatch.setattr(tasks, "complete_scan", endless)
    submit(queue, "a", "b", "c")
    hasty = settings.model_copy(update={"drain_s": 0.1})
    listener = Listener(connect(hasty, 1), hasty, slots=2)
    Timer(0.5, signal.raise_signal, [signal.SIGTERM]).start()
    start = time.monotonic()
    listener.listen()
    assert time.monotonic() - start < 3
    for position, name in enumerate("abc", start=1):
        completion = queue.get(name)
        assert (completion.status, completion.queue_position, completion.attempt) == ("queued", position, 1)


def test_a_stopping_worker_finishes_what_is_soon_done(queue, listener, seen):
    submit(queue, "a", "b", "c", "d")
    take_in(listener, 3)
    listener.request_stop(signal.SIGTERM, None)
    while listener._has_work(burst=True):
        listener._turn()
    assert [queue.get(name).status for name in "abcd"] == ["succeeded"] * 3 + ["queued"]


def test_a_worker_counts_as_live_until_its_lease_ends(settings, queue):
    quick = settings.model_copy(update={"lease_s": 2})
    listener = Listener(connect(quick, 1), quick)
    assert len(queue.workers.live()) == 0
    listener.register_birth()
    listener.heartbeat(quick.lease_s)
    assert len(queue.workers.live()) == 1
    time.sleep(quick.lease_s + 0.1)
    assert len(queue.workers.live()) == 0


def test_an_idle_worker_begins_within_a_moment(queue, listener, seen):
    Timer(0.6, submit, [queue, "a"]).start()
    Timer(1.2, signal.raise_signal, [signal.SIGTERM]).start()
    listener.listen()
    done = queue.get("a")
    assert (done.started_at - done.created_at).total_seconds() < 0.1
