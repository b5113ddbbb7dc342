"""A scan comes in: `POST /v1/completions`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from tempfile import SpooledTemporaryFile
from typing import Annotated, BinaryIO, cast

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from app.access import asking
from app.errors import ProblemRaised
from app.logs import request_id
from app.queue import Asked, Ticket
from app.routes.answers import described
from app.routes.entries import HEADERS, accepted, key_of
from app.routes.parsing import Direct, form_of, parameters, query_of
from app.scans import Attachments, Upload
from app.schemas import Completion, CompletionOptions, ProblemItem, Submission
from app.service import Arrival, Service
from app.tracing import carried

SUFFIXES = {"text/csv": ".csv", "text/plain": ".xyz", "model/obj": ".obj", "model/stl": ".stl"}
"""What a raw body is called whose first bytes do not tell its format."""

FormFile = Annotated[
    UploadFile, WithJsonSchema({"type": "string", "contentMediaType": "application/octet-stream"})
]

router = APIRouter(tags=["completions"], route_class=Direct)


async def within_rate(request: Request) -> None:
    """Raises a 429 problem for who submits too often."""
    service, owner = await asking(request)
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


class ScanForm(BaseModel):
    """What comes beside the files is given once for all of them, or once for each in their order."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    scan: list[FormFile] = Field([], description="Point clouds and depth maps of one object.")
    viewpoint: list[str] = Field([], description="Of point clouds: where the sensor stood, [x, y, z].")
    intrinsics: list[str] = Field(
        [], description='Of depth maps: {"fx", "fy", "cx", "cy"}, 3x3 or Open3D\'s.'
    )
    depth_scale: list[str] = Field(
        [], description="Of depth maps: values per metre; unless told, 1000 for whole numbers, 1 for floats."
    )
    camera_to_world: list[str] = Field([], description="Of depth maps: 4x4, row by row.")
    mask: list[FormFile] = Field([], description="Of depth maps: 8-bit PNG, white on the object.")
    color_image: list[FormFile] = Field(
        [], description="Of depth maps: 8-bit RGB PNG or JPEG of the same size."
    )

    async def parcel(self) -> Parcel:
        """What came, in memory: once."""
        uploads = [Upload(await _taken(file), file.filename or "") for file in self.scan]
        masks = [await _taken(file) for file in self.mask]
        colors = [await _taken(file) for file in self.color_image]
        texts = self.viewpoint, self.intrinsics, self.depth_scale, self.camera_to_world
        return Parcel(uploads, Attachments(*texts, masks, colors))


async def _taken(file: UploadFile) -> bytes:
    """What is in a file, which is closed then."""
    data = await file.read()
    await file.close()
    return data


async def form_sent(request: Request) -> ScanForm:
    """What came, not yet in memory: a form, or the raw body as its only file. Raises problems."""
    form = await request.form()
    # A misspelt field, or an option sent in the form, must not be passed over in silence.
    if unknown := form.keys() - ScanForm.model_fields.keys():
        detail = f"Unknown form fields: {sorted(unknown)}. Options go into the query, as in ?resolution=64."
        raise ProblemRaised(400, "unknown_field", detail)
    return form_of(form, ScanForm) if form.get("scan") else ScanForm(scan=[await _raw(request)])


async def _raw(request: Request) -> UploadFile:
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
    return UploadFile(spooled, filename=f"body{SUFFIXES.get(kind, '')}")


@router.post(
    "/completions",
    status_code=202,
    response_model=Completion,
    responses={
        200: {"model": Completion, "description": "It ended within the time of `Prefer: wait=N`."},
        **described(400, 404, 409, 413, 415, 422, 429, 503),
    },
    openapi_extra={
        "parameters": [*parameters(Submission), *HEADERS],
        "requestBody": {
            "content": {
                "multipart/form-data": {"schema": ScanForm.model_json_schema()},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            }
        },
    },
)
async def submit(request: Request) -> Response:
    """Complete a scan of one file or several. Look at `Location` for the completion.

    What comes beside the files is given once for all of them, or once for each in their order.
    """
    service, owner = await asking(request)
    form, asked, key = await form_sent(request), query_of(request, Submission), key_of(request)
    await within_rate(request)
    async with service.room:
        sent = await form.parcel()
        completion = await _accepted(service, owner, asked, sent, key)
    return await accepted(request, service, completion)


async def _accepted(
    service: Service, owner: str, asked: Submission, sent: Parcel, key: str | None
) -> Completion:
    options = asked.options()
    service.check_model(options.model)
    _check_webhook(service, asked)
    if options.start_from is not None:
        await run_in_threadpool(service.check_start, owner, options.start_from, options.model)
    ticket = Ticket(owner, webhook_url=asked.webhook_url, trace=carried(), request_id=request_id.get())

    async def submit(completion_id: str, claim: str | None) -> Completion:
        scan = await service.read(sent.uploads, sent.beside)
        known = replace(ticket, claim=claim, warnings=scan.warnings)
        arrival = Arrival(Asked(completion_id, options, known), scan, sent.originals())
        return cast(Completion, await service.arrivals.ask(arrival))

    return await service.once(Completion, owner, key, lambda: sent.digest(asked), submit)


def _check_webhook(service: Service, asked: Submission) -> None:
    if asked.webhook_url is not None and not service.settings.webhook_secret:
        told = "This service tells no webhooks: its operator has set no DEEPSDF_WEBHOOK_SECRET."
        raise ProblemRaised(400, "no_webhooks", told)
