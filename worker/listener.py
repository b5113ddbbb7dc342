"""An RQ worker that never forks, keeps its models loaded, and holds its work by a short lease.

RQ's SimpleWorker sends no heartbeat while it works, so a killed one is noticed only after the job's whole
timeout. Ours has a thread that renews a lease of seconds, and gives away the work of those who stopped.
"""

from __future__ import annotations

import logging
from threading import Event, Thread, Timer
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, SimpleWorker, worker_registration
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.registry import StartedJobRegistry

from app.queue import QUEUE, SERIALIZER
from app.settings import Settings
from worker.progress import Interrupted, draining

log = logging.getLogger(__name__)

SWEEP_LOCK = "deepsdf:sweep"


class Listener(SimpleWorker):
    """Takes one completion after the other, until it is asked to stop."""

    max_connection_wait_time = 2.0

    def __init__(self, connection: Redis, settings: Settings) -> None:
        # RQ waits worker_ttl - 15 seconds for work before it looks around.
        super().__init__([QUEUE], connection=connection, serializer=SERIALIZER, worker_ttl=20)
        self.settings = settings
        self.log_result_lifespan = False
        self.ended = Event()

    def listen(self) -> None:
        """Register, which says that the models are loaded, and work until SIGTERM or SIGINT."""
        Thread(target=self._keep_lease, name="lease", daemon=True).start()
        try:
            self.work(logging_level="WARNING")
        finally:
            self.ended.set()

    # The lease

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Every heartbeat of RQ's promises no more than the lease."""
        super().heartbeat(self.settings.lease_s, pipeline)

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        """The same for the job in hand."""
        return self.settings.lease_s

    def _keep_lease(self) -> None:
        while not self.ended.wait(self.settings.lease_s / 4):
            try:
                self._renew()
                self._sweep()
            except RedisError as error:
                log.warning("the queue cannot be reached: %s", error)
            except Exception:
                log.exception("the lease thread goes on after an error")

    def _renew(self) -> None:
        if self.birth_date is None:
            return  # not registered yet
        for execution in list(self.executions.values()):
            self.maintain_heartbeats(execution.job, execution)
        self.heartbeat()
        worker_registration.register(self)

    # The work of those who stopped

    def run_maintenance_tasks(self) -> None:
        """Replaced by the sweep: RQ's own takes a lock that a killed worker holds for 15 minutes."""

    def _sweep(self) -> None:
        """Queue again what a killed worker had in hand; one worker at a time does this."""
        if not self.connection.set(SWEEP_LOCK, self.name, nx=True, px=self.settings.lease_s * 250):
            return
        queue = self.queues[0]
        queue.started_job_registry.cleanup()
        self._requeue_stuck(queue)
        worker_registration.clean_worker_registry(queue)

    def _requeue_stuck(self, queue: Queue) -> None:
        """A worker killed between taking a completion and starting it leaves it in RQ's intermediate list."""
        waiting = queue.intermediate_queue
        for completion_id in waiting.get_job_ids():
            marker = f"{waiting.get_first_seen_key(completion_id)}:lease"
            seen = self.connection.set(marker, 1, nx=True, ex=10 * self.settings.lease_s)
            if seen or self.connection.ttl(marker) > 9 * self.settings.lease_s:
                continue
            job = queue.fetch_job(completion_id)
            with self.connection.pipeline() as pipe:
                pipe.lrem(waiting.key, 1, completion_id)
                pipe.delete(marker)
                if job is not None and job.get_status() is JobStatus.QUEUED:
                    queue.push_job_id(completion_id, pipeline=pipe, at_front=True)
                pipe.execute()

    # One completion

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Leave alone what was cancelled, or done by another worker, between queue and hand."""
        if job.get_status() is not JobStatus.QUEUED:
            queue.intermediate_queue.remove(job.id)
            return
        super().execute_job(job, queue)

    def handle_job_success(
        self, job: Job, queue: Queue, started_job_registry: StartedJobRegistry, execution: Execution
    ) -> None:
        """Drop the outcome if the lease was lost meanwhile: then another worker has the completion."""
        if self.connection.zscore(started_job_registry.key, execution.composite_key) is None:
            log.warning("completion %s was taken over by another worker", job.id)
            self.executions.pop(execution.id, None)
            return
        super().handle_job_success(job, queue, started_job_registry, execution)

    # Stopping

    def handle_warm_shutdown_request(self) -> None:
        """Finish what is in hand if that is soon, else give it back."""
        timer = Timer(self.settings.drain_s, draining.set)
        timer.daemon = True
        timer.start()

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """A completion given back has not failed, and keeps its number of attempts."""
        if isinstance(exc_info[1], Interrupted):
            log.warning("completion %s given back to the queue", job.id)
            job.retries_left = (job.retries_left or 0) + 1
            return
        super().handle_exception(job, *exc_info)

    def subscribe(self) -> None:
        """No commands by publish/subscribe: cancellation goes by key, stopping by signal."""
