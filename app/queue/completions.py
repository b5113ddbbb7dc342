"""What the endpoints do with the queue: submit, look, list, cancel, delete."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

from redis import Redis
from redis.client import Pipeline
from rq import Queue
from rq.job import Job
from rq.utils import now, utcformat

from app.deliveries import Deliveries
from app.queue.connection import watching
from app.queue.line import Line
from app.queue.names import DELETED, INTERPOLATE, OPEN, QUEUE, SERIALIZER, TASK, index_key
from app.queue.records import Records
from app.queue.submission import Asked, Options, Submission, Ticket
from app.queue.upkeep import Upkeep
from app.queue.wire import Exchange, Wire
from app.queue.workers import Workers
from app.schemas import (
    Completion,
    CompletionOptions,
    Entry,
    Interpolation,
    InterpolationOptions,
    Kind,
    Status,
)
from app.settings import Settings

A = TypeVar("A")
T = TypeVar("T")

LOOKED_AT = 1000
"""Entries that one page of a list looks at, at most, in search of those that were asked for."""

TASKS: dict[type[Any], str] = {Completion: TASK, Interpolation: INTERPOLATE}


class AlreadyEnded(Exception):
    """What has ended cannot be cancelled."""

    def __init__(self, status: Status) -> None:
        super().__init__(f"It has already ended: {status}.")


@dataclass(frozen=True)
class Page(Generic[Kind]):
    """Some completions or interpolations, newest first, and where the next ones begin."""

    entries: list[Kind]
    cursor: str | None


class CompletionQueue:
    """The queue, with those who work on it: interpolations are among its entries too."""

    def __init__(self, connection: Redis, settings: Settings) -> None:
        self.connection, self.settings = connection, settings
        self.queue = Queue(QUEUE, connection=connection, serializer=SERIALIZER)
        self.deliveries = Deliveries(connection, settings)
        self.records = Records(connection, settings, self.queue.key)
        self.submission = Submission(connection, settings, self.queue)
        self.line = Line(connection, settings, self.queue)
        self.upkeep = Upkeep(connection, self.records, self.deliveries)
        self.workers = Workers(connection, self.queue)
        self.wires: list[Wire] = []

    @overload
    def submit(
        self, entry_id: str, options: CompletionOptions, ticket: Ticket | None = ...
    ) -> Completion: ...

    @overload
    def submit(
        self, entry_id: str, options: InterpolationOptions, ticket: Ticket | None = ...
    ) -> Interpolation: ...

    def submit(self, entry_id: str, options: Options, ticket: Ticket | None = None) -> Entry:
        """Enqueue a completion whose scan is already stored, or an interpolation; as it stands then.

        Raises QueueFull or TooManyOpen; both bounds are exact.
        """
        (entry,) = self.submit_many([Asked(entry_id, options, ticket or Ticket())])
        if isinstance(entry, Exception):
            raise entry
        return entry

    def submit_many(self, asked: Sequence[Asked]) -> list[Entry | Exception]:
        """Several in one go, in their order: each as it stands then, or what `submit` would raise."""
        return self.submission.enqueue(asked).wait()

    def get(self, completion_id: str) -> Completion | None:
        """The completion as it stands, or None when nothing is known of it."""
        return self.find(Completion, completion_id)

    def find(self, kind: type[Kind], entry_id: str) -> Kind | None:
        """The entry of this kind as it stands, or None when nothing is known of it."""
        (entry,) = self.get_many([entry_id])
        return entry if isinstance(entry, kind) else None

    def get_many(self, ids: Sequence[str]) -> list[Entry | None]:
        """Several as they stand, read in one go; None for what is not known."""
        return self.records.look(ids).wait() if ids else []

    def over_a_wire(
        self, exchange_of: Callable[[Sequence[A]], Exchange[T]]
    ) -> Callable[[Sequence[A]], Awaitable[T]]:
        """One of `records.look` and `submission.enqueue` for an event loop, which asks once at a time."""
        wire = Wire(self.connection)
        self.wires.append(wire)

        async def ask(what: Sequence[A]) -> T:
            return await exchange_of(what).over(wire)

        return ask

    def close_wires(self) -> None:
        """They are opened again when they are needed."""
        for wire in self.wires:
            wire.close()

    def page(
        self,
        kind: type[Kind],
        owner: str,
        limit: int,
        cursor: str | None = None,
        wanted: Callable[[Kind], bool] = lambda _: True,
    ) -> Page[Kind]:
        """Up to `limit` of an owner's entries that are `wanted`, newest first, those before `cursor`.

        A page may be short, or even empty, and still have a cursor: each looks at `LOOKED_AT` at most.
        """
        found: list[Kind] = []
        for _ in range(LOOKED_AT // limit):
            before = "+" if cursor is None else f"({cursor}"
            raw: Any = self.connection.zrevrangebylex(index_key(TASKS[kind], owner), before, "-", 0, limit)
            ids = [name.decode() for name in raw]
            for entry_id, entry in zip(ids, self.get_many(ids), strict=True):
                if len(found) == limit:
                    return Page(found, cursor)
                cursor = entry_id
                if isinstance(entry, kind) and wanted(entry):
                    found.append(entry)
            if len(ids) < limit:
                return Page(found, None)
        return Page(found, cursor)

    def cancel(self, entry_id: str) -> Entry | None:
        """Cancel at once, whether it waits or runs: its worker finds its lease gone and drops it.

        Returns None for what is not known. Raises AlreadyEnded, unless it ended by being cancelled.
        """

        def cancel(pipe: Pipeline) -> Entry | None:
            (entry,) = self.get_many([entry_id])
            if entry is None or (job := self._fetch(entry_id)) is None:
                return None
            if entry.status in ("succeeded", "failed", "expired"):
                raise AlreadyEnded(entry.status)
            leases = self._leases(entry_id)
            pipe.multi()
            if entry.status != "cancelled":
                job.cancel(pipeline=pipe)
                if leases:
                    pipe.zrem(self.queue.started_job_registry.key, *leases)
                pipe.hset(job.key, "ended_at", utcformat(now()))
                pipe.expire(job.key, self.settings.record_ttl_s)
            pipe.execute()
            return self.get_many([entry_id])[0]

        return watching(self.connection, cancel, Job.key_for(entry_id))

    def delete(self, entry_id: str) -> None:
        """Forget a completion or interpolation; one that waits or runs is cancelled first."""
        with suppress(AlreadyEnded):
            self.cancel(entry_id)
        if (job := self._fetch(entry_id)) is None:
            return
        with self.connection.pipeline() as pipe:
            job.delete(pipeline=pipe)
            pipe.zrem(index_key(str(job.func_name), job.meta.get("owner", "")), job.id)
            pipe.hdel(OPEN, job.id)
            pipe.zadd(DELETED, {job.id: time.time()})
            self.deliveries.forget(pipe, job.id)
            if claim := job.meta.get("claim"):
                pipe.delete(claim)
            pipe.execute()

    def _fetch(self, entry_id: str) -> Job | None:
        jobs: Any = Job.fetch_many([entry_id], self.connection, SERIALIZER) if entry_id.isalnum() else [None]
        return jobs[0]  # type: ignore[no-any-return]

    def _leases(self, entry_id: str) -> list[bytes]:
        """Leases that workers hold of it, as RQ's registry of what runs has them: one or none."""
        held: Any = self.connection.zrange(self.queue.started_job_registry.key, 0, -1)
        return [lease for lease in held if lease.startswith(f"{entry_id}:".encode())]
