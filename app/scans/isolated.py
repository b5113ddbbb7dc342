"""Reads scans in child processes, which are kept warm and killed when they take too long."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

from app.scans.child import length_of, message, receive
from app.scans.reader import Attachments, Limits, Upload
from app.scans.scan import ScanRefused

log = logging.getLogger(__name__)

START_S = 60.0
"""A child that is not ready by then will not be: imports take a second, and more on a busy machine."""


BUFFER = 4 * 2**20
"""Bytes on the way, if the system lets us: a scan that fits needs no turns of writing and reading."""


@dataclass(frozen=True)
class PackedScan:
    """A scan as `Scan.to_bytes` has it, and what was left out of it."""

    data: bytes = field(repr=False)  # asyncio writes out what a task returns
    warnings: list[str]

    def to_bytes(self) -> bytes:
        """Those."""
        return self.data


class ChildEnded(Exception):
    """The child died, or did not answer in time."""


class Child:
    """One process that reads one scan at a time."""

    def __init__(self, memory: int) -> None:
        threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
        self.socket, theirs = socket.socketpair()
        for end in (self.socket, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
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

    async def ask(self, header: dict[str, Any], blobs: list[bytes], seconds: float) -> dict[str, Any]:
        """Its answer, with the blob under `scan`. Raises ChildEnded."""
        try:
            if not self.warm:
                await self._answer(START_S)
                self.warm = True
            return await self._answer(seconds, message(header, blobs))
        except TimeoutError:
            raise ChildEnded(f"no answer after {seconds:g} s") from None
        except (EOFError, OSError, ValueError) as error:
            raise ChildEnded(str(error) or "it ended") from None

    async def _answer(self, seconds: float, request: bytes = b"") -> dict[str, Any]:
        async with asyncio.timeout(seconds):
            await asyncio.get_running_loop().sock_sendall(self.socket, request)
            came = bytearray()
            while len(came) < length_of(came):
                came += await self._part(length_of(came) - len(came))
        answer, scans = receive(io.BytesIO(came).read)
        return {**answer, "scan": scans[0] if scans else None}

    async def _part(self, missing: int) -> bytes:
        size = min(max(missing, 2**16), 2**20)
        if not (part := await asyncio.get_running_loop().sock_recv(self.socket, size)):
            raise EOFError
        return part

    def end(self) -> None:
        """Kill it. Its memory may take a moment to go, which nobody waits for."""
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
        self, uploads: Sequence[Upload], beside: Attachments | None = None, limits: Limits | None = None
    ) -> PackedScan:
        """As `read_scan`. Raises ScanRefused, also when the file was too much for its reader."""
        header, blobs = _packed(uploads, beside or Attachments(), limits or Limits(), self.seconds)
        async with self.turn:
            return _result(await self._answer(header, blobs))

    async def _answer(self, header: dict[str, Any], blobs: list[bytes]) -> dict[str, Any]:
        child = self.free.pop() if self.free else await asyncio.to_thread(Child, self.memory)
        keep = False
        try:
            answer = await child.ask(header, blobs, self.seconds)
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


def _packed(
    uploads: Sequence[Upload], beside: Attachments, limits: Limits, seconds: float
) -> tuple[dict[str, Any], list[bytes]]:
    texts = {
        name: list(values) for name, values in vars(beside).items() if name not in ("mask", "color_image")
    }
    header = {
        "names": [upload.name for upload in uploads],
        "texts": texts,
        "mask": len(beside.mask),
        "color_image": len(beside.color_image),
        "limits": vars(limits),
        "seconds": seconds,
    }
    return header, [*(upload.data for upload in uploads), *beside.mask, *beside.color_image]


def _result(answer: dict[str, Any]) -> PackedScan:
    if "refused" in answer:
        code, detail, status = answer["refused"]
        raise ScanRefused(code, detail, status)
    if "broken" in answer:
        log.warning("a scan could not be read: %s", json.dumps(answer["broken"]))
        if answer["broken"] == "MemoryError":
            told = (
                "Reading the scan takes more memory than is allowed. Send fewer points, or a plainer format."
            )
            raise ScanRefused("needs_too_much_memory", told, status=413)
        told = "The file made its reader fail. Open it in another program and save it anew."
        raise ScanRefused("unreadable_scan", told)
    return PackedScan(answer["scan"], answer["warnings"])
