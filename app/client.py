"""A small synchronous client, for scripts, the demo and the tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from app.schemas import ENDED, Completion, MeshFormat, ModelCard, ModelList, Problem

Files = Path | bytes | Sequence[Path | bytes]


class ProblemError(Exception):
    """The service answered with a problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.status} {problem.code}: {problem.detail}")
        self.problem = problem


class Client:
    """Talks to one service. Every method raises ProblemError when the service refuses."""

    def __init__(self, url: str = "http://127.0.0.1:8000", timeout_s: float = 30) -> None:
        self.http = httpx2.Client(base_url=url, timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()

    def submit(
        self,
        scan: Files,
        name: str | Sequence[str] | None = None,
        *,
        mask: Files | None = None,
        color_image: Files | None = None,
        form: Mapping[str, str | Sequence[str]] | None = None,
        **options: Any,
    ) -> Completion:
        """Send a scan of one file or several, with a mask and a colour image for each depth map if you like.

        `form` holds viewpoint, intrinsics, depth_scale and camera_to_world as JSON texts: one for all files,
        or a list with one for each.
        """
        files = [*_parts("scan", scan, name), *_parts("mask", mask), *_parts("color_image", color_image)]
        given = {option: value for option, value in options.items() if value is not None}
        answer = self._call("POST", "/v1/completions", files=files, data=dict(form or {}), params=given)
        return Completion.model_validate(answer.json())

    def status(self, completion_id: str) -> Completion:
        """How the completion stands."""
        return Completion.model_validate(self._call("GET", f"/v1/completions/{completion_id}").json())

    def wait(
        self,
        completion_id: str,
        callback: Callable[[Completion], None] | None = None,
        *,
        timeout_s: float = 600,
        interval_s: float = 0.25,
    ) -> Completion:
        """Ask again and again until the completion has ended. Raises TimeoutError."""
        give_up = time.monotonic() + timeout_s
        while time.monotonic() < give_up:
            completion = self.status(completion_id)
            if callback is not None:
                callback(completion)
            if completion.status in ENDED:
                return completion
            time.sleep(interval_s)
        raise TimeoutError(f"completion {completion_id} has not ended after {timeout_s:g} s")

    def mesh(self, completion_id: str, *, format: MeshFormat = "glb", sample: int = 0) -> bytes:
        """The completed mesh, or the alternative 1, 2, … to it."""
        path = f"/v1/completions/{completion_id}/mesh"
        return self._call("GET", path, params={"format": format, "sample": sample}).content

    def report(self, completion_id: str) -> dict[str, Any]:
        """The whole report, with the arrays that the status leaves out."""
        report: dict[str, Any] = self._call("GET", f"/v1/completions/{completion_id}/report").json()
        return report

    def cancel(self, completion_id: str) -> Completion:
        """End a completion early."""
        return Completion.model_validate(self._call("POST", f"/v1/completions/{completion_id}/cancel").json())

    def models(self) -> list[ModelCard]:
        """The trained models."""
        return ModelList.model_validate(self._call("GET", "/v1/models").json()).models

    def is_ready(self) -> bool:
        """Whether a completion submitted now would be worked on; False also while nobody answers."""
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    def _call(self, method: str, path: str, **more: Any) -> httpx2.Response:
        answer = self.http.request(method, path, **more)
        if answer.is_success:
            return answer
        if answer.headers.get("content-type", "").startswith("application/problem+json"):
            raise ProblemError(Problem.model_validate(answer.json()))
        return answer.raise_for_status()


def _parts(
    field: str, files: Files | None, names: str | Sequence[str] | None = None
) -> list[tuple[str, tuple[str, bytes]]]:
    """The parts of a form that hold files."""
    several = [] if files is None else [files] if isinstance(files, Path | bytes) else list(files)
    own = [file.name if isinstance(file, Path) else field for file in several]
    called = own if names is None else [names] if isinstance(names, str) else list(names)
    data = [file.read_bytes() if isinstance(file, Path) else file for file in several]
    return [(field, part) for part in zip(called, data, strict=True)]
