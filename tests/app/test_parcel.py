"""Forms are taken apart as Starlette does it, by the same rules for what is missing, unknown or wrong."""

from __future__ import annotations

import asyncio

import httpx2
import pytest
from scan_files import npy, sphere
from starlette.datastructures import UploadFile
from starlette.requests import Request

from app.scans import ScanRefused
from app.scans.parcel import parcel_of

SCAN = npy(sphere())


TYPE = "multipart/form-data; boundary=bound"


def form(data=None, files=None):
    """A form as a client sends it: the body, and its type."""
    headers = {"Content-Type": TYPE}
    return httpx2.Request("POST", "http://localhost", data=data, files=files, headers=headers).read(), TYPE


def starlettes(body, content_type):
    """Names, file names and contents, by Starlette."""

    async def receive():
        return {"type": "http.request", "body": body}

    async def read():
        headers = [(b"content-type", content_type.encode())]
        sent = await Request({"type": "http", "headers": headers}, receive).form()
        return [
            (name, part.filename, await part.read()) if isinstance(part, UploadFile) else (name, part)
            for name, part in sent.multi_items()
        ]

    return asyncio.run(read())


@pytest.mark.parametrize(
    "files",
    [
        [("scan", ("a.npy", SCAN))],
        [
            ("scan", ('ä b".npy', SCAN)),
            ("scan", ("empty", b"")),
            ("scan", ("--bound--", b"\r\n--boun\r\n--bou--bound")),
        ],
        [
            ("scan", ("a", b"\r\n" * 70_000)),
            ("mask", ("m.png", bytes(9))),
            ("color_image", ("c", b"x")),
        ],
    ],
)
def test_files_and_texts_are_those_that_starlette_finds(files):
    texts = {"viewpoint": ["[1, 2, 3]", "ü\r\n"], "intrinsics": "{}"}
    body, kind = form(texts, files)
    found, parcel = starlettes(body, kind), parcel_of(body, kind)
    assert [(upload.name, upload.data) for upload in parcel.uploads] == [
        part[1:] for part in found if part[0] == "scan"
    ]
    for field in ("viewpoint", "intrinsics", "mask", "color_image"):
        assert list(getattr(parcel.beside, field)) == [part[-1] for part in found if part[0] == field]


def test_a_raw_body_is_the_only_file_and_its_type_tells_the_format():
    (upload,) = parcel_of(b"1 2 3", "Text/CSV; charset=utf-8").uploads
    assert (upload.data, upload.name) == (b"1 2 3", "body.csv")


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"", "application/octet-stream", 422, "invalid_request"),
        (b"{}", "application/json", 422, "invalid_request"),
        (b"scan=a", "application/x-www-form-urlencoded", 422, "invalid_request"),
        (SCAN, "", 422, "invalid_request"),
        (*form({"viewpoint": "[1, 2, 3]"}, {"mask": b"m"}), 422, "invalid_request"),
        (*form({"scan": "a text"}, {"mask": b"m"}), 422, "invalid_request"),
        (*form({"mask": "a text"}, {"scan": SCAN}), 422, "invalid_request"),
        (*form(None, {"scan": SCAN, "viewpoint": b"a file"}), 422, "invalid_request"),
        (*form({"resolution": "64"}, {"scan": SCAN}), 400, "unknown_field"),
        (b"--b", "multipart/form-data", 400, "bad_request"),
        (b"no form", TYPE, 400, "bad_request"),
        (b"--bound\r\nX: y\r\n\r\nz\r\n--bound--", TYPE, 400, "bad_request"),
    ],
)
def test_what_is_missing_unknown_or_wrong_is_told(body, kind, status, code):
    with pytest.raises(ScanRefused) as refused:
        parcel_of(body, kind)
    assert (refused.value.status, refused.value.code) == (status, code)
    if status == 422:
        assert all(pointer.startswith("/body/") and detail for pointer, detail in refused.value.flaws)
        assert refused.value.flaws
