"""What completions and interpolations have in common: being waited for, listed, looked at and followed."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Header, Request, Response
from fastapi.sse import ServerSentEvent

from app.errors import ProblemRaised
from app.queue import Page
from app.routes.answers import as_json
from app.routes.parsing import header
from app.schemas import ENDED, MAX_WAIT_S, Entry, Kind, ListOptions
from app.service import Service

MAX_KEY = 255
WAIT = re.compile(r"(?:^|[,;\s])wait=(\d+)")

LastEventId = Annotated[str | None, Header(max_length=200, description="Id of the last event that was seen.")]


HEADERS = [
    header("Prefer", "`wait=N`: answer 200 if it ends within N seconds (RFC 7240)."),
    header("Idempotency-Key", "The same key and request give the same answer for a day."),
]
"""What who submits may send beside, for the document."""


def key_of(request: Request) -> str | None:
    """The Idempotency-Key, if there is one. Raises a 400 problem for one that is too long."""
    key = request.headers.get("idempotency-key")
    if key is not None and len(key) > MAX_KEY:
        told = f"The Idempotency-Key has {len(key)} characters. Take one of {MAX_KEY} at most."
        raise ProblemRaised(400, "invalid_options", told)
    return key


def wait_of(request: Request) -> int:
    """Seconds that the client would wait."""
    found = WAIT.search(request.headers.get("prefer", ""))
    return min(int(found[1][:9]), MAX_WAIT_S) if found else 0


async def accepted(request: Request, service: Service, entry: Kind) -> Response:
    """202 for what was just submitted; 200 if it ends within the time that the client would wait."""
    headers, wait = {"Location": entry.links.self}, wait_of(request)
    if wait:
        entry = await service.watcher.ended(type(entry), entry.id, wait) or entry
    if entry.status in ENDED and wait:
        return as_json(request, entry, 200, {**headers, "Preference-Applied": f"wait={wait}"})
    return as_json(request, entry, 202, {**headers, "Retry-After": "1"})


async def looked_at(
    kind: type[Kind], request: Request, service: Service, owner: str, entry_id: str, wait: float
) -> Response:
    """How one stands, or how it has ended within the time."""
    entry = await service.look_at(kind, owner, entry_id)
    if wait:
        entry = await service.watcher.ended(kind, entry_id, wait) or entry
    return as_json(request, entry)


def page_of(
    kind: type[Kind], request: Request, response: Response, service: Service, owner: str, asked: ListOptions
) -> Page[Kind]:
    """Those of an owner that were asked for, newest first; `Link` leads to the next page."""

    def wanted(entry: Kind) -> bool:
        return asked.status in (None, entry.status) and asked.model in (None, entry.options.model)

    page = service.queue.page(kind, owner, asked.limit, asked.cursor, wanted)
    if page.cursor is not None:
        onward = request.url.include_query_params(cursor=page.cursor)
        response.headers["Link"] = f'<{onward.path}?{onward.query}>; rel="next"'
    return page


async def told(service: Service, entry: Entry, last_event_id: str | None) -> AsyncIterator[ServerSentEvent]:
    """Each change of one until it has ended, but for what the client has heard."""
    seen = last_event_id or ""
    async for now in service.watcher.follow(entry.id):
        if now is None:  # deleted meanwhile
            return
        if (new := mark(now)) == seen:
            continue
        for name in kinds(seen, new):
            yield ServerSentEvent(event=name, id=new, data=now)
        seen = new


def mark(entry: Entry) -> str:
    """Id of an event: status, preview, and a digest of all the rest."""
    return f"{entry.status}.{getattr(entry, 'preview', 0)}.{entry.digest[:16]}"


def kinds(before: str, now: str) -> list[str]:
    """The events that lead from one mark to another."""
    old, new = (*before.split("."), "", "0")[:2], now.split(".")
    names = ["status"] if old[0] != new[0] else []
    if new[1] != "0" and new[1] != old[1]:
        names.append("preview")
    return names or ["progress"]
