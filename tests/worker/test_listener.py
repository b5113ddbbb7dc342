"""Leases, and completions that were in the hand of a worker which is no more."""

from __future__ import annotations

import time

import pytest
from redis import Redis

from app.queue import CompletionQueue, cancel_key, connect
from app.schemas import CompletionOptions
from app.settings import Settings
from model.completion import Progress
from worker.listener import SWEEP_LOCK, Listener
from worker.progress import Cancelled, DeadlinePassed, Interrupted, Reporter, draining

ID = "c0ffee"


@pytest.fixture
def quick(settings: Settings) -> Settings:
    """A lease of two seconds."""
    return settings.model_copy(update={"lease_s": 2})


@pytest.fixture
def queue(quick: Settings) -> CompletionQueue:
    """A queue with one completion in it."""
    queue = CompletionQueue(connect(quick, 1), quick)
    queue.submit(ID, CompletionOptions(model="tiny"))
    return queue


@pytest.fixture
def listener(quick: Settings) -> Listener:
    """A worker that does nothing by itself."""
    return Listener(connect(quick, 1), quick)


def sweep(listener: Listener) -> None:
    listener.connection.delete(SWEEP_LOCK)
    listener._sweep()


def take(queue: CompletionQueue, worker: Listener) -> None:
    """What a worker does before it starts: its death afterwards leaves the completion running."""
    job, _ = worker.queue_class.dequeue_any(
        [queue.queue], None, connection=worker.connection, serializer="json"
    )
    execution = worker.prepare_execution(job)
    worker.prepare_job_execution(job, remove_from_intermediate_queue=True)
    worker.executions.clear()
    assert execution.worker_name == worker.name


def test_a_completion_of_a_dead_worker_is_queued_again_after_the_lease(queue, listener, quick):
    take(queue, listener)
    assert queue.get(ID).status == "running"
    sweep(listener)
    assert queue.get(ID).status == "running"
    time.sleep(quick.lease_s + 1.1)
    sweep(listener)
    completion = queue.get(ID)
    assert (completion.status, completion.queue_position, completion.attempt) == ("queued", 1, 2)


def test_a_completion_taken_and_never_started_is_queued_again(queue, listener, quick):
    job_id = queue.connection.lmove(queue.queue.key, queue.queue.intermediate_queue_key)
    assert job_id == ID.encode()
    sweep(listener)
    assert queue.get(ID).queue_position is None
    time.sleep(quick.lease_s + 1.1)
    sweep(listener)
    assert queue.get(ID).queue_position == 1
    assert queue.get(ID).attempt == 1
    assert not queue.queue.intermediate_queue.get_job_ids()


def test_one_worker_sweeps_at_a_time(queue, listener):
    listener._sweep()
    assert Redis.exists(listener.connection, SWEEP_LOCK)


def test_a_completion_cancelled_between_queue_and_hand_is_left_alone(queue, listener):
    queue.connection.rpush("elsewhere", ID)
    queue.cancel(ID)
    queue.connection.rpush(queue.queue.key, ID)
    assert listener.work(burst=True, logging_level="WARNING") is True
    assert queue.get(ID).status == "cancelled"
    assert not queue.queue.intermediate_queue.get_job_ids()


def test_a_worker_counts_as_live_until_its_lease_ends(queue, listener, quick):
    assert queue.live_workers() == 0
    listener.register_birth()
    listener.heartbeat()
    assert queue.live_workers() == 1
    time.sleep(quick.lease_s + 0.1)
    assert queue.live_workers() == 0


# Progress


@pytest.fixture
def reporter(queue: CompletionQueue) -> Reporter:
    """Of the completion in the queue."""
    return Reporter(queue._fetch(ID), deadline_s=60)


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
    reporter.job.meta["warnings"] = ["kept"]
    reporter(Progress("fit", 3, 10, 0.25))
    meta = queue._fetch(ID).meta
    assert meta["warnings"] == ["kept"]
    assert (meta["phase"], meta["step"], meta["steps"], meta["residual"]) == ("fit", 3, 10, 0.25)


def test_a_cancelled_completion_ends_at_its_next_report(queue, reporter):
    queue.connection.set(cancel_key(ID), 1)
    with pytest.raises(Cancelled):
        reporter.tell("fit")


def test_a_completion_ends_at_its_deadline(queue):
    with pytest.raises(DeadlinePassed):
        Reporter(queue._fetch(ID), deadline_s=0).tell("fit")


def test_a_stopping_worker_interrupts_at_the_next_step(reporter):
    draining.set()
    try:
        with pytest.raises(Interrupted):
            reporter.tell("fit")
    finally:
        draining.clear()


def test_without_a_queue_the_completion_goes_on(reporter, settings):
    away = settings.model_copy(update={"redis_url": "unix:///nowhere/valkey.sock"})
    reporter.job.connection = connect(away, patience_s=0)
    reporter.tell("fit")
