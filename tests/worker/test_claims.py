"""Who goes next: order, priorities, and no more at a time than one owner may have."""

from __future__ import annotations

import threading

import pytest

from app.queue import Asked, CompletionQueue, Ticket, connect
from app.schemas import CompletionOptions
from app.settings import Settings
from worker.leases import Leases


@pytest.fixture
def queue(settings: Settings) -> CompletionQueue:
    """An empty queue, two completions of one key at a time."""
    limited = settings.model_copy(update={"max_running_per_key": 2, "max_queued": 20})
    return CompletionQueue(connect(limited, 1), limited)


@pytest.fixture
def leases(queue: CompletionQueue) -> Leases:
    """Those of a worker."""
    return Leases(queue.connection, queue, "one", 5)


def submit(queue: CompletionQueue, ids: str, owner: str = "", priority: str = "normal") -> None:
    for completion_id in ids:
        queue.submit(completion_id, CompletionOptions(model="tiny", priority=priority), Ticket(owner))


def claimed(queue: CompletionQueue) -> str:
    """All that can be claimed now, in order."""
    found = ""
    while (job := queue.line.claim()) is not None:
        found += job.id
    return found


def test_high_goes_before_normal_before_low_and_each_in_its_order(queue):
    submit(queue, "a")
    submit(queue, "bc", priority="low")
    submit(queue, "d")
    submit(queue, "ef", priority="high")
    submit(queue, "g", priority="low")
    submit(queue, "h")
    assert [queue.get(name).queue_position for name in "efadhbcg"] == list(range(1, 9))
    assert claimed(queue) == "efadhbcg"


def test_of_many_in_one_go_each_is_admitted_or_refused_by_itself(settings):
    limited = settings.model_copy(update={"max_open_per_key": 2, "max_queued": 4})
    queue = CompletionQueue(connect(limited, 1), limited)
    rush = [("a", "eve", "low"), ("b", "eve", "normal"), ("c", "eve", "high"), ("d", "", "high")]
    rush += [("a", "eve", "low"), ("e", "bob", "normal"), ("f", "", "high")]
    asked = [
        Asked(name, CompletionOptions(model="tiny", priority=priority), Ticket(owner))
        for name, owner, priority in rush
    ]
    told = [
        type(one).__name__ if isinstance(one, Exception) else (one.id, one.queue_position)
        for one in queue.submit_many(asked)
    ]
    assert told == [("a", 1), ("b", 1), "TooManyOpen", ("d", 1), ("a", 3), ("e", 3), "QueueFull"]
    assert claimed(queue) == "dbea"


def test_what_broke_off_goes_before_all(queue, leases):
    submit(queue, "ab")
    lease = leases.take(queue.line.claim())
    submit(queue, "c", priority="high")
    leases.give_back(lease, costs_a_retry=False)
    submit(queue, "d", priority="high")
    assert claimed(queue) == "acdb"


def test_an_owner_with_enough_running_lets_the_others_pass(queue, leases):
    submit(queue, "abcd", owner="one")
    submit(queue, "ef", owner="other")
    held = {job.id: leases.take(job) for job in iter(queue.line.claim, None)}
    assert "".join(held) == "abef"
    assert queue.get("c").queue_position == 1
    leases.settle(held["b"], lambda pipe: None)
    assert claimed(queue) == "c"


def test_without_keys_nobody_is_limited(queue):
    submit(queue, "abcd")
    assert claimed(queue) == "abcd"


def test_many_workers_that_claim_at_once_have_each_completion_once(queue, settings):
    names = "abcdefghijklmnop"
    submit(queue, names)
    found: list[str] = []
    workers = [CompletionQueue(connect(settings, 1), queue.settings) for _ in range(4)]
    threads = [threading.Thread(target=lambda one=one: found.append(claimed(one))) for one in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted("".join(found)) == sorted(names)
