"""Work that costs many askers at once little more than one (decision 26)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Gathered(Generic[Asked, Answer]):
    """Work that is done for all who ask: while one batch is out, the next one gathers."""

    def __init__(self, work: Callable[[list[Asked]], Awaitable[Sequence[Answer | Exception]]]) -> None:
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
                results = await self.work([asked for asked, _ in batch])
            except Exception as error:
                results = [error] * len(batch)
            for (_, answer), result in zip(batch, results, strict=True):
                if answer.done():  # who asked has left
                    continue
                if isinstance(result, Exception):
                    answer.set_exception(result)
                else:
                    answer.set_result(result)
