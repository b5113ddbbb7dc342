"""The same client for asyncio: what `Client` does, with `await`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
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


class AsyncClient:
    """Talks to one service. Every method raises ProblemError when the service refuses."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        timeout_s: float = 30,
        *,
        key: str | None = None,
        patience_s: float = 600,
    ) -> None:
        self.http = httpx2.AsyncClient(base_url=url, timeout=timeout_s, headers=headers_of(key))
        self.patience_s = patience_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.http.aclose()

    async def complete(
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
    ) -> AsyncCompletion:
        """Submit a scan, and wait for a place where the service is full; see `Client.complete`."""
        files = [*parts_of_scans(scan), *parts_of("mask", mask), *parts_of("color_image", color_image)]
        form = form_of(viewpoint, intrinsics, depth_scale, camera_to_world)
        more = {"files": files, "data": form, "params": options_of(options), "headers": sent_once()}
        answer = await self._call("POST", "/v1/completions", patient=True, **more)
        return AsyncCompletion(self, Completion.model_validate(answer.json()))

    async def find(self, completion_id: str) -> AsyncCompletion:
        """A completion submitted before."""
        return AsyncCompletion(self, await self.status(completion_id))

    async def status(self, completion_id: str) -> Completion:
        """How the completion stands."""
        answer = await self._call("GET", f"/v1/completions/{completion_id}")
        return Completion.model_validate(answer.json())

    async def completions(
        self, *, status: Status | None = None, model: str | None = None, limit: int = 20
    ) -> list[Completion]:
        """Your newest completions, newest first; `limit` is at most 100."""
        wanted = options_of({"status": status, "model": model, "limit": limit})
        answer = await self._call("GET", "/v1/completions", params=wanted)
        return CompletionList.model_validate(answer.json()).completions

    async def delete(self, completion_id: str) -> None:
        """Have the scan and all that came of it forgotten; what runs is cancelled first."""
        await self._call("DELETE", f"/v1/completions/{completion_id}")

    async def wait(
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
            completion = await self.status(completion_id)
            if callback is not None:
                callback(completion)
            if completion.status in ENDED:
                return completion
            await asyncio.sleep(interval_s)
        raise TimeoutError(f"completion {completion_id} has not ended after {timeout_s:g} s")

    async def events(self, completion_id: str) -> AsyncIterator[Completion]:
        """Each state of the completion as the service tells it, until it has ended.

        Where the connection breaks, it is taken up again. Raises httpx2.TransportError when that fails.
        """
        reader, path = EventReader(), f"/v1/completions/{completion_id}/events"
        while True:
            broken: httpx2.TransportError = ended_early()
            try:
                more: Any = {"headers": reader.headers(), "timeout": LISTENING}
                async with self.http.stream("GET", path, **more) as answer:
                    if not answer.is_success:
                        await answer.aread()
                        checked(answer)
                    async for line in answer.aiter_lines():
                        if (now := reader.feed(line)) is not None:
                            yield now
                            if now.status in ENDED:
                                return
            except httpx2.TransportError as error:
                broken = error
            await asyncio.sleep(reader.pause_after(broken))

    async def mesh(self, completion_id: str, *, format: MeshFormat = "glb", sample: int = 0) -> bytes:
        """The completed mesh, or the alternative 1, 2, … to it."""
        path = f"/v1/completions/{completion_id}/mesh"
        return (await self._call("GET", path, params={"format": format, "sample": sample})).content

    async def report(self, completion_id: str) -> dict[str, Any]:
        """The whole report, with the arrays that the status leaves out."""
        answer = await self._call("GET", f"/v1/completions/{completion_id}/report")
        report: dict[str, Any] = answer.json()
        return report

    async def cancel(self, completion_id: str) -> Completion:
        """End a completion early."""
        answer = await self._call("POST", f"/v1/completions/{completion_id}/cancel")
        return Completion.model_validate(answer.json())

    async def models(self) -> list[ModelCard]:
        """The trained models."""
        return ModelList.model_validate((await self._call("GET", "/v1/models")).json()).models

    async def _call(self, method: str, path: str, *, patient: bool = False, **more: Any) -> httpx2.Response:
        """Raises httpx2.TransportError when the service could not be reached in several tries."""
        give_up = time.monotonic() + self.patience_s
        for tried in count():
            answer = None
            try:
                answer = await self.http.request(method, path, **more)
            except httpx2.TransportError:
                if tried >= TRIES - 1:
                    raise
            busy = answer is not None and patient and answer.status_code in BUSY
            if answer is not None and not (busy and time.monotonic() < give_up):
                return checked(answer)
            await asyncio.sleep(pause_after(answer, tried))
        raise AssertionError("the loop ends by an answer or an error")


@dataclass
class AsyncCompletion:
    """A completion of the service, with what one can ask of it."""

    client: AsyncClient
    now: Completion  # as last heard

    @property
    def id(self) -> str:
        """32 hexadecimal digits."""
        return self.now.id

    async def wait(
        self, callback: Callable[[Completion], None] | None = None, *, timeout_s: float = 600
    ) -> AsyncCompletion:
        """Itself, once it has ended. Raises TimeoutError."""
        self.now = await self.client.wait(self.id, callback, timeout_s=timeout_s)
        return self

    async def events(self) -> AsyncIterator[Completion]:
        """Each of its states as the service tells it, until it has ended."""
        async for now in self.client.events(self.id):
            self.now = now
            yield now

    async def mesh(self, sample: int = 0) -> trimesh.Trimesh:
        """The mesh, or an alternative, in the scan's frame and unit. Raises ProblemError if there is none."""
        return as_trimesh(await self.file("ply", sample))

    async def file(self, format: MeshFormat = "glb", sample: int = 0) -> bytes:
        """The mesh, or an alternative, as a file."""
        return await self.client.mesh(self.id, format=format, sample=sample)

    async def report(self) -> dict[str, Any]:
        """The whole report."""
        return await self.client.report(self.id)

    async def cancel(self) -> AsyncCompletion:
        """End it early."""
        self.now = await self.client.cancel(self.id)
        return self
