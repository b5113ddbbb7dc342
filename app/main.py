"""The web application, put together. Importing it needs no Redis and loads no torch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app import errors, logs, page, reference, routes, tracing
from app.middleware import Named, Sheltered
from app.queue import CompletionQueue, connect
from app.service import Service
from app.settings import BadSettings, Settings, get_settings

DESCRIPTION = "Completes partial 3D scans of an object with DeepSDF: points or a depth map in, a mesh out."


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """What begins and ends with the process."""
    service: Service = app.state.service
    service.housekeeper.start()
    service.readers.warm_up()
    yield
    service.housekeeper.stop()
    service.queue.close_wires()


def _own_settings() -> Settings:
    try:
        return get_settings()
    except BadSettings as error:
        raise SystemExit(f"the API cannot start: {error}") from None


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application under the given settings, else, as a process of its own, those of the environment."""
    own_process = settings is None
    if settings is None:
        settings = _own_settings()
        logs.configure("api")
    app = FastAPI(
        title="DeepSDF completion service",
        version="0.1.0",
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        telemetry={"auto_configure": own_process and tracing.is_wanted(), "logs": False},
    )
    app.state.service = Service(settings, CompletionQueue(connect(settings, patience_s=3), settings))
    routes.install(app)
    app.include_router(reference.router)
    app.mount("/docs/assets", reference.assets())
    page.install(app)
    # From the innermost to the outermost.
    app.add_middleware(errors.BodyLimit, limit=settings.max_body_bytes)
    app.add_middleware(Sheltered, open_to_all=bool(settings.api_keys) or settings.allow_without_keys)
    app.add_middleware(Named)
    errors.install(app)
    app.openapi = reference.document(app)  # type: ignore[method-assign]
    return app
