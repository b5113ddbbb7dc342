"""The contract: what goes over the wire, and between the API and the worker."""

from __future__ import annotations

import hashlib
import json
import math
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from app import examples

UP_WORDS = ("auto", "+y", "-y", "+z", "-z", "+x", "-x")
MeshFormat = Literal["glb", "ply", "obj", "stl"]
MESH_FORMATS: tuple[MeshFormat, ...] = ("glb", "ply", "obj", "stl")
MAX_SAMPLES = 8
MAX_WAIT_S = 60
Status = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]
ENDED: tuple[Status, ...] = ("succeeded", "failed", "cancelled", "expired")


def _checked_up(text: str) -> str:
    """One of the words, or a direction as JSON text. Raises ValueError."""
    if text in UP_WORDS:
        return text
    try:
        direction = [float(x) for x in json.loads(text)]
    except (ValueError, TypeError, OverflowError, RecursionError):
        direction = []
    length = math.hypot(*direction)
    if len(direction) != 3 or not 1e-9 < length < 1e9:
        raise ValueError(f"must be one of {', '.join(UP_WORDS)}, or a direction [x, y, z]")
    return json.dumps(direction)


Up = Annotated[str, AfterValidator(_checked_up)]


class CompletionOptions(BaseModel):
    """Query parameters of a completion; each is a keyword of `Completer.complete` but for a few.

    `model` says whose `complete`, from `start_from` the worker takes the code for `start`, `draco` is for
    its files, and `priority` for the queue.
    """

    model_config = ConfigDict(extra="forbid")

    model: str = Field(default="chairs", min_length=1, max_length=100, description="Name of a trained model.")
    pose: Literal["canonical", "upright", "free"] = Field(
        default="upright",
        description="What is found beside place and size. canonical: nothing, the front is +z once up is "
        "+y; upright: the turn about up; free: any turn.",
    )
    up: Up = Field(
        default="auto",
        max_length=200,
        description="Axis of the scan that points up, or a direction [x, y, z]. auto: +y, or -y for a depth "
        "map without a pose.",
    )
    solver: Literal["lm", "adam"] = Field(
        default="lm", description="How the latent code is fitted: Levenberg-Marquardt or Adam."
    )
    refine: bool = Field(default=True, description="Whether the surface is drawn onto the observed points.")
    samples: int = Field(
        default=0, ge=0, le=MAX_SAMPLES, description="Alternative completions that fit the scan as well."
    )
    remove_plane: bool = Field(
        default=False, description="Whether a floor or table under the object is found and cut away."
    )
    resolution: int = Field(
        default=128, ge=32, le=512, description="Grid cells per axis of the surface extraction."
    )
    components: Literal["main", "largest", "all"] = Field(
        default="main",
        description="Which connected parts of the mesh are kept: main leaves out crumbs, of less than a "
        "hundredth of the largest part's area, and detached parts of which the scan shows nothing.",
    )
    target_faces: int | None = Field(
        default=None, ge=100, le=10_000_000, description="Simplify the mesh to about so many faces."
    )
    color: Literal["scan", "uncertainty", "none"] = Field(
        default="scan", description="What colours the mesh: the scan's colours, how sure it is, or nothing."
    )
    draco: bool = Field(
        default=False, description="Whether the GLB is compressed with Draco; it then has no deviations."
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="The same seed and scan give the same mesh.")
    start_from: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{32}$",
        description="Id of a succeeded completion of the same model, whose latent code the fit starts from.",
    )
    priority: Literal["high", "normal", "low"] = Field(
        default="normal", description="Which of the waiting completions go first."
    )


def _checked_url(text: str) -> str:
    """An address that a webhook may have. Raises ValueError."""
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname or url.username is not None or url.port == 0:
        raise ValueError("must be an address such as https://example.org/hook, without a user in it")
    return text


class Submission(CompletionOptions):
    """Query parameters of `POST /v1/completions`: those of the completion, and what else the API is to do."""

    webhook_url: Annotated[str, AfterValidator(_checked_url)] | None = Field(
        default=None, max_length=2000, description="Address that is told, signed, when it has ended."
    )

    def options(self) -> CompletionOptions:
        """Those of the completion alone."""
        fields = CompletionOptions.model_fields
        return CompletionOptions.model_construct(**{name: getattr(self, name) for name in fields})


class CompletionError(BaseModel):
    """Why a completion failed."""

    code: str
    detail: str


class Outcome(BaseModel):
    """How a completion ended: what the worker's task returns, for expected endings too."""

    status: Literal["succeeded", "failed", "cancelled"]
    report: dict[str, Any] | None = None
    error: CompletionError | None = None


class WebhookAttempt(BaseModel):
    """One attempt to tell a webhook."""

    at: datetime
    status: int | None = Field(default=None, description="HTTP status of the answer, if there was one.")
    error: str | None = Field(default=None, description="Why there was no answer.")


class Webhook(BaseModel):
    """Who wants to be told of the end, and how that went."""

    url: str
    state: Literal["waiting", "delivered", "failed"] = "waiting"
    attempts: list[WebhookAttempt] = []


class Links(BaseModel):
    """Where to go from here, as paths on this server."""

    self: str
    events: str
    scan: str
    preview: str
    mesh: str
    report: str
    latent: str
    picture: str
    cancel: str

    @classmethod
    def of(cls, completion_id: str) -> Links:
        """Those of a completion."""
        here = f"/v1/completions/{completion_id}"
        return cls(
            self=here,
            events=f"{here}/events",
            scan=f"{here}/scan",
            preview=f"{here}/preview",
            mesh=f"{here}/mesh",
            report=f"{here}/report",
            latent=f"{here}/latent",
            picture=f"{here}/preview.png",
            cancel=f"{here}/cancel",
        )


class Shown(BaseModel):
    """What is asked for again and again as it stands: written out once. It is not changed after that."""

    @cached_property
    def body(self) -> bytes:
        """As it goes over the wire."""
        return self.model_dump_json().encode()

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits that tell one state from another."""
        return hashlib.sha256(self.body).hexdigest()[:32]


class Completion(Shown):
    """One completion, as the API shows it."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.COMPLETION]})

    id: str
    status: Status
    options: CompletionOptions
    phase: str | None = Field(
        default=None,
        description="What a running completion does: read, observe, fit, refine, mesh or export.",
    )
    step: int = 0
    steps: int = 0
    residual: float | None = Field(
        default=None, description="Mean misfit to what was observed, in radii of the scan."
    )
    progress: float = Field(default=0.0, ge=0, le=1)
    preview: int = Field(
        default=0, description="Grows with each coarse mesh while it runs; 0: there is none yet."
    )
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
        default=None, description="Of a succeeded completion: how well it fits, without long arrays."
    )
    error: CompletionError | None = Field(default=None, description="Of a failed completion: why.")
    webhook: Webhook | None = Field(default=None, description="Where `webhook_url` was given.")
    links: Links
    owner: str = Field(default="", exclude=True)


class Look(BaseModel):
    """Query parameters of a look at one completion or interpolation."""

    wait: float = Field(
        default=0, ge=0, le=MAX_WAIT_S, description="Seconds to wait for its end before answering."
    )


class ListOptions(BaseModel):
    """Query parameters of lists."""

    status: Status | None = Field(default=None, description="Only those that stand so.")
    model: str | None = Field(default=None, description="Only those of this model.")
    limit: int = Field(default=20, ge=1, le=100, description="Most entries in the answer.")
    cursor: str | None = Field(
        default=None, pattern="^[0-9a-f]{32}$", description="As an earlier answer gave it."
    )


class CompletionList(BaseModel):
    """A page of completions, newest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.COMPLETION_LIST]})

    completions: list[Completion]
    cursor: str | None = Field(default=None, description="Where the next page begins; null on the last one.")


class InterpolationEnd(BaseModel):
    """Where an interpolation begins or ends: at a completion or at a training shape."""

    model_config = ConfigDict(extra="forbid")

    completion: str | None = Field(
        default=None, pattern="^[0-9a-f]{32}$", description="Id of a succeeded completion of the model."
    )
    shape: str | None = Field(default=None, max_length=200, description="Name of a training shape.")

    @model_validator(mode="after")
    def _one_of_both(self) -> InterpolationEnd:
        if (self.completion is None) == (self.shape is None):
            raise ValueError("give either `completion` or `shape`")
        return self


class InterpolationOptions(BaseModel):
    """Body of `POST /v1/interpolations`."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [examples.INTERPOLATION_OPTIONS]}
    )

    model: str = Field(default="chairs", min_length=1, max_length=100, description="Name of a trained model.")
    start: InterpolationEnd
    end: InterpolationEnd
    count: int = Field(default=8, ge=2, le=32, description="Meshes, those of both ends included.")
    resolution: int = Field(default=96, ge=32, le=256, description="Grid cells per axis of each mesh.")


class InterpolationLinks(BaseModel):
    """Where to go from here, as paths on this server."""

    self: str
    events: str
    mesh: str
    cancel: str

    @classmethod
    def of(cls, interpolation_id: str) -> InterpolationLinks:
        """Those of an interpolation."""
        here = f"/v1/interpolations/{interpolation_id}"
        return cls(self=here, events=f"{here}/events", mesh=f"{here}/mesh", cancel=f"{here}/cancel")


class Interpolation(Shown):
    """The way from one latent code to another, as meshes in the model's canonical frame."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.INTERPOLATION]})

    id: str
    status: Status
    options: InterpolationOptions
    progress: float = Field(default=0.0, ge=0, le=1)
    queue_position: int | None = None
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    error: CompletionError | None = None
    links: InterpolationLinks
    owner: str = Field(default="", exclude=True)


class InterpolationList(BaseModel):
    """A page of interpolations, newest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.INTERPOLATION_LIST]})

    interpolations: list[Interpolation]
    cursor: str | None = Field(default=None, description="Where the next page begins; null on the last one.")


Entry = Completion | Interpolation
"""What the queue holds."""

Kind = TypeVar("Kind", Completion, Interpolation)
"""One of both, where it must be told which."""


class Latent(BaseModel):
    """A latent code, and what it is a code of."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.LATENT]})

    model: str
    checkpoint_digest: str = Field(description="SHA-256 of the decoder's weights: codes are of no other.")
    code: list[float]
    scan_to_canonical: list[list[float]] = Field(description="4x4, from the scan's frame to the decoder's.")


class ProblemItem(BaseModel):
    """One of several errors in a request."""

    pointer: str
    detail: str


class Problem(BaseModel):
    """An error, as RFC 9457 (application/problem+json) has it."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.PROBLEM]})

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str
    code: str = Field(description="A stable word for programs; `detail` is for people.")
    request_id: str = Field(default="", description="As in X-Request-ID: what to name to the operator.")
    errors: list[ProblemItem] = []


class ModelCard(BaseModel):
    """A trained model; further fields of its card.json pass through."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [examples.MODEL]})

    name: str
    description: str = ""
    category: str = ""


class ModelList(BaseModel):
    """The trained models that a completion may name."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.MODEL_LIST]})

    models: list[ModelCard]
