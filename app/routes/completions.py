"""Completions: list them, look at one, cancel it, delete it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from app.access import Owner, TheService
from app.errors import ProblemRaised
from app.queue import AlreadyEnded
from app.routes.answers import as_json, described, get_and_head
from app.routes.submission import MAX_WAIT_S
from app.schemas import Completion, CompletionList, Status
from app.service import unknown

router = APIRouter(prefix="/completions", tags=["completions"])


@router.get("", responses=described(400, 503))
def listed(
    request: Request,
    response: Response,
    service: TheService,
    owner: Owner,
    status: Annotated[Status | None, Query(description="Only those that stand so.")] = None,
    model: Annotated[str | None, Query(description="Only those of this model.")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Most completions in the answer.")] = 20,
    cursor: Annotated[
        str | None, Query(pattern="^[0-9a-f]{32}$", description="As an earlier answer gave it.")
    ] = None,
) -> CompletionList:
    """Your completions, newest first. `Link` leads to the next page; one may be short and not be the last."""

    def wanted(completion: Completion) -> bool:
        return status in (None, completion.status) and model in (None, completion.options.model)

    page = service.queue.page(owner, limit, cursor, wanted)
    if page.cursor is not None:
        onward = request.url.include_query_params(cursor=page.cursor)
        response.headers["Link"] = f'<{onward.path}?{onward.query}>; rel="next"'
    return CompletionList(completions=page.completions, cursor=page.cursor)


@get_and_head(
    router,
    "/{completion_id}",
    response_model=Completion,
    responses={304: {"description": "It stands as `If-None-Match` has it."}, **described(404, 410, 503)},
)
async def status(
    request: Request,
    service: TheService,
    owner: Owner,
    completion_id: str,
    wait: Annotated[
        float, Query(ge=0, le=MAX_WAIT_S, description="Seconds to wait for its end before answering.")
    ] = 0,
) -> Response:
    """How a completion stands."""
    completion = await run_in_threadpool(service.find, owner, completion_id)
    if wait:
        completion = await service.watcher.ended(completion_id, wait) or completion
    return as_json(request, completion)


@router.post("/{completion_id}/cancel", status_code=202, responses=described(404, 409, 410, 503))
def cancel(service: TheService, owner: Owner, completion_id: str) -> Completion:
    """End a completion early. Asking twice is the same as asking once."""
    service.find(owner, completion_id)
    try:
        completion = service.queue.cancel(completion_id)
    except AlreadyEnded as ended:
        raise ProblemRaised(409, "already_ended", str(ended)) from None
    if completion is None:
        raise unknown(completion_id)
    return completion


@router.delete("/{completion_id}", status_code=204, responses=described(404, 410, 503))
def delete(service: TheService, owner: Owner, completion_id: str) -> None:
    """Forget a completion, its scan and its results. One that runs is cancelled first."""
    service.delete(owner, completion_id)
