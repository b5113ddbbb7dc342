"""Follows completions for everyone in this process who waits: one look at the queue serves them all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from app.schemas import ENDED, Entry, Kind

log = logging.getLogger(__name__)

INTERVAL_S = 0.1


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

    def __init__(self, look: Callable[[Sequence[str]], Awaitable[list[Entry | None]]]) -> None:
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
                found = await self.look(ids)
            except Exception as error:  # the queue is away: whoever waits goes on waiting
                log.warning("cannot look at the queue: %s", error)
                await asyncio.sleep(1)
                continue
            for entry_id, entry in zip(ids, found, strict=True):
                if watched := self.watched.get(entry_id):
                    watched.see(entry)
            await asyncio.sleep(INTERVAL_S)
