"""Whether the service lives and works: open to everyone, and says nothing of anyone's completions."""

from __future__ import annotations

from fastapi import APIRouter

from app.access import TheService
from app.errors import ProblemRaised
from app.routes.answers import described

router = APIRouter()


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """This process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses=described(503))
def readyz(service: TheService) -> dict[str, str | int]:
    """A completion submitted now would be worked on: a worker is alive and has its models loaded."""
    if not (workers := service.queue.live_workers()):
        raise ProblemRaised(503, "no_worker", "No worker is ready (yet).", {"Retry-After": "2"})
    return {"status": "ready", "workers": workers}
