"""How endpoints answer: with validators, so that clients need not fetch twice what has not changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from starlette.responses import MalformedRangeHeader, RangeNotSatisfiable

from app.errors import MEDIA_TYPE, ProblemRaised
from app.schemas import Entry, Problem

CACHE = {"Cache-Control": "private, no-cache"}
"""Keep it, but ask each time whether it is still true."""
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems of an endpoint, for its documentation."""
    return {status: {"model": Problem, "content": {MEDIA_TYPE: {}}} for status in statuses}


def get_and_head(router: APIRouter, path: str, **about: Any) -> Callable[[Endpoint], Endpoint]:
    """An endpoint that answers HEAD like GET, without the body."""

    def both(endpoint: Endpoint) -> Endpoint:
        router.get(path, **about)(endpoint)
        return router.head(path, include_in_schema=False)(endpoint)

    return both


def as_json(
    request: Request, entry: Entry, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """A completion or interpolation with a strong ETag; 304 for who has it already."""
    tag = f'"{entry.digest}"'
    more = {"ETag": tag, **CACHE, **(headers or {})}
    if status == 200 and request.method in ("GET", "HEAD") and has_it(request, tag):
        return Response(status_code=304, headers=more)
    return Response(entry.body, status, more, "application/json")


def as_file(request: Request, path: Path, media_type: str, name: str) -> Response:
    """A stored file with a strong ETag, in ranges where asked; 304 for who has it already.

    Raises a 410 problem for what was cleaned away while its record is still kept.
    """
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise gone() from None
    # Files are replaced by rename and never written again: time and size tell two of them apart.
    tag = f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'
    headers = {"ETag": tag, **CACHE}
    if has_it(request, tag):
        return Response(status_code=304, headers=headers)
    return StoredFile(path, headers=headers, media_type=media_type, filename=name, stat_result=stat)


class StoredFile(FileResponse):
    """Starlette's file, whose errors are problems too."""

    @classmethod
    def _parse_range_header(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        try:
            return super()._parse_range_header(http_range, file_size)
        except RangeNotSatisfiable:
            told = f"The file has {file_size} bytes, and the range {http_range!r} has none of them."
            headers = {"Content-Range": f"bytes */{file_size}"}
            raise ProblemRaised(416, "range_not_satisfiable", told, headers) from None
        except MalformedRangeHeader:
            return []  # a range that cannot be understood is to be passed over (RFC 9110, 14.2)


def gone() -> ProblemRaised:
    """The 410 of a file."""
    return ProblemRaised(410, "result_gone", "The file is not stored any more. Submit the scan again.")


def has_it(request: Request, tag: str) -> bool:
    """Whether If-None-Match names the tag (RFC 9110, 13.1.2: weak comparison)."""
    given = request.headers.get("if-none-match", "")
    return given.strip() == "*" or tag in {one.strip().removeprefix("W/") for one in given.split(",")}
