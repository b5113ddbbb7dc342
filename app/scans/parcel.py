"""What the body of a submission holds: a form with files, or one file as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field, InstanceOf, ValidationError, WithJsonSchema
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field as Text
from python_multipart.multipart import File, FormParser, parse_options_header

from app.scans.reader import Attachments, Upload
from app.scans.scan import Flaw, ScanRefused

SUFFIXES = {"text/csv": ".csv", "text/plain": ".xyz", "model/obj": ".obj", "model/stl": ".stl"}
"""What a raw body is called whose first bytes do not tell its format."""

MAX_PARTS = 1000
FLAWS = 20
"""So many things that are wrong in a form are told."""

FORM = "multipart/form-data"
NO_FILES = ("", "application/json", "application/x-www-form-urlencoded")
"""Types of bodies that hold no scan."""

FormFile = Annotated[
    InstanceOf[Upload], WithJsonSchema({"type": "string", "contentMediaType": "application/octet-stream"})
]


class ScanForm(BaseModel):
    """What comes beside the files is given once for all of them, or once for each in their order."""

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


@dataclass(frozen=True)
class Parcel:
    """The files of a scan, and what comes beside them."""

    uploads: Sequence[Upload]
    beside: Attachments

    def originals(self) -> dict[str, bytes]:
        """The files by name, to be kept."""
        scans = [upload.data for upload in self.uploads]
        kinds = (("scan", scans), ("mask", self.beside.mask), ("color_image", self.beside.color_image))
        return {
            f"{kind}-{number}": data for kind, files in kinds for number, data in enumerate(files, start=1)
        }

    def digest(self) -> str:
        """SHA-256 of all that makes one differ from another, however it was packed."""
        sum_ = hashlib.sha256()
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


def parcel_of(body: bytes, content_type: str) -> Parcel:
    """A body taken apart. Raises ScanRefused: 400 for a broken form, 422 for one without a scan."""
    told, parameters = parse_options_header(content_type)
    kind = told.decode("latin-1")
    if kind == FORM:
        given = _fields(body, parameters.get(b"boundary"))
    else:
        raw = Upload(body, f"body{SUFFIXES.get(kind, '')}")
        given = {} if kind in NO_FILES or not body else {"scan": [raw]}
    # A misspelt field, or an option sent in the form, must not be passed over in silence.
    if unknown := given.keys() - ScanForm.model_fields.keys():
        names = [name[:100] for name in sorted(unknown)[:FLAWS]]
        detail = f"Unknown form fields: {names}. Options go into the query, as in ?resolution=64."
        raise ScanRefused("unknown_field", detail, status=400)
    if not any(given.get("scan", ())):
        told_ = "Send a scan: in the field `scan` of a form, or as the body with its Content-Type."
        raise ScanRefused("invalid_request", told_, flaws=[("/body/scan", told_)])
    return _parcel(given)


def _fields(body: bytes, boundary: bytes | None) -> dict[str, list[str | Upload]]:
    """The fields of a form by name, each with its values in their order. Raises ScanRefused."""
    parts: list[Text | File] = []

    def take(part: Text | File) -> None:
        if len(parts) == MAX_PARTS:
            raise FormParserError(f"It has more than {MAX_PARTS} parts")
        parts.append(part)

    try:
        in_memory = {"MAX_MEMORY_FILE_SIZE": len(body)}  # a reader writes no files
        parser = FormParser(FORM, take, take, None, boundary, None, in_memory)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        told = f"The form cannot be read: {str(error)[:200]}. Let an HTTP library make it."
        raise ScanRefused("bad_request", told, status=400) from None
    fields: dict[str, list[str | Upload]] = {}
    for part in parts:
        fields.setdefault(_text(part.field_name), []).append(_value(part))
    return fields


def _value(part: Text | File) -> str | Upload:
    if isinstance(part, Text):
        return _text(part.value)
    part.file_object.seek(0)
    return Upload(part.file_object.read(), _text(part.file_name))


def _text(data: bytes | None) -> str:
    try:
        return (data or b"").decode()
    except UnicodeDecodeError:
        return (data or b"").decode("latin-1")


def _parcel(given: dict[str, list[Any]]) -> Parcel:
    try:
        form = ScanForm.model_validate(given)
    except ValidationError as error:
        flaws: list[Flaw] = [
            ("/body/" + "/".join(map(str, one["loc"])), one["msg"]) for one in error.errors()[:FLAWS]
        ]
        told = "; ".join(f"{pointer}: {detail}" for pointer, detail in flaws)
        raise ScanRefused("invalid_request", told, flaws=flaws) from None
    texts = form.viewpoint, form.intrinsics, form.depth_scale, form.camera_to_world
    images = ([file.data for file in files] for files in (form.mask, form.color_image))
    return Parcel(form.scan, Attachments(*texts, *images))
