"""The endpoints: parse, delegate, answer."""

from __future__ import annotations

import json
from pathlib import Path
from threading import BoundedSemaphore
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Depends, File, Form, Query, Request, Response, UploadFile
from fastapi.responses import FileResponse

from app.errors import MEDIA_TYPE, ProblemRaised
from app.queue import AlreadyEnded, CompletionQueue
from app.scans import Attachments, Limits, Scan, Upload, read_scan
from app.schemas import (
    ENDED,
    MAX_SAMPLES,
    Completion,
    CompletionOptions,
    MeshFormat,
    ModelCard,
    ModelList,
    Problem,
)
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


FIELDS = {"scan", "viewpoint", "intrinsics", "depth_scale", "camera_to_world", "mask", "color_image"}
MEDIA_TYPES: dict[MeshFormat, str] = {
    "glb": "model/gltf-binary",
    "ply": "application/octet-stream",  # which has no registered type
    "obj": "model/obj",
    "stl": "model/stl",
}
router = APIRouter()


@router.post(
    "/v1/completions",
    status_code=202,
    dependencies=[Depends(no_unknown_fields)],
    responses=described(400, 404, 409, 413, 415, 422, 429, 503),
)
def submit(
    request: Request,
    response: Response,
    options: Annotated[CompletionOptions, Query()],
    scan: Annotated[list[UploadFile], File(description="Point clouds and depth maps of one object.")],
    viewpoint: Annotated[
        list[str] | None, Form(description="Of point clouds: where the sensor stood, [x, y, z].")
    ] = None,
    intrinsics: Annotated[
        list[str] | None, Form(description='Of depth maps: {"fx", "fy", "cx", "cy"}, 3x3 or Open3D\'s.')
    ] = None,
    depth_scale: Annotated[
        list[str] | None,
        Form(
            description="Of depth maps: values per metre; unless told, 1000 for whole numbers, 1 for floats."
        ),
    ] = None,
    camera_to_world: Annotated[list[str] | None, Form(description="Of depth maps: 4x4, row by row.")] = None,
    mask: Annotated[
        list[UploadFile] | None, File(description="Of depth maps: 8-bit PNG, white on the object.")
    ] = None,
    color_image: Annotated[
        list[UploadFile] | None, File(description="Of depth maps: 8-bit RGB PNG or JPEG of the same size.")
    ] = None,
) -> Completion:
    """Complete a scan of one file or several. Look at `Location` for the completion.

    What comes beside the files is given once for all of them, or once for each in their order.
    """
    service: Service = request.app.state.service
    _check_model(service, options.model)
    if options.start_from is not None:
        _check_start(service, options.start_from, options.model)
    uploads = [Upload(file.file.read(), file.filename or "") for file in scan]
    masks, colors = ([file.file.read() for file in files or []] for files in (mask, color_image))
    beside = Attachments(
        viewpoint or [], intrinsics or [], depth_scale or [], camera_to_world or [], masks, colors
    )
    with service.parsing:
        read = read_scan(uploads, beside, service.limits)
    originals = {
        f"{kind}-{number}": data
        for kind, files in (
            ("scan", [upload.data for upload in uploads]),
            ("mask", masks),
            ("color_image", colors),
        )
        for number, data in enumerate(files, start=1)
    }
    completion = _accept(service, read, originals, options)
    response.headers["Location"] = completion.links.self
    response.headers["Retry-After"] = "1"
    return completion


def _check_model(service: Service, name: str) -> None:
    if name not in (names := [card.name for card in service.models()]):
        raise ProblemRaised(400, "unknown_model", f"There is no model {name!r}. There are: {names}.")


def _check_start(service: Service, start_from: str, model: str) -> None:
    """A completion can start from what another one found if that has succeeded with the same model."""
    start = service.queue.get(start_from)
    if start is None or (start.status == "succeeded" and not service.storage.report_path(start.id).exists()):
        raise ProblemRaised(404, "unknown_start", f"There is no completion {start_from!r} to start from.")
    if start.status != "succeeded":
        detail = f"The completion {start_from!r} is {start.status}. Start from one that has succeeded."
        raise ProblemRaised(409, "start_not_succeeded", detail)
    if start.options.model != model:
        detail = f"{start_from!r} was made with the model {start.options.model!r}, whose codes are its own."
        raise ProblemRaised(409, "start_of_other_model", detail)


def _accept(
    service: Service, scan: Scan, originals: dict[str, bytes], options: CompletionOptions
) -> Completion:
    """Store first, then enqueue: a worker never looks for a scan that is not there yet."""
    completion_id = uuid4().hex
    service.storage.save_scan(completion_id, scan, originals)
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
    responses={
        200: {"content": {kind: {} for kind in MEDIA_TYPES.values()}},
        **described(400, 404, 409, 503),
    },
)
def mesh(
    request: Request,
    completion_id: str,
    format: Annotated[MeshFormat, Query(description="File format.")] = "glb",
    sample: Annotated[
        int, Query(ge=0, le=MAX_SAMPLES, description="0: the completion; 1, 2, …: an alternative.")
    ] = 0,
) -> FileResponse:
    """The completed mesh, or an alternative to it, in the scan's frame and unit."""
    service: Service = request.app.state.service
    completion = _succeeded(service, completion_id)
    if sample > completion.options.samples:
        detail = f"The completion has {completion.options.samples} alternatives. Ask for them by `samples`."
        raise ProblemRaised(404, "unknown_sample", detail)
    name = f"{completion_id}-{sample}.{format}" if sample else f"{completion_id}.{format}"
    path = service.storage.mesh_path(completion_id, format, sample)
    return _file(path, MEDIA_TYPES[format], name)


@router.get(
    "/v1/completions/{completion_id}/report",
    response_class=FileResponse,
    responses={200: {"content": {"application/json": {}}}, **described(404, 409, 503)},
)
def report(request: Request, completion_id: str) -> FileResponse:
    """The whole report, with the latent code and other long arrays that the status leaves out."""
    service: Service = request.app.state.service
    _succeeded(service, completion_id)
    path = service.storage.report_path(completion_id)
    return _file(path, "application/json", f"{completion_id}.json")


def _succeeded(service: Service, completion_id: str) -> Completion:
    completion = service.find(completion_id)
    if completion.status != "succeeded":
        raise no_mesh(completion)
    return completion


def _file(path: Path, media_type: str, name: str) -> FileResponse:
    """Raises a 404 problem for what was cleaned away while its record is still kept."""
    if not path.exists():
        raise ProblemRaised(404, "result_gone", "The file is not stored any more. Submit the scan again.")
    return FileResponse(path, media_type=media_type, filename=name)


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
