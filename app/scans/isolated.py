"""Reads submissions in child processes, which are kept warm and killed when they take too long."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from threading import Thread
from typing import IO, Any

from pydantic_core import from_json, to_json

from app.scans.child import LARGEST
from app.scans.reader import Limits
from app.scans.scan import ScanRefused

log = logging.getLogger(__name__)

START_S = 60.0
"""A child that is not ready by then will not be: imports take a second, and more on a busy machine."""

INLINE = 2**16
"""Bytes of a body that goes along in a message: every system lets messages be so large."""


@dataclass
class Body:
    """What came in a request, as it came."""

    content: bytes | IO[bytes]
    """An open file, where it is larger than `INLINE`."""
    content_type: str

    def write(self, part: bytes) -> None:
        """Add a part to the file, which takes the place of what was in memory."""
        if isinstance(self.content, bytes):
            begun, self.content = self.content, TemporaryFile()  # noqa: SIM115 (see `close`)
            self.content.write(begun)
        self.content.write(part)
        self.content.flush()

    def close(self) -> None:
        """It is needed no more."""
        if not isinstance(self.content, bytes):
            self.content.close()


@dataclass(frozen=True)
class Stored:
    """What a submission was found to hold, which now lies in a file."""

    warnings: list[str]
    """What was left out of the scan."""
    digest: str
    """Tells its content from others; "" unless asked for."""


class ChildEnded(Exception):
    """The child died, or did not answer in time."""


class Child:
    """One process that reads one submission at a time."""

    def __init__(self, memory: int) -> None:
        threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
        self.socket, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self.socket.setblocking(False)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app.scans.child", str(memory)],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**kept, **threads},  # no secrets: they are none of its business
        )
        theirs.close()
        self.warm = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self.answer: asyncio.Future[bytes] | None = None

    async def ask(self, asked: dict[str, Any], content: bytes | IO[bytes], seconds: float) -> dict[str, Any]:
        """Its answer. Raises ChildEnded."""
        self._listen()
        try:
            if not self.warm:
                await self._answer(START_S)
                self.warm = True
            self._send(to_json(asked), content)
            return await self._answer(seconds)
        except (EOFError, OSError, ValueError) as error:
            raise ChildEnded(str(error)) from None

    def _send(self, line: bytes, content: bytes | IO[bytes]) -> None:
        """There is room for it: none is sent before the last one was answered."""
        if isinstance(content, bytes):
            self.socket.send(b"%b\n%b" % (line, content))
        else:
            socket.send_fds(self.socket, [line, b"\n"], [content.fileno()])

    async def _answer(self, seconds: float) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        self.answer = loop.create_future()
        give_up = loop.call_later(seconds, self._take, b"")
        try:
            message = await self.answer
        finally:
            give_up.cancel()
        if not message:
            raise EOFError(f"it ended, or took more than {seconds:g} s")
        answer: dict[str, Any] = from_json(message)
        return answer

    def _listen(self) -> None:
        """To be told by the event loop, once and for all: `sock_recv` would ask it anew each time."""
        loop = asyncio.get_running_loop()
        if loop is not self.loop:
            self._listen_no_more()
            loop.add_reader(self.socket, self._read)
            self.loop = loop

    def _listen_no_more(self) -> None:
        if self.loop is not None:
            self.loop.remove_reader(self.socket)

    def _read(self) -> None:
        try:
            message = self.socket.recv(LARGEST)
        except OSError:
            message = b""
        if not message:
            self._listen_no_more()
        self._take(message)

    def _take(self, message: bytes) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(message)

    def end(self) -> None:
        """Kill it. Its memory may take a moment to go, which nobody waits for."""
        self._listen_no_more()
        self.process.kill()
        self.socket.close()
        Thread(target=self.process.wait, daemon=True).start()


class Readers:
    """So many children, started when they are needed first, each replaced when it ends."""

    def __init__(self, count: int, memory: int, seconds: float) -> None:
        self.memory, self.seconds = memory, seconds
        self.turn = asyncio.Semaphore(count)
        self.free: list[Child] = []

    def warm_up(self) -> None:
        """Start one beforehand, so that the first scan needs not wait for it."""
        if not self.free:
            self.free.append(Child(self.memory))

    async def read(
        self, body: Body, path: Path, limits: Limits | None = None, digest: bool = False
    ) -> Stored:
        """Read a submission, and write its scan and the files it came from to a new file.

        Raises ScanRefused, also when it was too much for its reader, and OSError when it cannot be written.
        What lies at `path` after an error is to be removed.
        """
        asked = {
            "type": body.content_type,
            "path": str(path),
            "limits": vars(limits or Limits()),
            "seconds": self.seconds,
            "digest": digest,
            "file_bytes": resource.getrlimit(resource.RLIMIT_FSIZE)[0],  # as many as we may write ourselves
        }
        async with self.turn:
            return _result(await self._answer(asked, body.content))

    async def _answer(self, asked: dict[str, Any], content: bytes | IO[bytes]) -> dict[str, Any]:
        child = self.free.pop() if self.free else await asyncio.to_thread(Child, self.memory)
        keep = False
        try:
            answer = await child.ask(asked, content, self.seconds)
            keep = answer.get("broken") != "MemoryError"  # one that ran out of it still holds much of it
        except ChildEnded as error:
            log.warning("a scan ended its reader: %s", error)
            answer = {"broken": str(error)}
        finally:  # whoever waits may be cancelled, too
            if keep:
                self.free.append(child)
            else:
                child.end()
        return answer

    def close(self) -> None:
        """End the children that have nothing in hand."""
        while self.free:
            self.free.pop().end()


def _result(answer: dict[str, Any]) -> Stored:
    if "refused" in answer:
        code, detail, status, flaws = answer["refused"]
        raise ScanRefused(code, detail, status, flaws)
    if "unstored" in answer:
        raise OSError(*answer["unstored"])
    if "broken" in answer:
        log.warning("a scan could not be read: %s", json.dumps(answer["broken"]))
        if answer["broken"] == "MemoryError":
            told = (
                "Reading the scan takes more memory than is allowed. Send fewer points, or a plainer format."
            )
            raise ScanRefused("needs_too_much_memory", told, status=413)
        told = "The file made its reader fail. Open it in another program and save it anew."
        raise ScanRefused("unreadable_scan", told)
    return Stored(answer["warnings"], answer["digest"])
