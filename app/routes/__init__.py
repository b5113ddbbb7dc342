"""The endpoints: parse, delegate, answer. Everything under /v1 needs an API key where there are keys."""

from fastapi import APIRouter, Depends

from app import access
from app.routes import completions, events, health, interpolations, models, results, submission
from app.routes.answers import described

v1 = APIRouter(prefix="/v1", dependencies=[Depends(access.owner)], responses=described(401))
for part in (submission, completions, events, results, interpolations, models):
    v1.include_router(part.router)

router = APIRouter()
router.include_router(v1)
router.include_router(health.router)
