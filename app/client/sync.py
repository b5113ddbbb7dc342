"""The synchronous client, for scripts, the demo and the tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import httpx2
from numpy.typing import ArrayLike

from app.client.answers import (
    BUSY,
    LISTENING,
    TRIES,
    EventReader,
    as_trimesh,
    checked,
    ended_early,
    headers_of,
    options_of,
    pause_after,
    sent_once,
)
from app.client.scans import Camera, Files, Scan, form_of, parts_of, parts_of_scans
from app.schemas import ENDED, Completion, CompletionList, MeshFormat, ModelCard, ModelList, Status

if TYPE_CHECKING:
    import trimesh


class Client:
    """Talks to one service. Every method raises ProblemError when the service refuses.

    What fails on the way is tried again, which is safe: submissions carry an Idempotency-Key. `complete`
    waits up to `patience_s` seconds for a place where the service is full.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        timeout_s: float = 30,
        *,
        key: str | None = None,
        patience_s: float = 600,
    ) -> None:
        self.http = httpx2.Client(base_url=url, timeout=timeout_s, headers=headers_of(key))
        self.patience_s = patience_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()

    def complete(
        self,
        scan: Scan | Sequence[Scan],
        *,
        viewpoint: ArrayLike | None = None,
        mask: Files | None = None,
        color_image: Files | None = None,
        intrinsics: Camera | Sequence[Camera] | None = None,
        depth_scale: float | Sequence[float] | None = None,
        camera_to_world: ArrayLike | None = None,
        **options: Any,
    ) -> RemoteCompletion:
        """Submit a scan, and wait for a place where the service is full. The completion is then under way.

        A scan is a path, the bytes of a file, an array (N, 3), or a cloud of Open3D or trimesh; a list holds
        views of one object. `viewpoint` (3,) is the sensor's place in the scan's frame and unit;
        `intrinsics` (3, 3) or fx, fy, cx, cy in pixels; `camera_to_world` (4, 4). Of several views, give one
        for all or one for each, as (N, 4, 4). Options are the API's. Raises ValueError for other shapes.
        """
        files = [*parts_of_scans(scan), *parts_of("mask", mask), *parts_of("color_image", color_image)]
        form = form_of(viewpoint, intrinsics, depth_scale, camera_to_world)
        return RemoteCompletion(self, self._submit(files, form, options, patient=True))

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
        or a list with one for each. Unlike `complete` it does not wait where the service is full.
        """
        files = [
            *parts_of("scan", scan, name),
            *parts_of("mask", mask),
            *parts_of("color_image", color_image),
        ]
        return self._submit(files, dict(form or {}), options)

    def find(self, completion_id: str) -> RemoteCompletion:
        """A completion submitted before."""
        return RemoteCompletion(self, self.status(completion_id))

    def status(self, completion_id: str) -> Completion:
        """How the completion stands."""
        return Completion.model_validate(self._call("GET", f"/v1/completions/{completion_id}").json())

    def completions(
        self, *, status: Status | None = None, model: str | None = None, limit: int = 20
    ) -> list[Completion]:
        """Your newest completions, newest first; `limit` is at most 100."""
        wanted = options_of({"status": status, "model": model, "limit": limit})
        answer = self._call("GET", "/v1/completions", params=wanted)
        return CompletionList.model_validate(answer.json()).completions

    def delete(self, completion_id: str) -> None:
        """Have the scan and all that came of it forgotten; what runs is cancelled first."""
        self._call("DELETE", f"/v1/completions/{completion_id}")

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

    def events(self, completion_id: str) -> Iterator[Completion]:
        """Each state of the completion as the service tells it, until it has ended.

        Where the connection breaks, it is taken up again. Raises httpx2.TransportError when that fails.
        """
        reader, path = EventReader(), f"/v1/completions/{completion_id}/events"
        while True:
            broken: httpx2.TransportError = ended_early()
            try:
                with self.http.stream("GET", path, headers=reader.headers(), timeout=LISTENING) as answer:
                    if not answer.is_success:
                        answer.read()
                        checked(answer)
                    for line in answer.iter_lines():
                        if (now := reader.feed(line)) is not None:
                            yield now
                            if now.status in ENDED:
                                return
            except httpx2.TransportError as error:
                broken = error
            time.sleep(reader.pause_after(broken))

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

    def _submit(
        self, files: list[Any], form: Mapping[str, Any], options: Mapping[str, Any], patient: bool = False
    ) -> Completion:
        more = {"files": files, "data": form, "params": options_of(options), "headers": sent_once()}
        return Completion.model_validate(
            self._call("POST", "/v1/completions", patient=patient, **more).json()
        )

    def _call(self, method: str, path: str, *, patient: bool = False, **more: Any) -> httpx2.Response:
        """Raises httpx2.TransportError when the service could not be reached in several tries."""
        give_up = time.monotonic() + self.patience_s
        for tried in count():
            answer = None
            try:
                answer = self.http.request(method, path, **more)
            except httpx2.TransportError:
                if tried >= TRIES - 1:
                    raise
            busy = answer is not None and patient and answer.status_code in BUSY
            if answer is not None and not (busy and time.monotonic() < give_up):
                return checked(answer)
            time.sleep(pause_after(answer, tried))
        raise AssertionError("the loop ends by an answer or an error")


@dataclass
class RemoteCompletion:
    """A completion of the service, with what one can ask of it."""

    client: Client
    now: Completion  # as last heard

    @property
    def id(self) -> str:
        """32 hexadecimal digits."""
        return self.now.id

    def wait(
        self, callback: Callable[[Completion], None] | None = None, *, timeout_s: float = 600
    ) -> RemoteCompletion:
        """Itself, once it has ended. Raises TimeoutError."""
        self.now = self.client.wait(self.id, callback, timeout_s=timeout_s)
        return self

    def events(self) -> Iterator[Completion]:
        """Each of its states as the service tells it, until it has ended."""
        for now in self.client.events(self.id):
            self.now = now
            yield now

    def mesh(self, sample: int = 0) -> trimesh.Trimesh:
        """The mesh, or an alternative, in the scan's frame and unit. Raises ProblemError if there is none."""
        return as_trimesh(self.file("ply", sample))

    def file(self, format: MeshFormat = "glb", sample: int = 0) -> bytes:
        """The mesh, or an alternative, as a file."""
        return self.client.mesh(self.id, format=format, sample=sample)

    def report(self) -> dict[str, Any]:
        """The whole report."""
        return self.client.report(self.id)

    def cancel(self) -> RemoteCompletion:
        """End it early."""
        self.now = self.client.cancel(self.id)
        return self
