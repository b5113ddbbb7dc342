"""`python -m app.scans.child`: reads scans for a parent process, over the socket that is its standard input.

Files from outside are parsed here and not in the API: whatever a broken or hostile one does to a library,
this process may be killed, has only so much memory, writes no files, and knows no keys and no queue.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

from app.scans.reader import Attachments, Limits, Upload, read_scan
from app.scans.scan import ScanRefused

HEAD = 16
"""Bytes before each header: two numbers, which say how long it is, and how long all blobs are."""


def message(header: dict[str, Any], blobs: list[bytes]) -> bytes:
    """What goes over the socket: a header, which says how long each blob is, and the blobs."""
    text = json.dumps({**header, "blobs": [len(blob) for blob in blobs]}).encode()
    lengths = len(text), sum(map(len, blobs))
    return b"".join((*(length.to_bytes(HEAD // 2, "little") for length in lengths), text, *blobs))


def length_of(begun: bytes | bytearray) -> int:
    """How long a message is that begins so; while that is not known, how much of it tells."""
    if len(begun) < HEAD:
        return HEAD
    numbers = begun[: HEAD // 2], begun[HEAD // 2 : HEAD]
    return HEAD + sum(int.from_bytes(number, "little") for number in numbers)


def receive(read: Callable[[int], bytes]) -> tuple[dict[str, Any], list[bytes]]:
    """A message taken apart. Raises EOFError at the end."""
    header: dict[str, Any] = json.loads(read(int.from_bytes(read(HEAD)[: HEAD // 2], "little")))
    return header, [read(size) for size in header["blobs"]]


def main() -> None:
    """Answer until the parent closes the socket, or is gone."""
    parent = socket.socket(fileno=os.dup(0))
    memory = int(sys.argv[1])
    _confine(memory)
    Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    parent.sendall(message({"ready": True}, []))

    def exactly(count: int) -> bytes:
        if len(data := sys.stdin.buffer.read(count)) < count:
            raise EOFError
        return data

    while True:
        try:
            header, blobs = receive(exactly)
        except EOFError:
            return
        parent.sendall(message(*_answer(header, blobs)))


def _confine(memory: int) -> None:
    """So many bytes more than now, no files written (but one in memory: `app.scans.e57`), no core dumps."""
    if (pages := Path("/proc/self/statm")).exists():  # elsewhere than on Linux memory has no limit
        now = int(pages.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


def _answer(header: dict[str, Any], blobs: list[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    spent = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(spent.ru_utime + spent.ru_stime + header["seconds"]) + 2
    # The parent kills us earlier; this is for when the parent is gone.
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    try:
        scan = read_scan(*_request(header, blobs))
        return {"warnings": scan.warnings}, [scan.to_bytes()]
    except ScanRefused as refused:
        return {"refused": [refused.code, refused.detail, refused.status]}, []
    except MemoryError:
        return {"broken": "MemoryError"}, []
    except Exception as error:  # a library stumbled over what it was given
        return {"broken": f"{type(error).__name__}: {error}"[:500]}, []


def _request(header: dict[str, Any], blobs: list[bytes]) -> tuple[list[Upload], Attachments, Limits]:
    rest = iter(blobs)
    uploads = [Upload(next(rest), name) for name in header["names"]]
    images = {field: [next(rest) for _ in range(header[field])] for field in ("mask", "color_image")}
    texts: dict[str, list[str]] = header["texts"]
    beside = replace(Attachments(**texts), **images)  # type: ignore[arg-type]
    return uploads, beside, Limits(**header["limits"])


if __name__ == "__main__":
    main()
