"""A scan comes in: `POST /v1/completions`."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from tempfile import SpooledTemporaryFile
from typing import Annotated, BinaryIO, NamedTuple, cast

from fastapi import APIRouter, Depends, File, Form, Query, Request, Response, UploadFile
from starlette.concurrency import run_in_threadpool

from app.access import Owner, TheService
from app.errors import ProblemRaised
from app.logs import request_id
from app.queue import Ticket
from app.routes.answers import described
from app.routes.entries import IdempotencyKey, accepted, wait_of
from app.scans import Attachments, Upload
from app.schemas import Completion, CompletionOptions, ProblemItem, Submission
from app.service import Service
from app.tracing import carried

FIELDS = {"scan", "viewpoint", "intrinsics", "depth_scale", "camera_to_world", "mask", "color_image"}
SUFFIXES = {"text/csv": ".csv", "text/plain": ".xyz", "model/obj": ".obj", "model/stl": ".stl"}
"""What a raw body is called whose first bytes do not tell its format."""

router = APIRouter(tags=["completions"])


async def no_unknown_fields(request: Request) -> None:
    """A misspelt field, or an option sent in the form, must not be passed over in silence."""
    if unknown := (await request.form()).keys() - FIELDS:
        detail = f"Unknown form fields: {sorted(unknown)}. Options go into the query, as in ?resolution=64."
        raise ProblemRaised(400, "unknown_field", detail)


async def within_rate(service: TheService, owner: Owner) -> None:
    """Raises a 429 problem for who submits too often."""
    if owner and (seconds := await run_in_threadpool(service.rate.hit, owner)):
        told = f"This key may submit {service.settings.rate_limit}. Try again in {seconds} seconds."
        raise ProblemRaised(429, "rate_limited", told, {"Retry-After": str(seconds)})


class Parcel:
    """What a request sends: files, and what comes beside them."""

    def __init__(self, uploads: list[Upload], beside: Attachments) -> None:
        self.uploads, self.beside = uploads, beside

    def originals(self) -> dict[str, bytes]:
        """The files by name, to be kept."""
        scans = [upload.data for upload in self.uploads]
        kinds = (("scan", scans), ("mask", self.beside.mask), ("color_image", self.beside.color_image))
        return {
            f"{kind}-{number}": data for kind, files in kinds for number, data in enumerate(files, start=1)
        }

    def digest(self, options: CompletionOptions) -> str:
        """SHA-256 of all that makes one request differ from another."""
        sum_ = hashlib.sha256(options.model_dump_json().encode())
        for part in self._parts():
            sum_.update(len(part).to_bytes(8))
            sum_.update(part)
        return sum_.hexdigest()

    def _parts(self) -> Iterator[bytes]:
        for upload in self.uploads:
            yield upload.name.encode()
            yield upload.data
        for name, values in vars(self.beside).items():
            yield name.encode()
            yield from (value if isinstance(value, bytes) else value.encode() for value in values)


Load = Callable[[], Awaitable[Parcel]]


async def parcel(
    request: Request,
    scan: Annotated[
        list[UploadFile] | None, File(description="Point clouds and depth maps of one object.")
    ] = None,
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
) -> Load:
    """What came, not yet in memory: the files of a form, or the raw body as the only one."""
    files = [UploadedFile(file, file.filename or "") for file in scan or []] or [await _raw(request)]

    async def load() -> Parcel:
        uploads = [Upload(await file.read(), name) for file, name in files]
        masks = [await file.read() for file in mask or []]
        colors = [await file.read() for file in color_image or []]
        beside = Attachments(
            viewpoint or [], intrinsics or [], depth_scale or [], camera_to_world or [], masks, colors
        )
        return Parcel(uploads, beside)

    return load


class UploadedFile(NamedTuple):
    """A file that came, and what it is called."""

    file: UploadFile
    name: str


async def _raw(request: Request) -> UploadedFile:
    """The body as a file: on the disk if it is large, as the files of a form are."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    forms = ("", "application/json", "multipart/form-data", "application/x-www-form-urlencoded")
    spooled = cast(BinaryIO, SpooledTemporaryFile(max_size=2**20))  # noqa: SIM115 (it outlives this call)
    size = 0
    if kind not in forms:
        async for chunk in request.stream():
            size += spooled.write(chunk)
    if not size:
        told = "Send a scan: in the field `scan` of a form, or as the body with its Content-Type."
        missing = ProblemItem(pointer="/body/scan", detail=told)
        raise ProblemRaised(422, "invalid_request", told, errors=[missing])
    spooled.seek(0)
    return UploadedFile(UploadFile(spooled), f"body{SUFFIXES.get(kind, '')}")


@router.post(
    "/completions",
    status_code=202,
    response_model=Completion,
    dependencies=[Depends(within_rate), Depends(no_unknown_fields)],
    responses={
        200: {"model": Completion, "description": "It ended within the time of `Prefer: wait=N`."},
        **described(400, 404, 409, 413, 415, 422, 429, 503),
    },
    openapi_extra={
        "requestBody": {
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        }
    },
)
async def submit(
    request: Request,
    service: TheService,
    owner: Owner,
    asked: Annotated[Submission, Query()],
    load: Annotated[Load, Depends(parcel)],
    wait: Annotated[int, Depends(wait_of)],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Complete a scan of one file or several. Look at `Location` for the completion.

    What comes beside the files is given once for all of them, or once for each in their order.
    """
    async with service.room:
        sent = await load()
        completion = await run_in_threadpool(_accepted, service, owner, asked, sent, idempotency_key)
    return await accepted(request, service, completion, wait)


def _accepted(service: Service, owner: str, asked: Submission, sent: Parcel, key: str | None) -> Completion:
    options = asked.options()
    service.check_model(options.model)
    _check_webhook(service, asked)
    if options.start_from is not None:
        service.check_start(owner, options.start_from, options.model)
    ticket = Ticket(owner, webhook_url=asked.webhook_url, trace=carried(), request_id=request_id.get())

    def submit(completion_id: str, claim: str | None) -> Completion:
        return _enqueued(service, completion_id, options, sent, replace(ticket, claim=claim))

    return service.once(Completion, owner, key, lambda: sent.digest(asked), submit)


def _enqueued(
    service: Service,
    completion_id: str,
    options: CompletionOptions,
    sent: Parcel,
    ticket: Ticket,
) -> Completion:
    """Store first, then enqueue: a worker never looks for a scan that is not there yet."""
    scan = service.read(sent.uploads, sent.beside)
    service.storage.save_scan(completion_id, scan, sent.originals())
    try:
        return service.queue.submit(completion_id, options, replace(ticket, warnings=scan.warnings))
    except BaseException:
        service.storage.remove(completion_id)
        raise


def _check_webhook(service: Service, asked: Submission) -> None:
    if asked.webhook_url is not None and not service.settings.webhook_secret:
        told = "This service tells no webhooks: its operator has set no DEEPSDF_WEBHOOK_SECRET."
        raise ProblemRaised(400, "no_webhooks", told)
