"""The trained models."""

from __future__ import annotations

from fastapi import APIRouter

from app.access import TheService
from app.errors import ProblemRaised
from app.routes.answers import described
from app.schemas import ModelCard, ModelList

router = APIRouter(prefix="/models", tags=["models"])


@router.get("")
def models(service: TheService) -> ModelList:
    """The trained models."""
    return ModelList(models=service.models())


@router.get("/{name}", responses=described(404))
def model(service: TheService, name: str) -> ModelCard:
    """One trained model: what it was trained on and how."""
    if (card := service.model(name)) is None:
        raise ProblemRaised(404, "unknown_model", f"There is no model {name!r}. See /v1/models.")
    return card
