"""The endpoints: parse, delegate, answer."""

from __future__ import annotations

import json
from threading import BoundedSemaphore
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Depends, File, Form, Query, Request, Response, UploadFile
from fastapi.responses import FileResponse

from app.errors import MEDIA_TYPE, ProblemRaised
from app.queue import AlreadyEnded, CompletionQueue
from app.scans import Attachments, Limits, Scan, read_scan
from app.schemas import ENDED, Completion, CompletionOptions, ModelCard, ModelList, Problem
from app.settings import Settings
from app.storage import Storage


class Service:
    """What the endpoints share; one to a process."""

    def __init__(self, settings: Settings, queue: CompletionQueue) -> None:
        self.settings, self.queue = settings, queue
        self.storage = Storage(settings.data_dir)
        self.limits = Limits(settings.max_points, settings.max_pixels)
        self.parsing = BoundedSemaphore(settings.parse_slots)

    def models(self) -> list[ModelCard]:
        """The cards of the trained models on disk, by name."""
        cards = sorted(self.settings.checkpoints_dir.glob("*/card.json"))
        return [
            ModelCard.model_validate({**json.loads(card.read_text()), "name": card.parent.name})
            for card in cards
        ]

    def find(self, completion_id: str) -> Completion:
        """Raises a 404 problem for an unknown completion."""
        if (completion := self.queue.get(completion_id)) is None:
            raise unknown(completion_id)
        return completion


def unknown(completion_id: str) -> ProblemRaised:
    """The 404 of a completion."""
    return ProblemRaised(404, "unknown_completion", f"There is no completion {completion_id!r} (any more).")


def described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems of an endpoint, for its documentation."""
    return {status: {"model": Problem, "content": {MEDIA_TYPE: {}}} for status in statuses}


async def no_unknown_fields(request: Request) -> None:
    """A misspelt field, or an option sent in the form, must not be passed over in silence."""
    if unknown := (await request.form()).keys() - FIELDS:
        detail = f"Unknown form fields: {sorted(unknown)}. Options go into the query, as in ?resolution=64."
        raise ProblemRaised(400, "unknown_field", detail)


FIELDS = {"scan", "viewpoint", "intrinsics", "depth_scale", "camera_to_world", "mask"}
router = APIRouter()


@router.post(
    "/v1/completions",
    status_code=202,
    dependencies=[Depends(no_unknown_fields)],
    responses=described(400, 413, 415, 422, 429, 503),
)
def submit(
    request: Request,
    response: Response,
    options: Annotated[CompletionOptions, Query()],
    scan: Annotated[UploadFile, File(description="PLY, XYZ, NPY or NPZ points, or a 16-bit depth PNG.")],
    viewpoint: Annotated[
        str | None, Form(description="Of points: where the sensor stood, [x, y, z].")
    ] = None,
    intrinsics: Annotated[str | None, Form(description='Of a depth map: {"fx", "fy", "cx", "cy"}.')] = None,
    depth_scale: Annotated[str | None, Form(description="Depth units per metre; 1000 unless told.")] = None,
    camera_to_world: Annotated[str | None, Form(description="4x4, row by row.")] = None,
    mask: Annotated[UploadFile | None, File(description="8-bit PNG, white on the object.")] = None,
) -> Completion:
    """Complete a scan. The answer comes at once; look at `Location` for the completion."""
    service: Service = request.app.state.service
    _check_model(service, options.model)
    data = scan.file.read()
    beside = Attachments(
        viewpoint, intrinsics, depth_scale, camera_to_world, None if mask is None else mask.file.read()
    )
    with service.parsing:
        read = read_scan(data, scan.filename or "", beside, service.limits)
    completion = _accept(service, read, data, options)
    response.headers["Location"] = completion.links.self
    response.headers["Retry-After"] = "1"
    return completion


def _check_model(service: Service, name: str) -> None:
    if name not in (names := [card.name for card in service.models()]):
        raise ProblemRaised(400, "unknown_model", f"There is no model {name!r}. There are: {names}.")


def _accept(service: Service, scan: Scan, original: bytes, options: CompletionOptions) -> Completion:
    """Store first, then enqueue: a worker never looks for a scan that is not there yet."""
    completion_id = uuid4().hex
    service.storage.save_scan(completion_id, scan, original)
    try:
        service.queue.submit(completion_id, options, scan.warnings)
    except BaseException:
        service.storage.remove(completion_id)
        raise
    return service.find(completion_id)


@router.get("/v1/completions/{completion_id}", responses=described(404, 503))
def status(request: Request, completion_id: str) -> Completion:
    """How a completion stands."""
    service: Service = request.app.state.service
    return service.find(completion_id)


@router.post("/v1/completions/{completion_id}/cancel", status_code=202, responses=described(404, 409, 503))
def cancel(request: Request, completion_id: str) -> Completion:
    """End a completion early. Asking twice is the same as asking once."""
    service: Service = request.app.state.service
    try:
        completion = service.queue.cancel(completion_id)
    except AlreadyEnded as ended:
        raise ProblemRaised(409, "already_ended", str(ended)) from None
    if completion is None:
        raise unknown(completion_id)
    return completion


@router.get(
    "/v1/completions/{completion_id}/mesh",
    response_class=FileResponse,
    responses={200: {"content": {"model/gltf-binary": {}}}, **described(404, 409, 503)},
)
def mesh(request: Request, completion_id: str) -> FileResponse:
    """The completed mesh as binary glTF, in the scan's frame and unit."""
    service: Service = request.app.state.service
    completion = service.find(completion_id)
    if completion.status != "succeeded":
        raise no_mesh(completion)
    path = service.storage.mesh_path(completion_id)
    return FileResponse(path, media_type="model/gltf-binary", filename=f"{completion_id}.glb")


def no_mesh(completion: Completion) -> ProblemRaised:
    """Why there is no mesh (yet)."""
    if completion.status not in ENDED:
        where = f"{completion.status}, {completion.progress:.0%} done"
        detail = f"The completion is not finished: {where}. Ask again when it has succeeded."
        return ProblemRaised(409, "not_finished", detail, {"Retry-After": "1"})
    why = completion.error.detail if completion.error else "it was cancelled before it had a mesh"
    return ProblemRaised(409, f"completion_{completion.status}", f"The completion has no mesh: {why}")


@router.get("/v1/models")
def models(request: Request) -> ModelList:
    """The trained models."""
    service: Service = request.app.state.service
    return ModelList(models=service.models())


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """This process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses=described(503))
def readyz(request: Request) -> dict[str, str | int]:
    """A completion submitted now would be worked on: a worker is alive and has its models loaded."""
    service: Service = request.app.state.service
    if not (workers := service.queue.live_workers()):
        raise ProblemRaised(503, "no_worker", "No worker is ready (yet).", {"Retry-After": "2"})
    return {"status": "ready", "workers": workers}
