"""What a completion has to show: its scan, previews, meshes, report and code."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse

from app.access import Owner, TheService
from app.errors import ProblemRaised
from app.routes.answers import as_file, described, get_and_head, gone
from app.schemas import MAX_SAMPLES, Completion, Latent, MeshFormat
from app.service import Service

MEDIA_TYPES: dict[MeshFormat, str] = {
    "glb": "model/gltf-binary",
    "ply": "application/octet-stream",  # which has no registered type
    "obj": "model/obj",
    "stl": "model/stl",
}
router = APIRouter(prefix="/completions/{completion_id}", tags=["results"])


def files(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """What an endpoint of a file may answer, for its documentation."""
    return {
        200: {"content": {kind: {} for kind in kinds}},
        206: {"description": "The part that `Range` asks for."},
        304: {"description": "The file is as `If-None-Match` has it."},
        **described(404, 409, 410, 416, 503),
    }


@get_and_head(router, "/mesh", response_class=FileResponse, responses=files(*MEDIA_TYPES.values()))
def mesh(
    request: Request,
    service: TheService,
    owner: Owner,
    completion_id: str,
    format: Annotated[MeshFormat, Query(description="File format.")] = "glb",
    sample: Annotated[
        int, Query(ge=0, le=MAX_SAMPLES, description="0: the completion; 1, 2, …: an alternative.")
    ] = 0,
) -> Response:
    """The completed mesh, or an alternative to it, in the scan's frame and unit."""
    completion = service.succeeded(owner, completion_id)
    if sample > completion.options.samples:
        detail = f"The completion has {completion.options.samples} alternatives. Ask for them by `samples`."
        raise ProblemRaised(404, "unknown_sample", detail)
    name = f"{completion_id}-{sample}.{format}" if sample else f"{completion_id}.{format}"
    path = service.storage.mesh_path(completion_id, format, sample)
    return as_file(request, path, MEDIA_TYPES[format], name)


@get_and_head(router, "/report", response_class=FileResponse, responses=files("application/json"))
def report(request: Request, service: TheService, owner: Owner, completion_id: str) -> Response:
    """The whole report, with the latent code and other long arrays that the status leaves out."""
    service.succeeded(owner, completion_id)
    path = service.storage.report_path(completion_id)
    return as_file(request, path, "application/json", f"{completion_id}.json")


@get_and_head(router, "/latent", response_model=Latent, responses=described(404, 409, 410, 503))
def latent(service: TheService, owner: Owner, completion_id: str) -> Response:
    """The latent code that the fit found, and whose code it is."""
    completion = service.succeeded(owner, completion_id)
    return JSONResponse(_latent(service, completion).model_dump())


def _latent(service: Service, completion: Completion) -> Latent:
    try:
        return Latent.model_validate(service.storage.load_report(completion.id))
    except FileNotFoundError:
        raise gone() from None


@get_and_head(router, "/scan", response_class=Response, responses=files("application/octet-stream"))
def scan(request: Request, service: TheService, owner: Owner, completion_id: str) -> Response:
    """The scan as it was read: the points of all views in one PLY, in the scan's frame and unit."""
    service.find(owner, completion_id)
    try:
        path = service.storage.scan_ply(completion_id)
    except FileNotFoundError:
        raise gone() from None
    return as_file(request, path, MEDIA_TYPES["ply"], f"{completion_id}-scan.ply")


@get_and_head(router, "/preview", response_class=FileResponse, responses=files(MEDIA_TYPES["glb"]))
def preview(request: Request, service: TheService, owner: Owner, completion_id: str) -> Response:
    """A coarse mesh of what a running completion has found so far: see `preview` of the completion."""
    path = service.storage.preview_path(service.find(owner, completion_id).id)
    if not path.exists():
        raise ProblemRaised(404, "no_preview", "There is no preview (yet).", {"Retry-After": "1"})
    return as_file(request, path, MEDIA_TYPES["glb"], f"{completion_id}-preview.glb")


@get_and_head(router, "/preview.png", response_class=FileResponse, responses=files("image/png"))
def picture(request: Request, service: TheService, owner: Owner, completion_id: str) -> Response:
    """A small picture of the completed mesh with the points of the scan."""
    service.succeeded(owner, completion_id)
    path = service.storage.picture_path(completion_id)
    return as_file(request, path, "image/png", f"{completion_id}.png")
