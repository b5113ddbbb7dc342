"""Completions: list them, look at one, cancel it, delete it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.access import Owner, TheService, asking
from app.routes.answers import described, get_and_head
from app.routes.entries import looked_at, page_of
from app.routes.parsing import Direct, parameters, query_of
from app.schemas import Completion, CompletionList, ListOptions, Look

router = APIRouter(prefix="/completions", tags=["completions"])
looks = APIRouter(prefix="/completions", tags=["completions"], route_class=Direct)
"""Asked for so often that it asks for the key itself."""


@router.get("", responses=described(400, 503))
def listed(
    request: Request,
    response: Response,
    service: TheService,
    owner: Owner,
    asked: Annotated[ListOptions, Query()],
) -> CompletionList:
    """Your completions, newest first. `Link` leads to the next page; one may be short and not be the last."""
    page = page_of(Completion, request, response, service, owner, asked)
    return CompletionList(completions=page.entries, cursor=page.cursor)


@get_and_head(
    looks,
    "/{completion_id}",
    response_model=Completion,
    responses={304: {"description": "It stands as `If-None-Match` has it."}, **described(404, 410, 503)},
    openapi_extra={"parameters": parameters(Look)},
)
async def status(request: Request, completion_id: str) -> Response:
    """How a completion stands."""
    service, owner = await asking(request)
    wait = query_of(request, Look).wait if request.scope["query_string"] else 0
    return await looked_at(Completion, request, service, owner, completion_id, wait)


@router.post("/{completion_id}/cancel", status_code=202, responses=described(404, 409, 410, 503))
def cancel(service: TheService, owner: Owner, completion_id: str) -> Completion:
    """End a completion early. Asking twice is the same as asking once."""
    return service.cancel(Completion, owner, completion_id)


@router.delete("/{completion_id}", status_code=204, responses=described(404, 410, 503))
def delete(service: TheService, owner: Owner, completion_id: str) -> None:
    """Forget a completion, its scan and its results. One that runs is cancelled first."""
    service.delete(Completion, owner, completion_id)
