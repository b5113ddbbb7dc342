"""The queue of completions, on RQ: the only module of the app that knows RQ.

The job's record in Redis is the one source of truth. The API writes it when it enqueues; from then on only
the worker does that holds its lease. To cancel is to take the lease away: whoever has lost it writes no more.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.exceptions import WatchError
from redis.retry import Retry as RedisRetry
from rq import Queue, Retry
from rq.job import Job, JobStatus
from rq.utils import as_text, now, str_to_date, utcformat
from rq.worker_registration import get_keys

from app.deliveries import Deliveries
from app.idempotency import IDEMPOTENCY_S
from app.schemas import (
    ENDED,
    Completion,
    CompletionError,
    CompletionOptions,
    Interpolation,
    InterpolationLinks,
    InterpolationOptions,
    Links,
    Outcome,
    Status,
)
from app.settings import Settings
from app.tallies import TALLIES

QUEUE = "completions"
TASK, INTERPOLATE = "worker.tasks.complete_scan", "worker.tasks.interpolate"
SERIALIZER = "json"
OPEN = "deepsdf:open"
"""A hash of what has not been seen to end: id to owner. `app.housekeeping` takes out what has ended."""

DELETED = "deepsdf:deleted"
"""A sorted set of what was deleted lately, by time: a worker may write a file just after that."""

LOOKED_AT = 1000
"""Completions that one page of a list looks at, at most, in search of those that were asked for."""

WAKE = "deepsdf:wake"
"""A list whose elements say that something was enqueued: what an idle worker waits for."""

T = TypeVar("T")
Options = CompletionOptions | InterpolationOptions

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


ENDED_JOBS = {status.value.encode() for status in (JobStatus.FINISHED, *STATUSES)} - {b"started"}
"""As Redis has them."""


class QueueFull(Exception):
    """No further completion may wait."""


class TooManyOpen(Exception):
    """The owner has as many completions waiting or running as one may have."""


class AlreadyEnded(Exception):
    """What has ended cannot be cancelled."""

    def __init__(self, status: Status) -> None:
        super().__init__(f"It has already ended: {status}.")


def connect(settings: Settings, patience_s: float) -> Redis:
    """A client that rides over an outage of about `patience_s` seconds, such as a restart of Redis."""
    if settings.redis_url is None:
        raise RuntimeError("REDIS_URL is not set. `python -m app` starts an embedded queue and sets it.")
    errors = (RedisConnectionError, RedisTimeoutError)
    backoff = ExponentialBackoff(cap=0.5, base=0.05)
    retry = RedisRetry(backoff, retries=3 + int(patience_s / 0.5), supported_errors=errors)
    return Redis.from_url(settings.redis_url, retry=retry, socket_connect_timeout=2, health_check_interval=15)


def watching(connection: Redis, transaction: Callable[[Pipeline], T], *keys: str) -> T:
    """Run a transaction until nobody touched `keys` meanwhile."""
    with connection.pipeline() as pipe:
        while True:
            try:
                pipe.watch(*keys)  # type: ignore[no-untyped-call]
                return transaction(pipe)
            except WatchError:
                continue


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


@dataclass(frozen=True)
class Ticket:
    """What the API keeps in a record beside the options."""

    owner: str = ""
    """Name of the API key that submits; without keys all have the name ""."""
    warnings: list[str] = field(default_factory=list)
    claim: str | None = None
    """What `claim` gave for an Idempotency-Key."""
    webhook_url: str | None = None
    trace: dict[str, str] = field(default_factory=dict)
    """Headers of W3C trace context, under which the worker goes on."""
    request_id: str = ""
    """Of the request that submitted: the worker's log has it too."""


@dataclass(frozen=True)
class Page:
    """Some completions, newest first, and where the next ones begin."""

    completions: list[Completion]
    cursor: str | None


def new_id() -> str:
    """32 hexadecimal digits, which begin with the time: ids in order are completions in order."""
    return f"{int(1000 * time.time()):012x}{secrets.token_hex(10)}"


def index_key(owner: str) -> str:
    """The ids of an owner's completions, in order."""
    return f"deepsdf:completions:{owner}"


def facts_key(worker: str) -> str:
    """What a worker says of itself."""
    return f"deepsdf:worker:{worker}"


class CompletionQueue:
    """Submit, look at, list, cancel and delete completions."""

    def __init__(self, connection: Redis, settings: Settings) -> None:
        self.connection, self.settings = connection, settings
        self.queue = Queue(QUEUE, connection=connection, serializer=SERIALIZER)
        self.deliveries = Deliveries(connection, settings)

    def submit(self, completion_id: str, options: Options, ticket: Ticket | None = None) -> None:
        """Enqueue a completion whose scan is already stored, or an interpolation.

        Raises QueueFull or TooManyOpen; both bounds are exact.
        """
        key, given = Job.key_for(completion_id), ticket or Ticket()

        def enqueue(pipe: Pipeline) -> None:
            if pipe.exists(key):
                return  # the connection broke after an earlier try had been carried out
            if int(pipe.llen(self.queue.key)) >= self.settings.max_queued:
                limit = self.settings.max_queued
                raise QueueFull(f"{limit} completions are waiting and no more may. Try again in a while.")
            self._check_open(pipe, given.owner)
            pipe.multi()
            self._enqueue(pipe, completion_id, options, given)
            if isinstance(options, CompletionOptions):
                pipe.zadd(index_key(given.owner), {completion_id: 0})
                pipe.hset(OPEN, completion_id, given.owner)
            if given.claim is not None:
                pipe.expire(given.claim, IDEMPOTENCY_S)
            pipe.eval(OVERTAKE, 1, self.queue.key)
            pipe.rpush(WAKE, completion_id)
            pipe.ltrim(WAKE, -16, -1)
            pipe.execute()

        watching(self.connection, enqueue, self.queue.key, OPEN)

    def get(self, completion_id: str) -> Completion | None:
        """The completion as it stands, or None when nothing is known of it."""
        return self.get_many([completion_id])[0]

    def get_many(self, completion_ids: Sequence[str]) -> list[Completion | None]:
        """Several completions as they stand, read in one go; None for what is not known."""
        known = [name for name in completion_ids if name.isalnum()]
        jobs = dict(zip(known, self._fetch_many(known), strict=True))
        found = (jobs.get(name) for name in completion_ids)
        return [None if job is None or job.func_name != TASK else self._view(job) for job in found]

    def interpolation(self, interpolation_id: str) -> Interpolation | None:
        """An interpolation as it stands, or None when nothing is known of it."""
        job = self._fetch(interpolation_id)
        return None if job is None or job.func_name != INTERPOLATE else self._interpolation(job)

    def page(
        self,
        owner: str,
        limit: int,
        cursor: str | None = None,
        wanted: Callable[[Completion], bool] = lambda _: True,
    ) -> Page:
        """Up to `limit` of an owner's completions that are `wanted`, newest first, those before `cursor`.

        A page may be short, or even empty, and still have a cursor: each looks at `LOOKED_AT` at most.
        """
        found: list[Completion] = []
        for _ in range(LOOKED_AT // limit):
            before = "+" if cursor is None else f"({cursor}"
            raw: Any = self.connection.zrevrangebylex(index_key(owner), before, "-", 0, limit)
            ids = [name.decode() for name in raw]
            for completion_id, completion in zip(ids, self.get_many(ids), strict=True):
                if len(found) == limit:
                    return Page(found, cursor)
                cursor = completion_id
                if completion is not None and wanted(completion):
                    found.append(completion)
            if len(ids) < limit:
                return Page(found, None)
        return Page(found, cursor)

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

    def unclaim(self, job: Job) -> None:
        """Put a claimed completion back to the front of the line."""
        with self.connection.pipeline() as pipe:
            pipe.lrem(self.queue.intermediate_queue_key, 1, job.id)
            pipe.lpush(self.queue.key, job.id)
            pipe.execute()

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
            status, _ = self._status(job)
            if status in ("succeeded", "failed", "expired"):
                raise AlreadyEnded(status)
            leases = self.leases(completion_id)
            pipe.multi()
            if status != "cancelled":
                job.cancel(pipeline=pipe)
                if leases:
                    pipe.zrem(self.queue.started_job_registry.key, *leases)
                pipe.hset(job.key, "ended_at", utcformat(now()))
                pipe.expire(job.key, self.settings.record_ttl_s)
            pipe.execute()
            return self.get(completion_id)

        return watching(self.connection, cancel, Job.key_for(completion_id))

    def leases(self, completion_id: str) -> list[bytes]:
        """Leases that workers hold of a completion, as RQ's registry of what runs has them: one or none."""
        held: Any = self.connection.zrange(self.queue.started_job_registry.key, 0, -1)
        return [lease for lease in held if lease.startswith(f"{completion_id}:".encode())]

    def delete(self, completion_id: str) -> None:
        """Forget a completion; one that waits or runs is cancelled first."""
        with suppress(AlreadyEnded):
            self.cancel(completion_id)
        if (job := self._fetch(completion_id)) is None:
            return
        with self.connection.pipeline() as pipe:
            job.delete(pipeline=pipe)
            pipe.zrem(index_key(job.meta.get("owner", "")), job.id)
            pipe.hdel(OPEN, job.id)
            pipe.zadd(DELETED, {job.id: time.time()})
            self.deliveries.forget(pipe, job.id)
            if claim := job.meta.get("claim"):
                pipe.delete(claim)
            pipe.execute()

    def deleted_before(self, moment: float) -> list[str]:
        """What was deleted before a time, in seconds since 1970: no worker writes of it any more."""
        names = cast(list[bytes], self.connection.zrangebyscore(DELETED, 0, moment))
        return [name.decode() for name in names]

    def forget_deleted(self, completion_id: str) -> None:
        """Nothing of it is left."""
        self.connection.zrem(DELETED, completion_id)

    def ended_ones(self) -> list[Completion]:
        """What has ended and was not settled yet. Of what waits and runs only the status is looked at."""
        ids = [name.decode() for name in cast(list[bytes], self.connection.hkeys(OPEN))]
        with self.connection.pipeline() as pipe:
            for completion_id in ids:
                pipe.hget(Job.key_for(completion_id), "status")
            statuses = cast(list[bytes | None], pipe.execute())
        ended = [name for name, status in zip(ids, statuses, strict=True) if status in ENDED_JOBS]
        if lapsed := [name for name, status in zip(ids, statuses, strict=True) if status is None]:
            self.connection.hdel(OPEN, *lapsed)
        return [one for one in self.get_many(ended) if one is not None and one.status in ENDED]

    def settle(self, completion: Completion, tallies: Mapping[str, float]) -> bool:
        """Take what has ended out of the open ones, count it, and let its webhook be told; all or nothing.

        False when another process did it.
        """

        def settle(pipe: Pipeline) -> bool:
            if not pipe.hexists(OPEN, completion.id):
                return False
            pipe.multi()
            pipe.hdel(OPEN, completion.id)
            for name, value in tallies.items():
                pipe.hincrbyfloat(TALLIES, name, value)
            if completion.webhook is not None:
                self.deliveries.schedule(pipe, completion.id)
            pipe.execute()
            return True

        return watching(self.connection, settle, OPEN)

    def waiting(self) -> int:
        """How many completions wait."""
        return int(self.queue.count)

    def worker_facts(self) -> dict[str, dict[str, float]]:
        """What each live worker says of itself by `tell_facts`, by its name; nothing if it says nothing."""
        facts = {}
        for key in self._live_workers():
            name = key.rpartition(":")[2]
            told = cast(dict[bytes, bytes], self.connection.hgetall(facts_key(name)))
            facts[name] = {fact.decode(): float(value) for fact, value in told.items()}
        return facts

    def tell_facts(self, worker: str, facts: Mapping[str, float], ttl_s: float) -> None:
        """What a worker says of itself: `batch_size`, and `gpu_memory_bytes` where there is a GPU."""
        with self.connection.pipeline() as pipe:
            pipe.delete(facts_key(worker))
            pipe.hset(facts_key(worker), mapping={name: str(value) for name, value in facts.items()})
            pipe.pexpire(facts_key(worker), int(1000 * ttl_s))
            pipe.execute()

    def tallies(self) -> dict[str, float]:
        """The sums over all completions that were settled."""
        sums = cast(dict[bytes, bytes], self.connection.hgetall(TALLIES))
        return {name.decode(): float(value) for name, value in sums.items()}

    def not_kept(self, ids: Sequence[str]) -> tuple[list[str], list[str]]:
        """Which of these have expired, and which nothing is known of; interpolations too."""
        with self.connection.pipeline() as pipe:
            for name in ids:
                pipe.hmget(Job.key_for(name), "created_at", "ended_at")
            records = cast(list[list[bytes | None]], pipe.execute())
        expired, unknown = [], []
        for name, (created, ended) in zip(ids, records, strict=True):
            if created is None:
                unknown.append(name)
            elif ended and self._is_past(str_to_date(ended)):
                expired.append(name)
        return expired, unknown

    def forget_lapsed(self) -> None:
        """Take completions whose record Redis has dropped out of the lists."""
        for index in self.connection.scan_iter(index_key("*")):
            ids = cast(list[bytes], self.connection.zrange(index, 0, LOOKED_AT - 1))  # the oldest
            with self.connection.pipeline() as pipe:
                for name in ids:
                    pipe.exists(Job.key_for(name.decode()))
                gone = [name for name, there in zip(ids, pipe.execute(), strict=True) if not there]
            if gone:
                self.connection.zrem(index, *gone)

    def live_workers(self) -> int:
        """Workers with their models loaded whose heartbeat is fresh: they register once they are ready."""
        return len(self._live_workers())

    def _live_workers(self) -> list[str]:
        return [
            as_text(key)
            for key in get_keys(queue=self.queue)
            if self.connection.exists(key) and not self.connection.hexists(key, "death")
        ]

    def _enqueue(self, pipe: Pipeline, completion_id: str, options: Options, ticket: Ticket) -> None:
        settings = self.settings
        task = TASK if isinstance(options, CompletionOptions) else INTERPOLATE
        known = {name: value for name, value in asdict(ticket).items() if value}
        self.queue.enqueue_call(
            task,
            args=(completion_id, options.model_dump()),
            job_id=completion_id,
            # What lies here can be read by the scripts above.
            meta={**known, "priority": getattr(options, "priority", "normal")},
            result_ttl=settings.record_ttl_s,
            failure_ttl=settings.record_ttl_s,
            retry=Retry(max=settings.retries, enqueue_at_front=True),
            description=f"{task} {completion_id}",
            pipeline=pipe,
        )

    def _check_open(self, pipe: Pipeline, owner: str) -> None:
        """Raises TooManyOpen. What has ended and was not yet taken out of the hash does not count."""
        if not owner:
            return
        limit = self.settings.max_open_per_key
        names = cast(dict[bytes, bytes], pipe.hgetall(OPEN))
        mine = [name.decode() for name, of in names.items() if of.decode() == owner]
        if len(mine) < limit:
            return
        if sum(one is not None and one.status not in ENDED for one in self.get_many(mine)) >= limit:
            raise TooManyOpen(f"{limit} completions of this key wait or run already. Try again in a while.")

    def _fetch(self, completion_id: str) -> Job | None:
        return self._fetch_many([completion_id])[0] if completion_id.isalnum() else None

    def _fetch_many(self, completion_ids: Sequence[str]) -> list[Job | None]:
        jobs: Any = Job.fetch_many(completion_ids, self.connection, SERIALIZER)
        return list(jobs)

    def _view(self, job: Job) -> Completion:
        status, outcome = self._status(job)
        running = status != "queued"
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
            preview=known.get("preview", 0),
            owner=known.get("owner", ""),
            warnings=known.get("warnings", []),
            created_at=job.created_at,
            started_at=job.started_at,
            ended_at=job.ended_at,
            report=outcome.report if outcome else None,
            error=outcome.error if outcome else BROKEN if status == "failed" else None,
            webhook=self.deliveries.of(job.id, url) if (url := known.get("webhook_url")) else None,
            links=Links.of(job.id),
        )

    def _interpolation(self, job: Job) -> Interpolation:
        status, outcome = self._status(job)
        return Interpolation(
            id=job.id,
            status=status,
            options=InterpolationOptions.model_validate(job.args[1]),
            progress=1.0 if status == "succeeded" else job.meta.get("progress", 0.0),
            queue_position=self._position(job.id) if status == "queued" else None,
            created_at=job.created_at,
            started_at=job.started_at,
            ended_at=job.ended_at,
            error=outcome.error if outcome else BROKEN if status == "failed" else None,
            links=InterpolationLinks.of(job.id),
            owner=job.meta.get("owner", ""),
        )

    def _status(self, job: Job) -> tuple[Status, Outcome | None]:
        """How it stands, and how it ended, if that is still to be known."""
        if self._has_expired(job):
            return "expired", None
        outcome = self._outcome(job)
        return outcome.status if outcome else STATUSES.get(job.get_status(refresh=False), "queued"), outcome

    def _has_expired(self, job: Job) -> bool:
        """A function of the record alone, so that every replica says the same at the same time."""
        return self._is_past(job.ended_at)

    def _is_past(self, ended_at: datetime | None) -> bool:
        return ended_at is not None and ended_at + timedelta(seconds=self.settings.result_ttl_s) < now()

    def _outcome(self, job: Job) -> Outcome | None:
        if job.get_status(refresh=False) is not JobStatus.FINISHED:
            return None
        return Outcome.model_validate(job.return_value())

    def _position(self, completion_id: str) -> int | None:
        index = self.connection.lpos(self.queue.key, completion_id)
        return index + 1 if isinstance(index, int) else None
