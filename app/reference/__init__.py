"""The API to read, at /docs: Swagger UI, served from here, so that it works without the internet.

Its scripts and styles come with the package fastapi-offline. FastAPI's own page would load them from
elsewhere and start them by an inline script, which our Content-Security-Policy forbids.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

HERE = Path(__file__).parent
router = APIRouter(include_in_schema=False)


@router.get("/docs")
def docs() -> FileResponse:
    """The page."""
    return FileResponse(HERE / "docs.html")


@router.get("/docs/start.js")
def start() -> FileResponse:
    """What starts Swagger UI in it."""
    return FileResponse(HERE / "start.js")


def assets() -> StaticFiles:
    """Swagger UI itself, found without importing the package."""
    spec = find_spec("fastapi_offline")
    if spec is None or spec.origin is None:
        raise RuntimeError("fastapi-offline is not installed: pip install fastapi-offline")
    return StaticFiles(directory=Path(spec.origin).parent / "static")
