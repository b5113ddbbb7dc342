"""Completions and interpolations as they go on, pushed: server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.sse import EventSourceResponse, ServerSentEvent

from app.access import Owner, TheService
from app.routes.answers import described
from app.routes.entries import LastEventId, told
from app.schemas import Completion, Interpolation

router = APIRouter()


async def completion(service: TheService, owner: Owner, completion_id: str) -> Completion:
    """The completion that is to be followed; problems come before the stream begins."""
    return await service.look_at(Completion, owner, completion_id)


async def interpolation(service: TheService, owner: Owner, interpolation_id: str) -> Interpolation:
    """The interpolation that is to be followed."""
    return await service.look_at(Interpolation, owner, interpolation_id)


@router.get(
    "/completions/{completion_id}/events",
    tags=["results"],
    response_class=EventSourceResponse,
    responses=described(404, 410, 503),
)
async def events(
    service: TheService,
    followed: Annotated[Completion, Depends(completion)],
    last_event_id: LastEventId = None,
) -> AsyncIterator[ServerSentEvent]:
    """`status`, `progress` and `preview`, each with the whole completion; the stream ends when it has ended.

    A client that comes back with `Last-Event-ID` is told nothing that it knows.
    """
    async for event in told(service, followed, last_event_id):
        yield event


@router.get(
    "/interpolations/{interpolation_id}/events",
    tags=["interpolations"],
    response_class=EventSourceResponse,
    responses=described(404, 410, 503),
)
async def interpolation_events(
    service: TheService,
    followed: Annotated[Interpolation, Depends(interpolation)],
    last_event_id: LastEventId = None,
) -> AsyncIterator[ServerSentEvent]:
    """`status` and `progress`, each with the whole interpolation, as for completions."""
    async for event in told(service, followed, last_event_id):
        yield event
