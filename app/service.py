"""What the endpoints of one process share, and the questions that several of them ask."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import cast

from starlette.concurrency import run_in_threadpool

from app import idempotency
from app.errors import ProblemRaised
from app.gathered import Gathered
from app.housekeeping import Housekeeper
from app.queue import AlreadyEnded, Asked, CompletionQueue, QueueFull, TooManyOpen
from app.rate import Rate
from app.scans import Body, Limits, Readers
from app.schemas import ENDED, Completion, Entry, Kind, ModelCard
from app.settings import Settings
from app.storage import Storage
from app.watcher import Watcher


@cache
def readers_of(count: int, memory: int, seconds: float) -> Readers:
    """The children that read scans: one set to a process, however many applications are in it."""
    return Readers(count, memory, seconds)


NOT_ENQUEUED = QueueFull, TooManyOpen
"""Errors of a submission that say that it came to nothing."""


class Service:
    """One to a process."""

    def __init__(self, settings: Settings, queue: CompletionQueue) -> None:
        self.settings, self.queue = settings, queue
        self.storage = Storage(settings.data_dir)
        self.limits = Limits(settings.max_points, settings.max_pixels)
        self.readers = readers_of(settings.parse_slots, settings.parse_memory_bytes, settings.parse_s)
        self.watcher = Watcher(queue.over_a_wire(queue.records.look))
        self.looks: Gathered[str, Entry | None] = Gathered(queue.over_a_wire(queue.records.look))
        self.arrivals: Gathered[Asked, Entry] = Gathered(queue.over_a_wire(queue.submission.enqueue))
        self.housekeeper = Housekeeper(queue, self.storage, settings)
        self.rate = Rate(settings.rate_limit, queue.connection)

    def models(self) -> list[ModelCard]:
        """The cards of the trained models on disk, by name."""
        cards = sorted(self.settings.checkpoints_dir.glob("*/card.json"))
        return [
            ModelCard.model_validate({**json.loads(card.read_text()), "name": card.parent.name})
            for card in cards
        ]

    def model(self, name: str) -> ModelCard | None:
        """The card of one model, if there is such a model."""
        return next((card for card in self.models() if card.name == name), None)

    async def take_in(self, asked: Asked, body: Body, key: str | None) -> Completion:
        """Read and store a scan first, then enqueue: a worker never looks for one that is not there yet.

        What does not come into line leaves no file behind. Raises ScanRefused, QueueFull, TooManyOpen,
        OtherRequest, and OSError when the scan cannot be stored.
        """
        in_line = False

        async def submit(claim: str | None) -> Completion:
            nonlocal in_line
            in_line = True  # so it may be, whatever becomes of this call
            ticket = replace(asked.ticket, claim=claim, warnings=stored.warnings)
            try:
                return cast(Completion, await self.arrivals.ask(replace(asked, ticket=ticket)))
            except Exception as error:
                # After another error it may be in line, and who has a key may ask for it once more.
                in_line = claim is not None and not isinstance(error, NOT_ENQUEUED)
                raise

        path = self.storage.upload_path(asked.entry_id)
        try:
            stored = await self.readers.read(body, path, self.limits, digest=key is not None)
            request = f"{asked.options.model_dump_json()} {asked.ticket.webhook_url} {stored.digest}"
            return await self.once(Completion, asked, key, request, submit)
        finally:
            if not in_line:
                await run_in_threadpool(self.storage.remove, asked.entry_id)

    def find(self, owner: str, completion_id: str) -> Completion:
        """An owner's completion. Raises problems: 404 for an unknown one, 410 for one that has expired.

        Those of others are unknown, so that nobody learns of them.
        """
        return self.find_entry(Completion, owner, completion_id)

    def find_entry(self, kind: type[Kind], owner: str, entry_id: str) -> Kind:
        """An owner's completion or interpolation. Raises the same problems as `find`."""
        return self._shown(kind, owner, entry_id, self.queue.find(kind, entry_id))

    async def look_at(self, kind: type[Kind], owner: str, entry_id: str) -> Kind:
        """As `find_entry`, with one look at the queue for all who ask at the same time."""
        return self._shown(kind, owner, entry_id, await self.looks.ask(entry_id))

    def _shown(self, kind: type[Kind], owner: str, entry_id: str, entry: Entry | None) -> Kind:
        if not isinstance(entry, kind) or entry.owner != owner:
            raise unknown(kind, entry_id)
        if entry.status == "expired":
            raise expired(entry)
        return entry

    async def once(
        self,
        kind: type[Kind],
        asked: Asked,
        key: str | None,
        request: str,
        submit: Callable[[str | None], Awaitable[Kind]],
    ) -> Kind:
        """What `submit` makes of the claim that an Idempotency-Key gives; or what the key's first request
        made, as it stands now. `request` has all that makes one differ from another.

        Raises OtherRequest.
        """
        if key is None:
            return await submit(None)
        redis, owner = self.queue.connection, asked.ticket.owner
        digest = hashlib.sha256(request.encode()).hexdigest()
        claim = await run_in_threadpool(idempotency.take, redis, owner, key, asked.entry_id, digest)
        if claim.first is not None:
            return await run_in_threadpool(self._first, kind, owner, claim.first)
        try:
            return await submit(claim.name)
        except NOT_ENQUEUED:  # after anything else it may be in line
            await run_in_threadpool(idempotency.release, redis, claim)
            raise

    def _first(self, kind: type[Kind], owner: str, entry_id: str) -> Kind:
        if self.queue.find(kind, entry_id) is None:
            told = "A request with this Idempotency-Key is still being read. Send it again in a moment."
            raise ProblemRaised(409, "still_being_read", told, {"Retry-After": "1"})
        return self.find_entry(kind, owner, entry_id)

    def check_model(self, name: str) -> None:
        """Raises a 400 problem for an unknown model."""
        folder = self.settings.checkpoints_dir
        if Path(name).name != name or name == ".." or not os.path.exists(f"{folder}/{name}/card.json"):  # noqa: PTH110
            names = sorted(card.parent.name for card in folder.glob("*/card.json"))
            raise ProblemRaised(400, "unknown_model", f"There is no model {name!r}. There are: {names}.")

    def check_start(self, owner: str, start_from: str, model: str) -> None:
        """One can start from what a completion found if it has succeeded with the same model."""
        start = self.queue.get(start_from)
        if start is None or start.owner != owner or not self._has_report(start):
            raise ProblemRaised(404, "unknown_start", f"There is no completion {start_from!r} to start from.")
        if start.status != "succeeded":
            detail = f"The completion {start_from!r} is {start.status}. Start from one that has succeeded."
            raise ProblemRaised(409, "start_not_succeeded", detail)
        if start.options.model != model:
            told = f"{start_from!r} was made with the model {start.options.model!r}, whose codes are its own."
            raise ProblemRaised(409, "start_of_other_model", told)

    def _has_report(self, start: Completion) -> bool:
        return start.status != "succeeded" or self.storage.report_path(start.id).exists()

    def succeeded(self, owner: str, completion_id: str) -> Completion:
        """The same, if it has results. Raises a 409 problem if it has none (yet)."""
        completion = self.find(owner, completion_id)
        if completion.status != "succeeded":
            raise no_result(completion)
        return completion

    def cancel(self, kind: type[Kind], owner: str, entry_id: str) -> Kind:
        """End a completion or interpolation early. Raises a 409 problem for what has ended otherwise."""
        self.find_entry(kind, owner, entry_id)
        try:
            self.queue.cancel(entry_id)
        except AlreadyEnded as ended:
            raise ProblemRaised(409, "already_ended", str(ended)) from None
        return self.find_entry(kind, owner, entry_id)

    def delete(self, kind: type[Kind], owner: str, entry_id: str) -> None:
        """Forget a completion or interpolation with all its files; one that runs is cancelled first."""
        self.find_entry(kind, owner, entry_id)
        self.queue.delete(entry_id)
        self.storage.remove(entry_id)


def unknown(kind: type[Entry], entry_id: str) -> ProblemRaised:
    """The 404 of a completion or interpolation."""
    word = kind.__name__.lower()
    return ProblemRaised(404, f"unknown_{word}", f"There is no {word} {entry_id!r} (any more).")


def expired(ended: Entry) -> ProblemRaised:
    """The 410 of what was kept long enough."""
    detail = f"It ended at {ended.ended_at} and was kept no longer. Submit it again."
    return ProblemRaised(410, "expired", detail)


def no_result(completion: Completion) -> ProblemRaised:
    """Why there is no result (yet)."""
    if completion.status not in ENDED:
        where = f"{completion.status}, {completion.progress:.0%} done"
        detail = f"The completion is not finished: {where}. Ask again when it has succeeded."
        return ProblemRaised(409, "not_finished", detail, {"Retry-After": "1"})
    why = completion.error.detail if completion.error else "it was cancelled before it had a mesh"
    return ProblemRaised(409, f"completion_{completion.status}", f"The completion has no mesh: {why}")
