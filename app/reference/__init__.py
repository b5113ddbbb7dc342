"""The API to read, at /docs: Swagger UI, served from here, so that it works without the internet.

Its scripts and styles come with the package fastapi-offline. FastAPI's own page would load them from
elsewhere and start them by an inline script, which our Content-Security-Policy forbids.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from app.errors import MEDIA_TYPE

KEYS = {"type": "http", "scheme": "bearer", "description": "Only where the service has keys."}
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


def document(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """What makes the OpenAPI document: FastAPI's, in which every error is a problem, and keys are told of."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = FastAPI.openapi(app)
            made["components"]["securitySchemes"] = {"HTTPBearer": KEYS}
            for operation in (one for methods in made["paths"].values() for one in methods.values()):
                if "401" in operation["responses"]:
                    operation["security"] = [{"HTTPBearer": []}]
                for status, answer in operation["responses"].items():
                    if status[0] in "45":
                        answer["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
            for unused in ("HTTPValidationError", "ValidationError"):
                made["components"]["schemas"].pop(unused, None)
        return app.openapi_schema or {}

    return openapi


def assets() -> StaticFiles:
    """Swagger UI itself, found without importing the package."""
    spec = find_spec("fastapi_offline")
    if spec is None or spec.origin is None:
        raise RuntimeError("fastapi-offline is not installed: pip install fastapi-offline")
    return StaticFiles(directory=Path(spec.origin).parent / "static")
