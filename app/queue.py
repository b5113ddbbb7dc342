"""The queue of completions, on RQ: the only module of the app that knows RQ.

The job's record in Redis is the one source of truth. The API writes it when it enqueues; from then on only
the worker does that holds its lease. To cancel is to take the lease away: whoever has lost it writes no more.
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
WAKE = "deepsdf:wake"
"""A list whose elements say that something was enqueued: what an idle worker waits for."""

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


OVERTAKE = """
-- The last in line (KEYS[1]) goes before those of lower priority, up to the first that is not.
local rank = {high = 0, normal = 1, low = 2}
local function rank_of(id)
    local meta = redis.call('HGET', 'rq:job:' .. id, 'meta')
    return meta and rank[cjson.decode(meta).priority] or rank.normal
end
local line = redis.call('LRANGE', KEYS[1], 0, -1)
local last, place = line[#line], #line
while place > 1 and rank_of(line[place - 1]) > rank_of(last) do place = place - 1 end
if place < #line then
    redis.call('RPOP', KEYS[1])
    redis.call('LINSERT', KEYS[1], 'BEFORE', line[place], last)
end
"""

CLAIM = """
-- The first in line (KEYS[1]) whose owner may have one more running (ARGV[1]; 0: any number) goes to the
-- intermediate list (KEYS[2]). What runs is in KEYS[3].
local limit = tonumber(ARGV[1])
if limit == 0 then return redis.call('LMOVE', KEYS[1], KEYS[2], 'LEFT', 'RIGHT') end
local function owner_of(id)
    local meta = redis.call('HGET', 'rq:job:' .. id, 'meta')
    return meta and cjson.decode(meta).owner or ''
end
local busy, seen = {}, {}
local function count(id)
    if seen[id] then return end
    seen[id] = true
    local owner = owner_of(id)
    busy[owner] = (busy[owner] or 0) + 1
end
for _, lease in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do count(string.match(lease, '^[^:]+')) end
for _, id in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do count(id) end
for _, id in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
    local owner = owner_of(id)
    if owner == '' or (busy[owner] or 0) < limit then
        redis.call('LREM', KEYS[1], 1, id)
        redis.call('RPUSH', KEYS[2], id)
        return id
    end
end
return false
"""


class CompletionQueue:
    """Submit, look at and cancel completions."""

    def __init__(self, connection: Redis, settings: Settings) -> None:
        self.connection, self.settings = connection, settings
        self.queue = Queue(QUEUE, connection=connection, serializer=SERIALIZER)

    def submit(
        self, completion_id: str, options: CompletionOptions, warnings: list[str], owner: str = ""
    ) -> None:
        """Enqueue a completion whose scan is already stored. Raises QueueFull; the bound is exact."""
        key = Job.key_for(completion_id)

        def enqueue(pipe: Pipeline) -> None:
            if pipe.exists(key):
                return  # the connection broke after an earlier try had been carried out
            if int(pipe.llen(self.queue.key)) >= self.settings.max_queued:
                limit = self.settings.max_queued
                raise QueueFull(f"{limit} completions are waiting and no more may. Try again in a while.")
            pipe.multi()
            self._enqueue(pipe, completion_id, options, warnings, owner)
            pipe.eval(OVERTAKE, 1, self.queue.key)
            pipe.rpush(WAKE, completion_id)
            pipe.ltrim(WAKE, -16, -1)
            pipe.execute()

        self._watching(enqueue, self.queue.key)

    def get(self, completion_id: str) -> Completion | None:
        """The completion as it stands, or None when nothing is known of it."""
        job = self._fetch(completion_id)
        return None if job is None else self._view(job)

    def claim(self) -> Job | None:
        """Take the first in line whose owner has not too many running; None when there is none such.

        It lies in RQ's intermediate list until the worker has a lease of it.
        """
        limit = self.settings.max_running_per_key
        keys = self.queue.key, self.queue.intermediate_queue_key, self.queue.started_job_registry.key
        while completion_id := self.connection.eval(CLAIM, len(keys), *keys, limit):
            if (job := self._fetch(completion_id.decode())) is not None:
                return job
            self.queue.intermediate_queue.remove(completion_id.decode())  # forgotten while it waited
        return None

    def wait(self, seconds: float) -> None:
        """Return when something was enqueued, or after a while."""
        self.connection.blpop([WAKE], seconds)

    def cancel(self, completion_id: str) -> Completion | None:
        """Cancel at once, whether it waits or runs: its worker finds its lease gone and drops it.

        Returns None for an unknown completion. Raises AlreadyEnded, unless it ended by being cancelled.
        """

        def cancel(pipe: Pipeline) -> Completion | None:
            if (job := self._fetch(completion_id)) is None:
                return None
            completion = self._view(job)
            if completion.status in ("succeeded", "failed"):
                raise AlreadyEnded(completion)
            leases = self.leases(completion_id)
            pipe.multi()
            if completion.status != "cancelled":
                job.cancel(pipeline=pipe)
                if leases:
                    pipe.zrem(self.queue.started_job_registry.key, *leases)
                pipe.hset(job.key, "ended_at", utcformat(now()))
                pipe.expire(job.key, self.settings.result_ttl_s)
            pipe.execute()
            return self.get(completion_id)

        return self._watching(cancel, Job.key_for(completion_id))

    def leases(self, completion_id: str) -> list[bytes]:
        """Leases that workers hold of a completion, as RQ's registry of what runs has them: one or none."""
        held: Any = self.connection.zrange(self.queue.started_job_registry.key, 0, -1)
        return [lease for lease in held if lease.startswith(f"{completion_id}:".encode())]

    def live_workers(self) -> int:
        """Workers with their models loaded whose heartbeat is fresh: they register once they are ready."""
        return sum(
            bool(self.connection.exists(key)) and not self.connection.hexists(key, "death")
            for key in get_keys(queue=self.queue)
        )

    def _enqueue(
        self,
        pipe: Pipeline,
        completion_id: str,
        options: CompletionOptions,
        warnings: list[str],
        owner: str,
    ) -> None:
        settings = self.settings
        self.queue.enqueue_call(
            TASK,
            args=(completion_id, options.model_dump()),
            job_id=completion_id,
            # What lies here can be read by the scripts above.
            meta={"warnings": warnings, "owner": owner, "priority": options.priority},
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
            preview=known.get("preview", 0),
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
