"""The queue of completions, on RQ: the only module of the app that knows RQ.

The job's record in Redis is the one source of truth. The API writes it once, when it enqueues; from then on
only the worker does, except that a completion still waiting in the queue is cancelled here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.exceptions import WatchError
from redis.retry import Retry as RedisRetry
from rq import Queue, Retry
from rq.exceptions import NoSuchJobError
from rq.job import Job, JobStatus
from rq.utils import now, utcformat
from rq.worker_registration import get_keys

from app.schemas import Completion, CompletionError, CompletionOptions, Links, Outcome, Status
from app.settings import Settings

QUEUE = "completions"
TASK = "worker.tasks.complete_scan"
SERIALIZER = "json"
T = TypeVar("T")

BROKEN = CompletionError(
    code="internal",
    detail="The service broke on this scan each time it tried. The scan is kept; the log tells more.",
)
STATUSES: dict[JobStatus, Status] = {
    JobStatus.STARTED: "running",
    JobStatus.CANCELED: "cancelled",
    JobStatus.STOPPED: "failed",
    JobStatus.FAILED: "failed",
}


class QueueFull(Exception):
    """No further completion may wait."""


class AlreadyEnded(Exception):
    """What has ended cannot be cancelled."""

    def __init__(self, completion: Completion) -> None:
        super().__init__(f"The completion has already ended: {completion.status}.")


def connect(settings: Settings, patience_s: float) -> Redis:
    """A client that rides over an outage of about `patience_s` seconds, such as a restart of Redis."""
    if settings.redis_url is None:
        raise RuntimeError("REDIS_URL is not set. `python -m app` starts an embedded queue and sets it.")
    errors = (RedisConnectionError, RedisTimeoutError)
    backoff = ExponentialBackoff(cap=0.5, base=0.05)
    retry = RedisRetry(backoff, retries=3 + int(patience_s / 0.5), supported_errors=errors)
    return Redis.from_url(settings.redis_url, retry=retry, socket_connect_timeout=2, health_check_interval=15)


def cancel_key(completion_id: str) -> str:
    """Set while someone wants this completion to end; the worker looks at it."""
    return f"deepsdf:cancel:{completion_id}"


class CompletionQueue:
    """Submit, look at and cancel completions."""

    def __init__(self, connection: Redis, settings: Settings) -> None:
        self.connection, self.settings = connection, settings
        self.queue = Queue(QUEUE, connection=connection, serializer=SERIALIZER)

    def submit(self, completion_id: str, options: CompletionOptions, warnings: list[str]) -> None:
        """Enqueue a completion whose scan is already stored. Raises QueueFull; the bound is exact."""
        key = Job.key_for(completion_id)

        def enqueue(pipe: Pipeline) -> None:
            if pipe.exists(key):
                return  # the connection broke after an earlier try had been carried out
            if int(pipe.llen(self.queue.key)) >= self.settings.max_queued:
                limit = self.settings.max_queued
                raise QueueFull(f"{limit} completions are waiting and no more may. Try again in a while.")
            pipe.multi()
            self._enqueue(pipe, completion_id, options, warnings)
            pipe.execute()

        self._watching(enqueue, self.queue.key)

    def get(self, completion_id: str) -> Completion | None:
        """The completion as it stands, or None when nothing is known of it."""
        job = self._fetch(completion_id)
        return None if job is None else self._view(job)

    def cancel(self, completion_id: str) -> Completion | None:
        """Cancel at once what waits, and ask the worker to end what runs.

        Returns None for an unknown completion. Raises AlreadyEnded, unless it ended by being cancelled.
        """

        def cancel(pipe: Pipeline) -> Completion | None:
            if (job := self._fetch(completion_id)) is None:
                return None
            completion = self._view(job)
            if completion.status in ("succeeded", "failed"):
                raise AlreadyEnded(completion)
            waiting = completion_id.encode() in pipe.lrange(self.queue.key, 0, -1)
            pipe.multi()
            if waiting:
                job.cancel(pipeline=pipe)
                pipe.hset(job.key, "ended_at", utcformat(now()))
                pipe.expire(job.key, self.settings.result_ttl_s)
            elif completion.status != "cancelled":
                pipe.set(cancel_key(completion_id), 1, ex=self.settings.result_ttl_s)
            pipe.execute()
            return self.get(completion_id)

        return self._watching(cancel, self.queue.key, Job.key_for(completion_id))

    def live_workers(self) -> int:
        """Workers with their models loaded whose heartbeat is fresh: they register once they are ready."""
        return sum(
            bool(self.connection.exists(key)) and not self.connection.hexists(key, "death")
            for key in get_keys(queue=self.queue)
        )

    def _enqueue(
        self, pipe: Pipeline, completion_id: str, options: CompletionOptions, warnings: list[str]
    ) -> None:
        settings = self.settings
        self.queue.enqueue_call(
            TASK,
            args=(completion_id, options.model_dump()),
            job_id=completion_id,
            meta={"warnings": warnings},
            # The worker ends a completion at its deadline by itself; RQ's alarm is for one that hangs.
            timeout=int(settings.deadline_s) + 60,
            result_ttl=settings.result_ttl_s,
            failure_ttl=settings.result_ttl_s,
            retry=Retry(max=settings.retries, enqueue_at_front=True),
            description=f"{TASK} {completion_id}",
            pipeline=pipe,
        )

    def _watching(self, transaction: Callable[[Pipeline], T], *keys: str) -> T:
        """Run a transaction until nobody touched `keys` meanwhile."""
        with self.connection.pipeline() as pipe:
            while True:
                try:
                    pipe.watch(*keys)  # type: ignore[no-untyped-call]
                    return transaction(pipe)
                except WatchError:
                    continue

    def _fetch(self, completion_id: str) -> Job | None:
        try:
            return Job.fetch(completion_id, connection=self.connection, serializer=SERIALIZER)
        except (NoSuchJobError, ValueError):
            return None

    def _view(self, job: Job) -> Completion:
        outcome = self._outcome(job)
        status = outcome.status if outcome else STATUSES.get(job.get_status(refresh=False), "queued")
        running = status != "queued"
        here = f"/v1/completions/{job.id}"
        known: dict[str, Any] = dict(job.meta)
        return Completion(
            id=job.id,
            status=status,
            options=CompletionOptions.model_validate(job.args[1]),
            phase=known.get("phase") if running else None,
            step=known.get("step", 0) if running else 0,
            steps=known.get("steps", 0) if running else 0,
            residual=known.get("residual") if running else None,
            progress=1.0 if status == "succeeded" else known.get("progress", 0.0) if running else 0.0,
            queue_position=None if running else self._position(job.id),
            attempt=max(1, 1 + self.settings.retries - (job.retries_left or 0)),
            warnings=known.get("warnings", []),
            created_at=job.created_at,
            started_at=job.started_at,
            ended_at=job.ended_at,
            report=outcome.report if outcome else None,
            error=outcome.error if outcome else BROKEN if status == "failed" else None,
            links=Links(self=here, mesh=f"{here}/mesh", report=f"{here}/report", cancel=f"{here}/cancel"),
        )

    def _outcome(self, job: Job) -> Outcome | None:
        if job.get_status(refresh=False) is not JobStatus.FINISHED:
            return None
        return Outcome.model_validate(job.return_value())

    def _position(self, completion_id: str) -> int | None:
        index = self.connection.lpos(self.queue.key, completion_id)
        return index + 1 if isinstance(index, int) else None
