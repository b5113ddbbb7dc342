"""What a running completion tells, and how it hears that it is time to end."""

from __future__ import annotations

import time
from threading import Event

import pytest

from app.queue import CompletionQueue, Ticket, connect
from app.schemas import CompletionOptions
from app.settings import Settings
from model.completion import Progress
from worker.leases import LeaseLost, Leases
from worker.progress import DeadlinePassed, Interrupted, Reporter

ID = "c0ffee"


@pytest.fixture
def queue(settings: Settings) -> CompletionQueue:
    """A queue with one completion in it."""
    queue = CompletionQueue(connect(settings, 1), settings)
    queue.submit(ID, CompletionOptions(model="tiny"), Ticket(warnings=["kept"]))
    return queue


@pytest.fixture
def reporter(queue: CompletionQueue) -> Reporter:
    """Of the completion, which runs."""
    leases = Leases(queue.connection, queue, "one", 5)
    return Reporter(leases.take(queue.line.claim()), leases, deadline_s=60, draining=Event())


def test_progress_is_told_five_times_a_second_at_most(queue, reporter):
    writes = 0
    start = time.perf_counter()
    for step in range(1000):
        before = reporter.next_report
        reporter(Progress("fit", step, 1000, 0.01))
        writes += reporter.next_report != before
        time.sleep(0.0005)
    assert 1 <= writes <= 1 + 5 * (time.perf_counter() - start)


def test_progress_carries_what_was_there_before(queue, reporter):
    reporter(Progress("fit", 3, 10, 0.25))
    completion = queue.get(ID)
    assert completion.warnings == ["kept"]
    assert (completion.phase, completion.step, completion.steps) == ("fit", 3, 10)
    assert completion.residual == 0.25


def test_previews_are_counted_and_told_at_once(queue, reporter):
    reporter(Progress("fit", 1, 10))
    for number in (1, 2):
        reporter.preview()
        assert queue.get(ID).preview == number


def test_a_cancelled_completion_ends_at_the_next_look(queue, reporter):
    reporter.tell("fit")
    queue.cancel(ID)
    time.sleep(0.06)
    with pytest.raises(LeaseLost):
        reporter.tell("fit")


def test_a_completion_ends_at_its_deadline(reporter):
    with pytest.raises(DeadlinePassed):
        Reporter(reporter.lease, reporter.leases, 0, Event()).tell("fit")


def test_a_stopping_worker_interrupts_at_the_next_step(reporter):
    reporter.draining.set()
    with pytest.raises(Interrupted):
        reporter.tell("fit")


def test_without_a_queue_the_completion_goes_on(reporter, settings):
    away = settings.model_copy(update={"redis_url": "unix:///nowhere/valkey.sock"})
    reporter.leases.connection = connect(away, patience_s=0)
    reporter.tell("fit")
