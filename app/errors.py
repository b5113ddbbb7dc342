"""Every error leaves this service as application/problem+json (RFC 9457), whoever raised it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus

import redis.exceptions
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.idempotency import OtherRequest
from app.logs import request_id
from app.queue import QueueFull, TooManyOpen
from app.scans import ScanRefused
from app.schemas import Problem, ProblemItem

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large", 422: "invalid_request"}


class ProblemRaised(Exception):
    """An answer with an error in it, from anywhere below a route."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
        errors: list[ProblemItem] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.headers = status, code, detail, headers
        self.errors = errors


def problem_response(
    path: str,
    status: int,
    code: str,
    detail: str,
    headers: Mapping[str, str] | None = None,
    errors: list[ProblemItem] | None = None,
) -> JSONResponse:
    """The one place where a problem gets its shape."""
    title = HTTPStatus(status).phrase
    problem = Problem(
        title=title,
        status=status,
        detail=detail,
        instance=path,
        code=code,
        request_id=request_id.get(),
        errors=errors or [],
    )
    return JSONResponse(problem.model_dump(), status, headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Translate each kind of exception, once and for all; `app.middleware` does it for our mistakes."""
    app.exception_handler(ProblemRaised)(_raised)
    app.exception_handler(ScanRefused)(_scan_refused)
    app.exception_handler(QueueFull)(_queue_full)
    app.exception_handler(TooManyOpen)(_too_many_open)
    app.exception_handler(OtherRequest)(_other_request)
    app.exception_handler(redis.exceptions.RedisError)(_queue_unreachable)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPException)(_http)


async def _raised(request: Request, error: ProblemRaised) -> JSONResponse:
    path = request.url.path
    return problem_response(path, error.status, error.code, error.detail, error.headers, error.errors)


async def _scan_refused(request: Request, error: ScanRefused) -> JSONResponse:
    items = [ProblemItem(pointer=pointer, detail=detail) for pointer, detail in error.flaws]
    return problem_response(request.url.path, error.status, error.code, error.detail, errors=items)


async def _queue_full(request: Request, error: QueueFull) -> JSONResponse:
    return problem_response(request.url.path, 429, "queue_full", str(error), {"Retry-After": "5"})


async def _too_many_open(request: Request, error: TooManyOpen) -> JSONResponse:
    return problem_response(request.url.path, 429, "too_many_open", str(error), {"Retry-After": "5"})


async def _other_request(request: Request, error: OtherRequest) -> JSONResponse:
    detail = "This Idempotency-Key came with another request before. Take a new key for a new request."
    return problem_response(request.url.path, 422, "idempotency_mismatch", detail)


async def _queue_unreachable(request: Request, error: redis.exceptions.RedisError) -> JSONResponse:
    log.warning("the queue cannot be reached: %s", error)
    detail = "The queue cannot be reached just now. Try again in a few seconds."
    return problem_response(request.url.path, 503, "queue_unreachable", detail, {"Retry-After": "2"})


async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    """400 for the options in the query, 422 for the form."""
    items = [
        ProblemItem(pointer="/" + "/".join(map(str, item["loc"])), detail=item["msg"])
        for item in error.errors()
    ]
    told = "; ".join(f"{item.pointer}: {item.detail}" for item in items)
    in_query = any(item["loc"][0] == "query" for item in error.errors())
    status, code = (400, "invalid_options") if in_query else (422, "invalid_request")
    return problem_response(request.url.path, status, code, told, errors=items)


async def _http(request: Request, error: HTTPException) -> JSONResponse:
    code = CODES.get(error.status_code, HTTPStatus(error.status_code).name.lower())
    detail = {
        404: f"There is nothing at {request.url.path}. The paths are listed at /docs.",
        405: f"{request.method} is not possible at {request.url.path}; see the header Allow.",
    }.get(error.status_code, str(error.detail))
    return problem_response(request.url.path, error.status_code, code, detail, error.headers)


def unexpected(path: str) -> JSONResponse:
    """The answer where we made a mistake; it says nothing of it."""
    detail = "The service made a mistake, which is in its log. The request may work when sent again."
    return problem_response(path, 500, "internal", detail)


class BodyLimit:
    """Refuse a request body above `limit` bytes: by its stated length, or while it comes in."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):  # whose bodies nobody reads
            return await self.app(scope, receive, send)
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if stated.isdigit() and int(stated) > self.limit:
            return await self._refuse(scope, receive, send)
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise HTTPException(413, self._detail)
            return message

        return await self.app(scope, counted, send)

    @property
    def _detail(self) -> str:
        return f"The body is larger than {self.limit} bytes. Send fewer points."

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = problem_response(scope["path"], 413, CODES[413], self._detail, {"Connection": "close"})
        await response(scope, receive, send)
