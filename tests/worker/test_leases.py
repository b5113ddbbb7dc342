"""Leases, and completions that were in the hand of a worker which is no more."""

from __future__ import annotations

import time

import pytest
from redis import Redis

from app.queue import CompletionQueue, connect
from app.schemas import CompletionOptions
from app.settings import Settings
from worker.leases import SWEEP_LOCK, Lease, Leases

ID = "c0ffee"
LEASE_S = 0.6


@pytest.fixture
def queue(settings: Settings) -> CompletionQueue:
    """A queue with one completion in it."""
    queue = CompletionQueue(connect(settings, 1), settings)
    queue.submit(ID, CompletionOptions(model="tiny"))
    return queue


@pytest.fixture
def leases(queue: CompletionQueue) -> Leases:
    """Those of a worker."""
    return Leases(queue.connection, queue, "one", LEASE_S)


@pytest.fixture
def others(queue: CompletionQueue) -> Leases:
    """Those of another worker."""
    return Leases(queue.connection, queue, "other", LEASE_S)


def sweep(leases: Leases) -> None:
    leases.connection.delete(SWEEP_LOCK)
    leases.sweep()


def take(queue: CompletionQueue, leases: Leases) -> Lease:
    """What a worker does before it starts: its death afterwards leaves the completion running."""
    lease = leases.take(queue.line.claim())
    assert lease is not None and leases.holds(lease)
    return lease


def test_a_completion_of_a_dead_worker_is_queued_again_after_the_lease(queue, leases, others):
    lease = take(queue, leases)
    sweep(others)
    assert queue.get(ID).status == "running"
    time.sleep(LEASE_S + 0.05)
    sweep(others)
    completion = queue.get(ID)
    assert (completion.status, completion.queue_position, completion.attempt) == ("queued", 1, 2)
    assert not leases.holds(lease)


def test_a_lease_that_is_renewed_holds(queue, leases, others):
    lease = take(queue, leases)
    for _ in range(3):
        time.sleep(0.6 * LEASE_S)
        leases.renew([lease])
        sweep(others)
    assert leases.holds(lease) and queue.get(ID).status == "running"


def test_a_lost_lease_does_not_come_back_by_being_renewed(queue, leases):
    lease = take(queue, leases)
    queue.cancel(ID)
    leases.renew([lease])
    assert not leases.holds(lease)


def test_whoever_lost_the_lease_writes_no_more(queue, leases, others):
    late = take(queue, leases)
    time.sleep(LEASE_S + 0.05)
    sweep(others)
    now = take(queue, others)
    assert not leases.write(late, {"phase": "export"})
    assert not leases.settle(late, lambda pipe: pipe.set("deepsdf:written", 1))
    assert not leases.give_back(late, costs_a_retry=False)
    assert not queue.connection.exists("deepsdf:written")
    assert queue.get(ID).phase is None and others.holds(now)
    assert others.write(now, {"phase": "fit"}) and queue.get(ID).phase == "fit"


def test_after_all_retries_a_completion_that_kills_its_workers_fails(queue, leases, others, settings):
    for _ in range(1 + settings.retries):
        take(queue, leases)
        time.sleep(LEASE_S + 0.05)
        sweep(others)
    completion = queue.get(ID)
    assert (completion.status, completion.error.code) == ("failed", "internal")
    assert completion.ended_at is not None and queue.line.claim() is None


def test_a_completion_claimed_and_never_begun_is_queued_again(queue, leases):
    assert queue.line.claim().id == ID
    sweep(leases)
    assert queue.get(ID).queue_position is None
    time.sleep(1.1)  # of times to live, whole seconds are told
    sweep(leases)
    assert (queue.get(ID).queue_position, queue.get(ID).attempt) == (1, 1)
    assert not queue.queue.intermediate_queue.get_job_ids()


def test_one_worker_sweeps_at_a_time(leases):
    leases.sweep()
    assert Redis.exists(leases.connection, SWEEP_LOCK)


def test_a_clock_that_is_set_forward_takes_no_work_from_the_living(queue, leases, others, monkeypatch):
    lease = take(queue, leases)
    sweep(others)
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + 3600)
    sweep(others)
    assert leases.holds(lease)
    leases.renew([lease])
    time.sleep(LEASE_S + 0.05)
    sweep(others)  # not renewed again: now it is lost
    assert not leases.holds(lease)


def test_a_clock_that_is_set_back_does_not_make_leases_longer(queue, leases, others, monkeypatch):
    lease = take(queue, leases)
    sweep(others)
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() - 3600)
    sweep(others)
    time.sleep(LEASE_S + 0.1)
    sweep(others)
    assert not leases.holds(lease) and queue.get(ID).status == "queued"
