"""The web application, put together. Importing it needs no Redis and loads no torch."""

from __future__ import annotations

from fastapi import FastAPI

from app import errors
from app.queue import CompletionQueue, connect
from app.routes import router
from app.service import Service
from app.settings import Settings, get_settings

DESCRIPTION = "Completes partial 3D scans of an object with DeepSDF: points or a depth map in, a mesh out."


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application under the given settings, else under those of the environment."""
    settings = settings or get_settings()
    app = FastAPI(title="DeepSDF completion service", version="0.1.0", description=DESCRIPTION)
    app.state.service = Service(settings, CompletionQueue(connect(settings, patience_s=3), settings))
    app.include_router(router)
    app.add_middleware(errors.BodyLimit, limit=settings.max_body_bytes)
    errors.install(app)
    return app
