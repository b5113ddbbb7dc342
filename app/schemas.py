"""The contract: what goes over the wire, and between the API and the worker."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Up = Literal["auto", "+y", "-y", "+z", "-z", "+x", "-x"]
Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
ENDED: tuple[Status, ...] = ("succeeded", "failed", "cancelled")


class CompletionOptions(BaseModel):
    """Query parameters of a completion; each but `model` is a keyword of `Completer.complete`."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(default="chairs", min_length=1, max_length=100, description="Name of a trained model.")
    up: Up = Field(
        default="auto",
        description="Axis of the scan that points up. auto: +y, or -y for a depth map without a pose.",
    )
    solver: Literal["lm", "adam"] = Field(
        default="lm", description="How the latent code is fitted: Levenberg-Marquardt or Adam."
    )
    resolution: int = Field(
        default=128, ge=32, le=256, description="Grid cells per axis of the surface extraction."
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="The same seed and scan give the same mesh.")


class CompletionError(BaseModel):
    """Why a completion failed."""

    code: str
    detail: str


class Outcome(BaseModel):
    """How a completion ended: what the worker's task returns, for expected endings too."""

    status: Literal["succeeded", "failed", "cancelled"]
    report: dict[str, Any] | None = None
    error: CompletionError | None = None


class Links(BaseModel):
    """Where to go from here, as paths on this server."""

    self: str
    mesh: str
    cancel: str


class Completion(BaseModel):
    """One completion, as the API shows it."""

    id: str
    status: Status
    options: CompletionOptions
    phase: str | None = Field(
        default=None, description="What a running completion does: read, observe, fit or mesh."
    )
    step: int = 0
    steps: int = 0
    residual: float | None = Field(
        default=None, description="Mean misfit to what was observed, in radii of the scan."
    )
    progress: float = Field(default=0.0, ge=0, le=1)
    queue_position: int | None = Field(
        default=None, description="1 is the next one; null once it has left the queue."
    )
    attempt: int = Field(
        default=1, description="Above 1 when a worker broke and the completion started again."
    )
    warnings: list[str] = Field(default=[], description="What was left out of the scan, and why.")
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    report: dict[str, Any] | None = Field(
        default=None, description="Of a succeeded completion: how well it fits."
    )
    error: CompletionError | None = Field(default=None, description="Of a failed completion: why.")
    links: Links


class ProblemItem(BaseModel):
    """One of several errors in a request."""

    pointer: str
    detail: str


class Problem(BaseModel):
    """An error, as RFC 9457 (application/problem+json) has it."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str
    code: str = Field(description="A stable word for programs; `detail` is for people.")
    errors: list[ProblemItem] = []


class ModelCard(BaseModel):
    """A trained model; further fields of its card.json pass through."""

    model_config = ConfigDict(extra="allow")

    name: str
    description: str = ""
    category: str = ""


class ModelList(BaseModel):
    """The trained models that a completion may name."""

    models: list[ModelCard]
