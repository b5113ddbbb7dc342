"""Whether the service lives and works, and how much: says nothing of anyone's completions."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Response

from app.access import TheService, owner
from app.errors import ProblemRaised
from app.metrics import CONTENT_TYPE, exposition
from app.routes.answers import described

router = APIRouter(tags=["service"])


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """This process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses=described(503))
def readyz(service: TheService) -> dict[str, str | int]:
    """A completion submitted now would be worked on: a worker is alive and has its models loaded."""
    if not (workers := len(service.queue.workers.live())):
        raise ProblemRaised(503, "no_worker", "No worker is ready (yet).", {"Retry-After": "2"})
    return {"status": "ready", "workers": workers}


@router.get(
    "/metrics",
    response_class=Response,
    dependencies=[Depends(owner)],
    responses={200: {"content": {"text/plain": {}}}, **described(401, 503)},
)
def metrics(service: TheService) -> Response:
    """The service in numbers, for Prometheus; with a key where there are keys."""
    return Response(exposition(service.queue), media_type=CONTENT_TYPE)
