"""From one latent code to another, as meshes: between completions, training shapes, or one and the other."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse

from app.access import Owner, TheService
from app.errors import ProblemRaised
from app.logs import request_id
from app.queue import AlreadyEnded, Ticket, new_id
from app.routes.answers import as_file, described, get_and_head
from app.routes.results import MEDIA_TYPES, files
from app.routes.submission import within_rate
from app.schemas import Interpolation, InterpolationOptions, MeshFormat
from app.tracing import carried

router = APIRouter(prefix="/interpolations", tags=["interpolations"])


@router.post(
    "",
    status_code=202,
    dependencies=[Depends(within_rate)],
    responses=described(400, 404, 409, 422, 429, 503),
)
def interpolate(
    response: Response, service: TheService, owner: Owner, options: InterpolationOptions
) -> Interpolation:
    """Queue an interpolation. Look at `Location` for it."""
    service.check_model(options.model)
    for end in (options.start, options.end):
        if end.completion is not None:
            service.check_start(owner, end.completion, options.model)
    interpolation_id = new_id()
    service.queue.submit(
        interpolation_id, options, Ticket(owner, trace=carried(), request_id=request_id.get())
    )
    made = service.find_interpolation(owner, interpolation_id)
    response.headers["Location"] = made.links.self
    response.headers["Retry-After"] = "1"
    return made


@get_and_head(router, "/{interpolation_id}", responses=described(404, 410, 503))
def interpolation(service: TheService, owner: Owner, interpolation_id: str) -> Interpolation:
    """How an interpolation stands."""
    return service.find_interpolation(owner, interpolation_id)


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
    found = service.find_interpolation(owner, interpolation_id)
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
    """End an interpolation early."""
    service.find_interpolation(owner, interpolation_id)
    try:
        service.queue.cancel(interpolation_id)
    except AlreadyEnded as ended:
        raise ProblemRaised(409, "already_ended", str(ended)) from None
    return service.find_interpolation(owner, interpolation_id)


@router.delete("/{interpolation_id}", status_code=204, responses=described(404, 410, 503))
def delete_interpolation(service: TheService, owner: Owner, interpolation_id: str) -> None:
    """Forget an interpolation and its meshes. One that runs is cancelled first."""
    service.find_interpolation(owner, interpolation_id)
    service.queue.delete(interpolation_id)
    service.storage.remove(interpolation_id)
