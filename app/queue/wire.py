"""How an event loop asks the queue: over a connection of its own, with no thread in between (decision 34).

What the wire could not get, the patient client waits for in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import hiredis
from redis import Redis
from redis.commands.core import Script
from redis.connection import Connection, UnixDomainSocketConnection

PATIENCE_S = 5.0
"""For a connection and an answer."""

T = TypeVar("T", covariant=True)
Word = str | bytes | int | float
MORE = object()
"""An answer has not come in whole."""


class _Talk(asyncio.Protocol):
    """One connection: one question after the other."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.reader = hiredis.Reader(notEnoughData=MORE)
        self.answer: asyncio.Future[Any] | None = None

    async def ask(self, *command: Word) -> Any:
        """The answer. Raises OSError, or ReplyError where the queue answers with an error."""
        if self.transport.is_closing():
            raise ConnectionError("it broke a moment ago")
        self.answer = self.loop.create_future()
        self.transport.write(hiredis.pack_command(command))  # type: ignore[arg-type]  # says: of one word
        answer = await self.answer
        if isinstance(answer, hiredis.ReplyError):
            raise answer
        return answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.reader.feed(data)
        if (answer := self.reader.gets()) is not MORE and self.answer and not self.answer.done():
            self.answer.set_result(answer)

    def connection_lost(self, _: Exception | None) -> None:
        if self.answer and not self.answer.done():
            self.answer.set_exception(ConnectionError("the queue hung up"))


class Wire:
    """A connection for one question at a time: made when it is needed, and again when it broke."""

    def __init__(self, redis: Redis) -> None:
        self.pool = redis.connection_pool
        self.talk: _Talk | None = None

    async def ask(self, *command: Word) -> Any:
        """The answer. Raises OSError or ReplyError."""
        talk = self.talk
        try:
            async with asyncio.timeout(PATIENCE_S):
                if talk is None or talk.transport.is_closing() or talk.loop is not asyncio.get_running_loop():
                    talk = self.talk = await self._connected()
                return await talk.ask(*command)
        except BaseException:
            self.close()  # an answer that comes late is not that of the next question
            raise

    def close(self) -> None:
        """Until the next question."""
        if self.talk is not None and not self.talk.loop.is_closed():
            self.talk.transport.abort()
        self.talk = None

    async def _connected(self) -> _Talk:
        told, loop = self.pool.connection_kwargs, asyncio.get_running_loop()
        if self.pool.connection_class is UnixDomainSocketConnection:
            _, talk = await loop.create_unix_connection(_Talk, told["path"])
        elif self.pool.connection_class is Connection:
            _, talk = await loop.create_connection(
                _Talk, told.get("host", "localhost"), told.get("port", 6379)
            )
        else:
            raise ConnectionError("there is TLS, which the client knows")
        if password := told.get("password"):
            user = [told["username"]] if told.get("username") else []
            await talk.ask("AUTH", *user, password)
        if db := told.get("db"):
            await talk.ask("SELECT", db)
        return talk


@dataclass(frozen=True)
class Exchange(Generic[T]):
    """A script that is to be run, and what its answer means. To run it twice does no harm."""

    script: Script
    keys: Sequence[str]
    arguments: Sequence[Any]
    read: Callable[[Any], T]

    def wait(self) -> T:
        """What comes of it. Rides over an outage; raises RedisError after a longer one."""
        return self.read(self.script(self.keys, self.arguments))

    async def over(self, wire: Wire) -> T:
        """The same for an event loop: in a thread only where the wire has no answer."""
        try:
            answer = await wire.ask("EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.arguments)
        except (OSError, hiredis.ReplyError):
            return await asyncio.to_thread(self.wait)
        return self.read(answer)
