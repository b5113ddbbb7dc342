"""Follows completions for everyone in this process who waits: one look at the queue serves them all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from starlette.concurrency import run_in_threadpool

from app.schemas import ENDED, Entry, Kind

log = logging.getLogger(__name__)

INTERVAL_S = 0.1

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


@dataclass
class _Watched:
    """A completion or interpolation as last seen, and those who wait for it to change."""

    latest: Entry | None = None
    changes: int = 0
    audience: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def see(self, now: Entry | None) -> None:
        if self.changes and now == self.latest:
            return
        self.latest, self.changes = now, self.changes + 1
        self.changed.set()
        self.changed = asyncio.Event()


class Watcher:
    """Looks at all that is watched together, ten times a second, and not at all when there are none."""

    def __init__(self, look: Callable[[Sequence[str]], list[Entry | None]]) -> None:
        self.look = look
        self.watched: dict[str, _Watched] = {}
        self.looking: asyncio.Task[None] | None = None

    async def follow(self, entry_id: str) -> AsyncIterator[Entry | None]:
        """One as it stands, then after each change, until it has ended; None if it is unknown."""
        watched = self._join(entry_id)
        try:
            seen = 0
            while True:
                while watched.changes == seen:
                    await watched.changed.wait()
                seen, now = watched.changes, watched.latest
                yield now
                if now is None or now.status in ENDED:
                    return
        finally:
            self._leave(entry_id, watched)

    async def ended(self, kind: type[Kind], entry_id: str, patience_s: float) -> Kind | None:
        """It, once it has ended, or as it stands after `patience_s`; None if it is unknown."""
        latest: Entry | None = None
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                async for now in self.follow(entry_id):
                    latest = now
        return latest if isinstance(latest, kind) else None

    def _join(self, entry_id: str) -> _Watched:
        watched = self.watched.setdefault(entry_id, _Watched())
        watched.audience += 1
        if self.looking is None or self.looking.done():
            self.looking = asyncio.create_task(self._keep_looking())
        return watched

    def _leave(self, entry_id: str, watched: _Watched) -> None:
        watched.audience -= 1
        if not watched.audience:
            self.watched.pop(entry_id, None)

    async def _keep_looking(self) -> None:
        while self.watched:
            ids = list(self.watched)
            try:
                found = await run_in_threadpool(self.look, ids)
            except Exception as error:  # the queue is away: whoever waits goes on waiting
                log.warning("cannot look at the queue: %s", error)
                await asyncio.sleep(1)
                continue
            for entry_id, entry in zip(ids, found, strict=True):
                if watched := self.watched.get(entry_id):
                    watched.see(entry)
            await asyncio.sleep(INTERVAL_S)


class Gathered(Generic[Asked, Answer]):
    """Work that is done for many at once: while one batch is out, the next one gathers.

    A thread does it, of which there is one at a time: a hop to it and a round trip to the queue cost many
    askers little more than one.
    """

    def __init__(self, work: Callable[[list[Asked]], Sequence[Answer | Exception]]) -> None:
        self.work = work
        self.waiting: list[tuple[Asked, asyncio.Future[Answer]]] = []
        self.working: asyncio.Task[None] | None = None

    async def ask(self, asked: Asked) -> Answer:
        """What the work makes of it, begun now or later, never earlier. Raises what it raises, or answers."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.waiting.append((asked, answer))
        if self.working is None or self.working.done():
            self.working = asyncio.create_task(self._keep_working())
        return await answer

    async def _keep_working(self) -> None:
        while batch := self.waiting:
            self.waiting = []
            try:
                results = await run_in_threadpool(self.work, [asked for asked, _ in batch])
            except Exception as error:
                results = [error] * len(batch)
            for (_, answer), result in zip(batch, results, strict=True):
                if answer.done():  # who asked has left
                    continue
                if isinstance(result, Exception):
                    answer.set_exception(result)
                else:
                    answer.set_result(result)
