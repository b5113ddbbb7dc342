"""What goes into the queue: its record and its place in line, or a refusal; both bounds are exact."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from pydantic_core import to_json
from redis import Redis
from rq import Queue, Retry
from rq.job import Job, JobStatus
from rq.utils import now, utcformat

from app.idempotency import IDEMPOTENCY_S
from app.queue.names import INTERPOLATE, OPEN, TASK, WAKE, index_key
from app.queue.wire import Exchange
from app.schemas import (
    Completion,
    CompletionOptions,
    Entry,
    Interpolation,
    InterpolationLinks,
    InterpolationOptions,
    Links,
    Webhook,
)
from app.settings import Settings

Options = CompletionOptions | InterpolationOptions

ENQUEUE = """
-- Records and their places in line (KEYS[1]), of each both or neither. Returns the places, with -1 where
-- too many wait, and -2 where the owner has too many open ones. The records follow one upon the other: seven
-- facts, and as many parts as the last of them says.
local line, queues, open, wake = unpack(KEYS)
local most, most_open, claim_s = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]

local function open_of(owner)
    local count, entries = 0, redis.call('HGETALL', open)
    for i = 1, #entries, 2 do
        if entries[i + 1] == owner then
            -- What has ended may not have been taken out yet.
            local status = redis.call('HGET', 'rq:job:' .. entries[i], 'status')
            if status == 'queued' or status == 'started' then count = count + 1 end
        end
    end
    return count
end

local rank = {high = 0, normal = 1, low = 2}
local function rank_of(other)
    local meta = redis.call('HGET', 'rq:job:' .. other, 'meta')
    return meta and rank[cjson.decode(meta).priority] or rank.normal
end

local function enqueue(id, record, owner, priority, index, claim, first, last)
    if redis.call('EXISTS', record) == 1 then
        -- The connection broke after an earlier try had been carried out.
        return (redis.call('LPOS', line, id) or -1) + 1
    end
    local place = redis.call('LLEN', line)
    if place >= most then return -1 end
    if owner ~= '' and open_of(owner) >= most_open then return -2 end

    redis.call('HSET', record, unpack(ARGV, first, last))
    redis.call('RPUSH', line, id)
    -- It goes before those of lower priority, up to the first that is not.
    local before
    while place > 0 do
        local other = redis.call('LINDEX', line, place - 1)
        if rank_of(other) <= rank[priority] then break end
        before, place = other, place - 1
    end
    if before then
        redis.call('RPOP', line)
        redis.call('LINSERT', line, 'BEFORE', before, id)
    end
    redis.call('ZADD', index, 0, id)
    redis.call('HSET', open, id, owner)
    if claim ~= '' then redis.call('EXPIRE', claim, claim_s) end
    redis.call('RPUSH', wake, id)
    return place + 1
end

local places, i = {}, 4
while i <= #ARGV do
    local id, record, owner, priority, index, claim, parts = unpack(ARGV, i, i + 6)
    local last = i + 6 + parts
    table.insert(places, enqueue(id, record, owner, priority, index, claim, i + 7, last))
    i = last + 1
end
redis.call('SADD', queues, line)
redis.call('LTRIM', wake, -16, -1)
return places
"""
FULL, TOO_MANY_OPEN = -1, -2


class QueueFull(Exception):
    """No further completion may wait."""


class TooManyOpen(Exception):
    """The owner has as many completions waiting or running as one may have."""


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
class Asked:
    """What is to be done, and what the API keeps beside it."""

    entry_id: str
    options: Options
    ticket: Ticket


class Submission:
    """Makes records, and puts them in line."""

    def __init__(self, connection: Redis, settings: Settings, queue: Queue) -> None:
        self.settings, self.queue = settings, queue
        self.script = connection.register_script(ENQUEUE)

    def enqueue(self, asked: Sequence[Asked]) -> Exchange[list[Entry | Exception]]:
        """Of each, in one go, how it stands now that it is in line; or why it is not."""
        at = now()
        bounds = self.settings.max_queued, self.settings.max_open_per_key, IDEMPOTENCY_S
        facts = [fact for one in asked for fact in self._facts(one, at)]

        def read(places: list[int]) -> list[Entry | Exception]:
            return [
                self._refusal(place) or _shown(one, at, place)
                for one, place in zip(asked, places, strict=True)
            ]

        keys = [self.queue.key, Queue.redis_queues_keys, OPEN, WAKE]
        return Exchange(self.script, keys, [*bounds, *facts], read)

    def _refusal(self, place: int) -> Exception | None:
        if place == FULL:
            most = self.settings.max_queued
            return QueueFull(f"{most} completions are waiting and no more may. Try again in a while.")
        if place == TOO_MANY_OPEN:
            most = self.settings.max_open_per_key
            return TooManyOpen(f"{most} completions of this key wait or run already. Try again in a while.")
        return None

    def _facts(self, asked: Asked, at: datetime) -> list[Any]:
        """A record as the script takes it."""
        task = TASK if isinstance(asked.options, CompletionOptions) else INTERPOLATE
        name, owner = asked.entry_id, asked.ticket.owner
        priority = getattr(asked.options, "priority", "normal")
        record = self.record(asked, task, priority, at)
        parts = [part for field in record.items() for part in field]
        claim = asked.ticket.claim or ""
        return [name, Job.key_for(name), owner, priority, index_key(task, owner), claim, len(parts), *parts]

    def record(self, asked: Asked, task: str, priority: str, at: datetime) -> dict[str, Any]:
        """As RQ would write it: what differs from one to the next, in what RQ writes of any."""
        known = {name: value for name, value in vars(asked.ticket).items() if value}
        call: list[Any] = [task, None, [asked.entry_id, asked.options], {}]
        told = utcformat(at)
        return {
            **self.same_for_all,
            "created_at": told,
            "enqueued_at": told,
            "data": _packed(to_json(call)),
            "meta": to_json({**known, "priority": priority}),  # which scripts can read
            "description": f"{task} {asked.entry_id}",
        }

    @cached_property
    def same_for_all(self) -> dict[str, Any]:
        """A record of RQ."""
        job = self.queue.create_job(
            TASK,
            result_ttl=self.settings.record_ttl_s,
            failure_ttl=self.settings.record_ttl_s,
            retry=Retry(max=self.settings.retries, enqueue_at_front=True),
            status=JobStatus.QUEUED,
        )
        return job.to_dict()


def _packed(text: bytes) -> bytes:
    """As `zlib.compress` does it, whose tables take ten times as long to make as a record to pack."""
    packing = zlib.compressobj(wbits=10, memLevel=1)
    return packing.compress(text) + packing.flush()


def _shown(asked: Asked, at: datetime, place: int) -> Entry:
    """As `app.queue.records` would show it."""
    options, ticket = asked.options, asked.ticket
    known: dict[str, Any] = {"id": asked.entry_id, "status": "queued", "queue_position": place or None}
    known |= {"created_at": at, "owner": ticket.owner}
    if isinstance(options, InterpolationOptions):
        return Interpolation(options=options, links=InterpolationLinks.of(asked.entry_id), **known)
    webhook = None if ticket.webhook_url is None else Webhook(url=ticket.webhook_url)
    links = Links.of(asked.entry_id)
    return Completion(options=options, warnings=ticket.warnings, webhook=webhook, links=links, **known)
