"""A completion as it goes on, pushed: server-sent events."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from app.access import Owner, TheService
from app.routes.answers import described
from app.schemas import Completion

router = APIRouter(prefix="/completions/{completion_id}", tags=["results"])
Last = Annotated[str | None, Header(max_length=200, description="Id of the last event that was seen.")]


def mark(completion: Completion) -> str:
    """Id of an event: status, preview, and a digest of all the rest."""
    digest = hashlib.sha256(completion.model_dump_json().encode()).hexdigest()[:16]
    return f"{completion.status}.{completion.preview}.{digest}"


async def followed(service: TheService, owner: Owner, completion_id: str) -> Completion:
    """The completion that is to be followed; problems come before the stream begins."""
    return await run_in_threadpool(service.find, owner, completion_id)


@router.get("/events", response_class=EventSourceResponse, responses=described(404, 410, 503))
async def events(
    service: TheService,
    completion: Annotated[Completion, Depends(followed)],
    last_event_id: Last = None,
) -> AsyncIterator[ServerSentEvent]:
    """`status`, `progress` and `preview`, each with the whole completion; the stream ends when it has ended.

    A client that comes back with `Last-Event-ID` is told nothing that it knows.
    """
    seen = last_event_id or ""
    async for now in service.watcher.follow(completion.id):
        if now is None:  # deleted meanwhile
            return
        if (new := mark(now)) == seen:
            continue
        for name in kinds(seen, new):
            yield ServerSentEvent(event=name, id=new, data=now)
        seen = new


def kinds(before: str, now: str) -> list[str]:
    """The events that lead from one mark to another."""
    old, new = (*before.split("."), "", "0")[:2], now.split(".")
    names = ["status"] if old[0] != new[0] else []
    if new[1] != "0" and new[1] != old[1]:
        names.append("preview")
    return names or ["progress"]
