"""Requests and answers that the synchronous and the asynchronous client share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx2

from app.schemas import Completion, Problem

if TYPE_CHECKING:
    import trimesh

TRIES = 4
LONGEST_PAUSE_S = 10.0
BUSY = (429, 503)


class ProblemError(Exception):
    """The service answered with a problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.status} {problem.code}: {problem.detail}")
        self.problem = problem


def headers_of(key: str | None) -> dict[str, str]:
    """What goes with every request."""
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def sent_once() -> dict[str, str]:
    """A header that makes a submission safe to repeat: the service starts nothing twice for one key."""
    return {"Idempotency-Key": uuid4().hex}


def checked(answer: httpx2.Response) -> httpx2.Response:
    """The answer, if it is one. Raises ProblemError, or httpx2.HTTPStatusError where others answered."""
    if answer.is_success:
        return answer
    if answer.headers.get("content-type", "").startswith("application/problem+json"):
        raise ProblemError(Problem.model_validate(answer.json()))
    return answer.raise_for_status()


def pause_after(answer: httpx2.Response | None, tried: int) -> float:
    """Seconds to wait before the next try: what the service asks for, else ever longer."""
    asked = "" if answer is None else answer.headers.get("retry-after", "")
    return min(float(asked) if asked.isdigit() else 0.2 * 2**tried, LONGEST_PAUSE_S)


def options_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options for the query; None means the service's default."""
    return {name: value for name, value in options.items() if value is not None}


LISTENING = httpx2.Timeout(30, read=60)
"""The service says something at least every 15 s."""


@dataclass
class EventReader:
    """Server-sent events, line by line, over connections that may break."""

    data: list[str] = field(default_factory=list)
    last_id: str = ""
    breaks: int = 0  # since the last event

    def feed(self, line: str) -> Completion | None:
        """The completion of an event that this line ends, if it carries one."""
        name, _, value = line.partition(":")
        if name == "id":
            self.last_id = value.strip()
        if name == "data":
            self.data.append(value.removeprefix(" "))
        if line.strip() or not self.data:
            return None
        told, self.data, self.breaks = "\n".join(self.data), [], 0
        return Completion.model_validate_json(told)

    def headers(self) -> dict[str, str]:
        """What tells the service where to go on."""
        return {"Last-Event-ID": self.last_id} if self.last_id else {}

    def pause_after(self, broken: httpx2.TransportError) -> float:
        """Seconds to wait before the next connection. Raises `broken` when several have told nothing."""
        self.data, self.breaks = [], self.breaks + 1
        if self.breaks >= TRIES:
            raise broken
        return pause_after(None, self.breaks)


def ended_early() -> httpx2.TransportError:
    """The events are over, and the completion is not."""
    return httpx2.RemoteProtocolError("the events ended before the completion did")


def as_trimesh(ply: bytes) -> trimesh.Trimesh:
    """A mesh in the scan's frame and unit, with `vertex_attributes["deviation"]` where there are deviations.

    It is read from PLY: the GLB would be turned upright.
    """
    import io

    import trimesh

    mesh = trimesh.load_mesh(io.BytesIO(ply), file_type="ply", process=False)
    raw = mesh.metadata.pop("_ply_raw")["vertex"][
        "data"
    ]  # where trimesh leaves properties it has no word for
    if "deviation" in raw.dtype.names:
        mesh.vertex_attributes["deviation"] = raw["deviation"].ravel()
    return mesh
