"""Reads scans in child processes, which are kept warm and killed when they take too long."""

from __future__ import annotations

import json
import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import LifoQueue
from threading import Thread
from typing import Any

from app.scans.child import receive, send
from app.scans.reader import Attachments, Limits, Upload
from app.scans.scan import ScanRefused

log = logging.getLogger(__name__)

START_S = 60.0
"""A child that is not ready by then will not be: imports take a second, and more on a busy machine."""


@dataclass(frozen=True)
class PackedScan:
    """A scan as `Scan.to_bytes` has it, and what was left out of it."""

    data: bytes
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
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app.scans.child", str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**kept, **threads},  # no secrets: they are none of its business
        )
        self.warm = False

    def ask(self, header: dict[str, Any], blobs: list[bytes], seconds: float) -> dict[str, Any]:
        """The answer, its blob under `scan`. Raises ChildEnded."""
        try:
            if not self.warm:
                self._receive(START_S)
                self.warm = True
            assert self.process.stdin is not None
            send(self.process.stdin, header, blobs)
            answer, scans = self._receive(seconds)
        except (EOFError, OSError, ValueError) as error:
            raise ChildEnded(str(error) or "it ended") from None
        return {**answer, "scan": scans[0] if scans else None}

    def _receive(self, seconds: float) -> tuple[dict[str, Any], list[bytes]]:
        assert self.process.stdout is not None
        file, give_up = self.process.stdout.fileno(), time.monotonic() + seconds

        def exactly(count: int) -> bytes:
            data = bytearray()
            while len(data) < count:
                left = give_up - time.monotonic()
                if left <= 0 or not select.select([file], [], [], left)[0]:
                    raise ChildEnded(f"no answer after {seconds:g} s")
                if not (part := os.read(file, min(count - len(data), 2**20))):
                    raise EOFError
                data += part
            return bytes(data)

        return receive(exactly)

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was still to be written to the dead
                    pipe.close()
        self.process.wait()


class Readers:
    """So many children, started when they are needed first, each replaced when it ends."""

    def __init__(self, count: int, memory: int, seconds: float) -> None:
        self.memory, self.seconds = memory, seconds
        self.free: LifoQueue[Child | None] = LifoQueue()
        for _ in range(count):
            self.free.put(None)

    def warm_up(self) -> None:
        """Start one beforehand, so that the first scan needs not wait for it."""
        Thread(target=self._start_one, name="reader", daemon=True).start()

    def read(
        self, uploads: Sequence[Upload], beside: Attachments | None = None, limits: Limits | None = None
    ) -> PackedScan:
        """As `read_scan`. Raises ScanRefused, also when the file was too much for its reader."""
        header, blobs = _packed(uploads, beside or Attachments(), limits or Limits(), self.seconds)
        child = self.free.get()
        try:
            child = child or Child(self.memory)
            answer = child.ask(header, blobs, self.seconds)
        except ChildEnded as error:
            log.warning("a scan ended its reader: %s", error)
            answer = {"broken": str(error)}
            if child is not None:
                child.end()
            child = None
        if child is not None and answer.get("broken") == "MemoryError":
            child.end()  # which still holds much of it
            child = None
        self.free.put(child)
        return _result(answer)

    def close(self) -> None:
        """End the children that have nothing in hand."""
        while not self.free.empty():
            if child := self.free.get_nowait():
                child.end()

    def _start_one(self) -> None:
        if (child := self.free.get()) is None:
            child = Child(self.memory)
        self.free.put(child)


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
