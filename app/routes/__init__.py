"""The endpoints: parse, delegate, answer. Everything under /v1 needs an API key where there are keys."""

from fastapi import Depends, FastAPI

from app import access
from app.routes import completions, events, health, interpolations, models, results, submission
from app.routes.answers import described


def install(app: FastAPI) -> None:
    """All of them. Each router stands directly in the application: every one around it costs each request."""
    for router in (completions.looks, submission.router):  # they ask for the key themselves
        app.include_router(router, prefix="/v1", responses=described(401))
    keys = [Depends(access.owner)]
    for part in (completions, events, results, interpolations, models):
        app.include_router(part.router, prefix="/v1", dependencies=keys, responses=described(401))
    app.include_router(health.router)
