"""Leases: which worker has which completion, for how long, and what happens when it is heard of no more.

A lease is a member of RQ's registry of what runs, `<completion>:<token>`, whose score is the time at which it
ends. Who holds it may write the completion's record. It is lost by being cancelled, and by not being renewed
in time; then another worker may have the completion, and whatever the first one still does is dropped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from redis import Redis
from redis.client import Pipeline
from rq.job import Job, JobStatus
from rq.job_lifecycle import record_job_failure
from rq.utils import now

from app.queue import WAKE, CompletionQueue, watching

log = logging.getLogger(__name__)

SWEEP_LOCK = "deepsdf:sweep"

WRITE = """
-- The record (KEYS[1]) takes what a worker tells (ARGV[2]) while its lease (ARGV[1]) is among KEYS[2].
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'meta', ARGV[2])
return 1
"""


class LeaseLost(Exception):
    """The completion was cancelled or deleted, or another worker has it."""


@dataclass(frozen=True)
class Lease:
    """One worker's hold of one completion."""

    job: Job
    name: str


class Leases:
    """Leases of the completions in one queue."""

    def __init__(self, connection: Redis, queue: CompletionQueue, worker: str, lease_s: float) -> None:
        self.connection, self.queue = connection, queue.queue
        self.worker, self.lease_s = worker, lease_s
        self.key = queue.queue.started_job_registry.key
        self._clock = time.time() - time.monotonic()
        self._quiet_until = 0.0

    def take(self, job: Job) -> Lease | None:
        """Begin a claimed completion; None where it was cancelled meanwhile, or is someone else's."""
        lease = Lease(job, f"{job.id}:{uuid4().hex}")
        intermediate = self.queue.intermediate_queue_key

        def begin(pipe: Pipeline) -> Lease | None:
            if pipe.hget(job.key, "status") != JobStatus.QUEUED.value.encode():
                pipe.multi()
                pipe.lrem(intermediate, 1, job.id)
                pipe.execute()
                return None
            pipe.multi()
            job.prepare_for_execution(self.worker, pipe)
            pipe.persist(job.key)
            pipe.zadd(self.key, {lease.name: time.time() + self.lease_s})
            pipe.lrem(intermediate, 1, job.id)
            pipe.execute()
            return lease

        return watching(self.connection, begin, job.key)

    def renew(self, leases: Iterable[Lease]) -> None:
        """From now on they hold for the whole time again, those that were not lost."""
        ends = time.time() + self.lease_s
        if names := {lease.name: ends for lease in leases}:
            self.connection.zadd(self.key, names, xx=True)

    def holds(self, lease: Lease) -> bool:
        """Whether it is still ours."""
        return self.connection.zscore(self.key, lease.name) is not None

    def write(self, lease: Lease, meta: dict[str, Any]) -> bool:
        """Put what a worker tells into the record of a completion; False if it is not ours any more."""
        told = self.queue.serializer.dumps(meta)
        return bool(self.connection.eval(WRITE, 2, lease.job.key, self.key, lease.name, told))

    def settle(self, lease: Lease, write: Callable[[Pipeline], None]) -> bool:
        """Give the lease up and write what became of the completion, both or neither.

        False if it was not ours any more: then nothing is written.
        """

        def end(pipe: Pipeline) -> bool:
            if pipe.zscore(self.key, lease.name) is None:
                return False
            pipe.multi()
            pipe.zrem(self.key, lease.name)
            write(pipe)
            pipe.execute()
            return True

        return watching(self.connection, end, self.key)

    def give_back(self, lease: Lease, *, costs_a_retry: bool) -> bool:
        """Let another worker begin it anew, before all others; False if it was not ours any more."""
        left = lease.job.retries_left or 0

        def requeue(pipe: Pipeline) -> None:
            lease.job.retries_left = left if costs_a_retry else left + 1
            self._requeue(lease.job, pipe)

        return self.settle(lease, requeue)

    # The completions of those who are heard of no more

    def sweep(self) -> None:
        """Queue again what a killed worker had in hand; one worker at a time does this."""
        if not self.connection.set(SWEEP_LOCK, self.worker, nx=True, px=int(self.lease_s * 250)):
            return
        if self._clock_was_set():
            log.warning("the clock was set: leases are left alone until all are renewed")
            self._quiet_until = time.monotonic() + self.lease_s
        latest = time.time() + self.lease_s
        held: Any = self.connection.zrange(self.key, 0, -1, withscores=True)
        for name, ends in held:
            if ends > latest + 1:  # written before the clock was set back: it would hold for too long
                self.connection.zadd(self.key, {name: latest}, xx=True, lt=True)
            elif ends < time.time() and time.monotonic() > self._quiet_until:
                self._take_away(name.decode())
        self._requeue_stuck()

    def _clock_was_set(self) -> bool:
        before, self._clock = self._clock, time.time() - time.monotonic()
        return abs(self._clock - before) > 1

    def _take_away(self, name: str) -> None:
        completion_id = name.partition(":")[0]
        job_key = Job.key_for(completion_id)

        def retry(pipe: Pipeline) -> None:
            ends = pipe.zscore(self.key, name)
            if ends is None or ends > time.time():
                return  # renewed or given up meanwhile
            job = self.queue.fetch_job(completion_id)
            pipe.multi()
            pipe.zrem(self.key, name)
            if job is not None and job.get_status(refresh=False) is JobStatus.STARTED:
                log.warning("completion %s was left behind by a worker", completion_id)
                self._requeue(job, pipe) if job.retries_left else self._fail(job, pipe)
            pipe.execute()

        watching(self.connection, retry, self.key, job_key)

    def _requeue_stuck(self) -> None:
        """A worker killed between claiming a completion and its lease leaves it in the intermediate list."""
        waiting = self.queue.intermediate_queue
        for completion_id in waiting.get_job_ids():
            marker = f"{waiting.get_first_seen_key(completion_id)}:lease"
            seen = self.connection.set(marker, 1, nx=True, ex=int(10 * self.lease_s))
            if seen or self.connection.ttl(marker) > 9 * self.lease_s:
                continue
            job = self.queue.fetch_job(completion_id)
            with self.connection.pipeline() as pipe:
                pipe.lrem(waiting.key, 1, completion_id)
                pipe.delete(marker)
                if job is not None and job.get_status() is JobStatus.QUEUED:
                    self.queue.push_job_id(completion_id, pipeline=pipe, at_front=True)
                    pipe.rpush(WAKE, completion_id)
                pipe.execute()

    def _requeue(self, job: Job, pipe: Pipeline) -> None:
        job.retry(self.queue, pipe)
        pipe.rpush(WAKE, job.id)

    def _fail(self, job: Job, pipe: Pipeline) -> None:
        job.ended_at = now()
        record_job_failure(job, "its workers were lost", pipe)
