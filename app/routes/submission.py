"""A scan comes in: `POST /v1/completions`."""

from __future__ import annotations

from contextlib import closing

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from app.access import asking
from app.errors import ProblemRaised
from app.logs import request_id
from app.queue import Asked, Ticket, new_id
from app.routes.answers import described
from app.routes.entries import HEADERS, accepted, key_of
from app.routes.parsing import Direct, parameters, query_of
from app.scans import INLINE, Body, ScanForm
from app.schemas import Completion, Submission
from app.service import Service
from app.tracing import carried

LONGEST_TYPE = 1000
"""Characters of a Content-Type that are looked at: a boundary has 256 at most."""

router = APIRouter(tags=["completions"], route_class=Direct)


async def within_rate(request: Request) -> None:
    """Raises a 429 problem for who submits too often."""
    service, owner = await asking(request)
    if owner and (seconds := await run_in_threadpool(service.rate.hit, owner)):
        told = f"This key may submit {service.settings.rate_limit}. Try again in {seconds} seconds."
        raise ProblemRaised(429, "rate_limited", told, {"Retry-After": str(seconds)})


async def body_of(request: Request) -> Body:
    """What came, not looked into: in a file if it is large, so that slow clients take no memory."""
    body = Body(b"", request.headers.get("content-type", "")[:LONGEST_TYPE])
    try:
        async for part in request.stream():
            if isinstance(body.content, bytes) and len(body.content) + len(part) <= INLINE:
                body.content += part
            else:
                await run_in_threadpool(body.write, part)
    except BaseException:
        body.close()
        raise
    return body


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
    asked, key = query_of(request, Submission), key_of(request)
    await within_rate(request)
    await _check(service, owner, asked)
    ticket = Ticket(owner, webhook_url=asked.webhook_url, trace=carried(), request_id=request_id.get())
    with closing(await body_of(request)) as body:
        completion = await service.take_in(Asked(new_id(), asked.options(), ticket), body, key)
    return await accepted(request, service, completion)


async def _check(service: Service, owner: str, asked: Submission) -> None:
    service.check_model(asked.model)
    _check_webhook(service, asked)
    if asked.start_from is not None:
        await run_in_threadpool(service.check_start, owner, asked.start_from, asked.model)


def _check_webhook(service: Service, asked: Submission) -> None:
    if asked.webhook_url is not None and not service.settings.webhook_secret:
        told = "This service tells no webhooks: its operator has set no DEEPSDF_WEBHOOK_SECRET."
        raise ProblemRaised(400, "no_webhooks", told)
