"""Records of RQ, as the API shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from redis import Redis
from rq.job import Job, JobStatus
from rq.results import Result
from rq.utils import now

from app.deliveries import TOLD
from app.queue.names import SERIALIZER, TASK
from app.queue.wire import Exchange
from app.schemas import (
    Completion,
    CompletionError,
    CompletionOptions,
    Entry,
    Interpolation,
    InterpolationLinks,
    InterpolationOptions,
    Links,
    Outcome,
    Status,
    Webhook,
)
from app.settings import Settings

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

FIELDS = "data", "meta", "status", "created_at", "started_at", "ended_at", "retries_left"
"""What is shown of RQ's record; the rest is RQ's own."""

LOOK = f"""
-- Of each id (ARGV) its record, its place in line (KEYS[1]) while it waits, its newest result, and what its
-- webhook was told.
local found = {{}}
for i, id in ipairs(ARGV) do
    local record = redis.call('HMGET', 'rq:job:' .. id, {", ".join(map(repr, FIELDS))})
    local place = record[{FIELDS.index("status") + 1}] == 'queued' and redis.call('LPOS', KEYS[1], id)
    local result = redis.call('XREVRANGE', 'rq:results:' .. id, '+', '-', 'COUNT', 1)
    found[i] = {{record, place, result, redis.call('GET', '{TOLD}' .. id)}}
end
return found
"""
REMEMBERED = 1024
"""Entries that a process remembers as it read them last."""


@dataclass(frozen=True)
class _Remembered:
    """What the queue answered, and how that is shown."""

    answer: Any
    entry: Entry


class Records:
    """Reads what the API and the workers have written."""

    def __init__(self, connection: Redis, settings: Settings, line: str) -> None:
        self.connection, self.settings, self.line = connection, settings, line
        self.script = connection.register_script(LOOK)
        self.remembered: dict[str, _Remembered] = {}

    def look(self, ids: Sequence[str]) -> Exchange[list[Entry | None]]:
        """Several as they stand, read in one go; None for what is not known."""
        known = list({name for name in ids if name.isalnum()})

        def read(answers: Any) -> list[Entry | None]:
            found = {name: self._read(name, answer) for name, answer in zip(known, answers, strict=True)}
            return [found.get(name) for name in ids]

        return Exchange(self.script, [self.line], known, read)

    def _read(self, name: str, answer: Any) -> Entry | None:
        """What the queue answered, as it is shown. Most who look again find what they found before."""
        before = self.remembered.get(name)
        if before is not None and before.answer == answer and not self._expires(before.entry):
            return before.entry
        if (entry := self._entry(name, *answer)) is not None:
            if len(self.remembered) >= REMEMBERED:
                self.remembered.clear()
            self.remembered[name] = _Remembered(answer, entry)
        return entry

    def _expires(self, entry: Entry) -> bool:
        """Whether it has expired since it was read."""
        return entry.status != "expired" and self.is_past(entry.ended_at)

    def _entry(
        self, name: str, values: list[bytes | None], index: int | None, results: Any, webhook: bytes | None
    ) -> Entry | None:
        fields = {field.encode(): value for field, value in zip(FIELDS, values, strict=True) if value}
        if not fields:
            return None
        job = Job(name, connection=self.connection, serializer=SERIALIZER)
        job.restore(fields)
        outcome = self._outcome(job, results[0] if results else None)
        status = self._status(job, outcome)
        place = index + 1 if index is not None and status == "queued" else None
        if job.func_name == TASK:
            return self._completion(job, status, place, outcome, webhook)
        return self._interpolation(job, status, place, outcome)

    def is_past(self, ended_at: datetime | None) -> bool:
        """Whether what ended then has expired.

        A function of the record alone, so that every replica says the same at the same time.
        """
        return ended_at is not None and ended_at + timedelta(seconds=self.settings.result_ttl_s) < now()

    def _outcome(self, job: Job, result: tuple[bytes, list[bytes]] | None) -> Outcome | None:
        """How it ended, if that is still to be known."""
        finished = job.get_status(refresh=False) is JobStatus.FINISHED
        if result is None or not finished or self.is_past(job.ended_at):
            return None
        name, parts = result
        payload = dict(zip(parts[::2], parts[1::2], strict=True))
        told = Result.restore(job.id, name.decode(), payload, self.connection, SERIALIZER)
        return Outcome.model_validate(told.return_value)

    def _status(self, job: Job, outcome: Outcome | None) -> Status:
        if self.is_past(job.ended_at):
            return "expired"
        return outcome.status if outcome else STATUSES.get(job.get_status(refresh=False), "queued")

    def _completion(
        self, job: Job, status: Status, place: int | None, outcome: Outcome | None, webhook: bytes | None
    ) -> Completion:
        known: dict[str, Any] = dict(job.meta)
        told = known if status != "queued" else {}
        return Completion(
            id=job.id,
            status=status,
            options=CompletionOptions.model_validate(job.args[1]),
            phase=told.get("phase"),
            step=told.get("step", 0),
            steps=told.get("steps", 0),
            residual=told.get("residual"),
            progress=1.0 if status == "succeeded" else told.get("progress", 0.0),
            queue_position=place,
            attempt=max(1, 1 + self.settings.retries - (job.retries_left or 0)),
            preview=known.get("preview", 0),
            owner=known.get("owner", ""),
            warnings=known.get("warnings", []),
            created_at=job.created_at,
            started_at=job.started_at,
            ended_at=job.ended_at,
            report=outcome.report if outcome else None,
            error=_error(status, outcome),
            webhook=_webhook(known.get("webhook_url"), webhook),
            links=Links.of(job.id),
        )

    def _interpolation(
        self, job: Job, status: Status, place: int | None, outcome: Outcome | None
    ) -> Interpolation:
        return Interpolation(
            id=job.id,
            status=status,
            options=InterpolationOptions.model_validate(job.args[1]),
            progress=1.0 if status == "succeeded" else job.meta.get("progress", 0.0),
            queue_position=place,
            created_at=job.created_at,
            started_at=job.started_at,
            ended_at=job.ended_at,
            error=_error(status, outcome),
            links=InterpolationLinks.of(job.id),
            owner=job.meta.get("owner", ""),
        )


def _error(status: Status, outcome: Outcome | None) -> CompletionError | None:
    """Without an outcome nobody but us has failed."""
    return outcome.error if outcome else BROKEN if status == "failed" else None


def _webhook(url: str | None, kept: bytes | None) -> Webhook | None:
    """How it stands with one: nothing is kept of it before the first attempt."""
    if url is None:
        return None
    return Webhook(url=url) if kept is None else Webhook.model_validate_json(kept)
