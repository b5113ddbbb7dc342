"""A worker that never forks, keeps its models loaded, and does several completions as one batch.

RQ gives the records, the registration of workers and the retries. The loop is our own: between two steps of
what is in hand the worker takes in more, drops what was cancelled, and settles what has ended.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from threading import Event, Thread, Timer
from types import FrameType
from typing import Any

import torch
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError
from rq import SimpleWorker, worker_registration
from rq.job import Job, JobStatus
from rq.job_lifecycle import format_exc_info
from rq.utils import now

from app.queue import QUEUE, SERIALIZER, CompletionQueue, connect
from app.settings import Settings
from model.batch import Batch, Ended
from worker.leases import Lease, LeaseLost, Leases
from worker.progress import Interrupted, Reporter

log = logging.getLogger(__name__)

IDLE_S = 1.0
"""How long an idle worker waits for work before it looks whether someone else's limit has become free."""

HANGS_S = 60.0
"""Seconds beyond a deadline without any sign of a completion until the whole process is given up."""


@dataclass
class Work:
    """One completion in hand."""

    lease: Lease
    reporter: Reporter

    @property
    def job(self) -> Job:
        """Its record."""
        return self.lease.job


class Listener(SimpleWorker):
    """Takes completions from the queue, up to `slots` at a time, until it is asked to stop."""

    def __init__(self, connection: Redis, settings: Settings, slots: int = 1) -> None:
        super().__init__([QUEUE], connection=connection, serializer=SERIALIZER)
        self.settings, self.slots = settings, slots
        # What is asked at every step must not wait for a queue that is away.
        hasty = connect(settings, patience_s=0)
        self.queue = CompletionQueue(hasty, settings)
        lasting = CompletionQueue(connection, settings)
        self.leases = Leases(connection, lasting, self.name, settings.lease_s)
        self.glances = Leases(hasty, self.queue, self.name, settings.lease_s)
        self.batch: Batch[str, dict[str, Any]] = Batch(threads=slots)
        self.in_hand: dict[str, Work] = {}
        self.turned = time.monotonic()
        self.draining, self.ended = Event(), Event()

    def listen(self, burst: bool = False) -> None:
        """Register, which says that the models are loaded, and work until SIGTERM or SIGINT.

        In a burst it ends when there is nothing to do any more.
        """
        self.bootstrap("WARNING")
        self._install_signal_handlers()  # type: ignore[no-untyped-call]
        Thread(target=self._keep_leases, name="leases", daemon=True).start()
        try:
            while self._has_work(burst):
                self._turn()
        finally:
            self.batch.close()
            self.ended.set()
            self.teardown()  # type: ignore[no-untyped-call]

    # One turn after the other

    def _has_work(self, burst: bool) -> bool:
        """Take in what there is room for; wait where there is nothing. False once it is time to go."""
        self._look()
        while not self._stop_requested:
            try:
                self._take_in()
                if self.in_hand or burst:
                    break
                self.queue.line.wait(IDLE_S)
            except RedisError as error:
                if self.in_hand:
                    break
                log.warning("the queue cannot be reached: %s", error)
                self.ended.wait(IDLE_S / 2)
        return bool(self.in_hand)

    def _look(self) -> None:
        """Drop what was cancelled or is too late, and everything when it is time to go."""
        # The last one first: what is given back goes to the front of the queue, and so keeps its order.
        for completion_id, work in reversed(list(self.in_hand.items())):
            try:
                work.reporter.look()
            except Exception as why:
                self._end(self.batch.drop(completion_id, why))

    def _take_in(self) -> None:
        """Begin one more if there is room. The next turn is soon; meanwhile an idle worker may take one."""
        while len(self.in_hand) < self.slots and not self._stop_requested:
            if any(self._is_suspect(work.job) for work in self.in_hand.values()):
                return
            if (job := self.queue.line.claim()) is None:
                return
            if self.in_hand and self._is_suspect(job):
                self.queue.line.unclaim(job)
                return
            if self._begun(job):
                return

    def _is_suspect(self, job: Job) -> bool:
        """Whether a worker broke with it: it may be why, and takes no others down if it is alone."""
        return (job.retries_left or 0) < self.settings.retries

    def _begun(self, job: Job) -> bool:
        """Whether it could begin: not if it was cancelled before."""
        if (lease := self.leases.take(job)) is None:
            log.info("completion %s was cancelled before it began", job.id)
            return False
        work = Work(lease, Reporter(lease, self.glances, self.settings.deadline_s, self.draining))
        self.in_hand[job.id] = work
        self.batch.add(job.id, job.func(*job.args, work.reporter))
        return True

    def _turn(self) -> None:
        """One step of everything in hand."""
        self.turned = time.monotonic()
        for ended in self.batch.turn():
            self._end(ended)

    # How a completion ends

    def _end(self, ended: Ended[str, dict[str, Any]] | None) -> None:
        if ended is None:
            return
        work = self.in_hand.pop(ended.key)
        try:
            if not self._settled(work, ended):
                log.warning("completion %s was cancelled, or taken over by another worker", ended.key)
        except RedisError as error:
            log.error("how completion %s ended cannot be told, it will be done again: %s", ended.key, error)

    def _settled(self, work: Work, ended: Ended[str, dict[str, Any]]) -> bool:
        """Write how it ended. False if it is not ours any more."""
        if ended.error is None:
            return self.leases.settle(work.lease, lambda pipe: self._succeed(work.job, ended.result, pipe))
        if isinstance(ended.error, LeaseLost):
            return False
        if isinstance(ended.error, Interrupted):
            log.warning("completion %s given back to the queue", ended.key)
            return self.leases.give_back(work.lease, costs_a_retry=False)
        log.error("completion %s broke", ended.key, exc_info=ended.error)
        if work.job.retries_left:
            return self.leases.give_back(work.lease, costs_a_retry=True)
        return self.leases.settle(work.lease, lambda pipe: self._fail(work.job, ended.error, pipe))

    def _succeed(self, job: Job, outcome: dict[str, Any] | None, pipe: Pipeline) -> None:
        job.ended_at, job._result = now(), outcome
        ttl = job.get_result_ttl(self.default_result_ttl)
        job._handle_success(ttl, pipeline=pipe, worker_name=self.name)
        job.cleanup(ttl, pipeline=pipe, remove_from_queue=False)

    def _fail(self, job: Job, error: Exception | None, pipe: Pipeline) -> None:
        job.ended_at = now()
        job.set_status(JobStatus.FAILED, pipeline=pipe)
        told = format_exc_info((type(error), error, error.__traceback__ if error else None))
        job._handle_failure(told, pipeline=pipe, worker_name=self.name)

    # The thread that says that we live, and looks who does not

    def _keep_leases(self) -> None:
        while True:  # the first time at once: this worker may have been started in place of a dead one
            try:
                self._renew()
                self.leases.sweep()
                worker_registration.clean_worker_registry(self.queues[0])
            except RedisError as error:
                log.warning("the queue cannot be reached: %s", error)
            except Exception:
                log.exception("the lease thread goes on after an error")
            self._give_up_if_hanging()
            if self.ended.wait(self.settings.lease_s / 4):
                return

    def _renew(self) -> None:
        self.leases.renew([work.lease for work in list(self.in_hand.values())])
        self.heartbeat(self.settings.lease_s)
        worker_registration.register(self)
        self.queue.workers.tell_facts(self.name, self._facts(), ttl_s=2 * self.settings.lease_s)

    def _facts(self) -> dict[str, float]:
        """What the metrics tell of this worker."""
        facts = {"batch_size": float(len(self.in_hand))}
        if torch.cuda.is_available():
            facts["gpu_memory_bytes"] = float(torch.cuda.memory_reserved())
        return facts

    def _give_up_if_hanging(self) -> None:
        """A completion that does not even come to its deadline can only be ended with the process."""
        if self.in_hand and time.monotonic() - self.turned > self.settings.deadline_s + HANGS_S:
            log.critical("nothing moves any more: %s", ", ".join(self.in_hand))
            os._exit(1)

    # Stopping

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """Take in nothing more; finish what is in hand if that is soon, else give it back."""
        log.info("stopping: %d completions in hand", len(self.in_hand))
        self._stop_requested = True
        timer = Timer(self.settings.drain_s, self.draining.set)
        timer.daemon = True
        timer.start()

    def subscribe(self) -> None:
        """No commands by publish/subscribe: cancellation goes by lease, stopping by signal."""
