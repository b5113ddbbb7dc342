"""From one latent code to another, as meshes: between completions, training shapes, or one and the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool

from app.access import Owner, TheService
from app.errors import ProblemRaised
from app.logs import request_id
from app.queue import Asked, Ticket, new_id
from app.routes.answers import as_file, described, get_and_head
from app.routes.entries import HEADERS, accepted, key_of, looked_at, page_of
from app.routes.results import MEDIA_TYPES, files
from app.routes.submission import within_rate
from app.schemas import Interpolation, InterpolationList, InterpolationOptions, ListOptions, Look, MeshFormat
from app.service import Service
from app.tracing import carried

router = APIRouter(prefix="/interpolations", tags=["interpolations"])


@router.post(
    "",
    status_code=202,
    response_model=Interpolation,
    dependencies=[Depends(within_rate)],
    openapi_extra={"parameters": HEADERS},
    responses={
        200: {"model": Interpolation, "description": "It ended within the time of `Prefer: wait=N`."},
        **described(400, 404, 409, 422, 429, 503),
    },
)
async def interpolate(
    request: Request,
    service: TheService,
    owner: Owner,
    options: InterpolationOptions,
) -> Response:
    """Queue an interpolation. Look at `Location` for it."""
    made = await _accepted(service, owner, options, key_of(request))
    return await accepted(request, service, made)


async def _accepted(
    service: Service, owner: str, options: InterpolationOptions, key: str | None
) -> Interpolation:
    service.check_model(options.model)
    for end in (options.start, options.end):
        if end.completion is not None:
            await run_in_threadpool(service.check_start, owner, end.completion, options.model)

    ticket = Ticket(owner, trace=carried(), request_id=request_id.get())
    asked = Asked(new_id(), options, ticket)

    async def submit(claim: str | None) -> Interpolation:
        known = replace(ticket, claim=claim)
        return await run_in_threadpool(service.queue.submit, asked.entry_id, options, known)

    return await service.once(Interpolation, asked, key, f"interpolation {options.model_dump_json()}", submit)


@router.get("", responses=described(400, 503))
def listed_interpolations(
    request: Request,
    response: Response,
    service: TheService,
    owner: Owner,
    asked: Annotated[ListOptions, Query()],
) -> InterpolationList:
    """Your interpolations, newest first, as completions are listed."""
    page = page_of(Interpolation, request, response, service, owner, asked)
    return InterpolationList(interpolations=page.entries, cursor=page.cursor)


@get_and_head(
    router,
    "/{interpolation_id}",
    response_model=Interpolation,
    responses={304: {"description": "It stands as `If-None-Match` has it."}, **described(404, 410, 503)},
)
async def interpolation(
    request: Request,
    service: TheService,
    owner: Owner,
    interpolation_id: str,
    asked: Annotated[Look, Query()],
) -> Response:
    """How an interpolation stands."""
    return await looked_at(Interpolation, request, service, owner, interpolation_id, asked.wait)


@get_and_head(
    router, "/{interpolation_id}/mesh", response_class=FileResponse, responses=files(*MEDIA_TYPES.values())
)
def interpolated_mesh(
    request: Request,
    service: TheService,
    owner: Owner,
    interpolation_id: str,
    number: Annotated[
        int, Query(ge=0, le=32, description="0: all as one animated GLB; 1, 2, …: one of the meshes.")
    ] = 0,
    format: Annotated[MeshFormat, Query(description="File format; of the animation it is glb.")] = "glb",
) -> Response:
    """The meshes in the model's canonical frame: all as one GLB that plays through them, or one of them."""
    found = service.find_entry(Interpolation, owner, interpolation_id)
    if found.status != "succeeded":
        why = found.error.detail if found.error else f"it is {found.status}"
        raise ProblemRaised(409, "no_meshes", f"The interpolation has no meshes (yet): {why}")
    if number > found.options.count or (number == 0 and format != "glb"):
        told = f"Ask for a `number` from 1 to {found.options.count}, or for 0 as `glb`."
        raise ProblemRaised(404, "unknown_mesh", told)
    path = service.storage.mesh_path(interpolation_id, format, number)
    return as_file(request, path, MEDIA_TYPES[format], f"{interpolation_id}-{number}.{format}")


@router.post("/{interpolation_id}/cancel", status_code=202, responses=described(404, 409, 410, 503))
def cancel_interpolation(service: TheService, owner: Owner, interpolation_id: str) -> Interpolation:
    """End an interpolation early. Asking twice is the same as asking once."""
    return service.cancel(Interpolation, owner, interpolation_id)


@router.delete("/{interpolation_id}", status_code=204, responses=described(404, 410, 503))
def delete_interpolation(service: TheService, owner: Owner, interpolation_id: str) -> None:
    """Forget an interpolation and its meshes. One that runs is cancelled first."""
    service.delete(Interpolation, owner, interpolation_id)
