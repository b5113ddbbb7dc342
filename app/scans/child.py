"""`python -m app.scans.child`: reads submissions for a parent, over the socket that is its standard input.

Bytes from outside are parsed here and not in the API, forms as well as the files in them: whatever broken or
hostile ones do to a library, this process may be killed, has only so much memory, and knows no keys and no
queue. It writes one file for each submission, when all parsing is done.

Each message is one datagram. A request is a line of JSON, and the body after it; of a large body there is
an open file instead. An answer is JSON.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
import time
from pathlib import Path
from threading import Thread
from typing import Any

from app.scans.confinement import confine, may_write
from app.scans.parcel import parcel_of
from app.scans.reader import Limits, read_scan
from app.scans.scan import ScanRefused

LARGEST = 2**17
"""Bytes of a message, at most."""


def main() -> None:
    """Answer until the parent closes the socket, or is gone."""
    parent = socket.socket(fileno=os.dup(0))
    memory = int(sys.argv[1])
    confine(memory)
    Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    _tell(parent, {"ready": True})
    while True:
        message, files, _, _ = socket.recv_fds(parent, LARGEST, 1)
        if not message:
            return
        line, _, body = message.partition(b"\n")
        _tell(parent, _answer(json.loads(line), body, files))


def _tell(parent: socket.socket, answer: dict[str, Any]) -> None:
    message = json.dumps(answer).encode()
    if len(message) > LARGEST:
        message = json.dumps({"broken": "its answer is too long"}).encode()
    parent.sendall(message)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


def _answer(asked: dict[str, Any], body: bytes, files: list[int]) -> dict[str, Any]:
    spent = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(spent.ru_utime + spent.ru_stime + asked["seconds"]) + 2
    # The parent kills us earlier; this is for when the parent is gone.
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    try:
        return _stored(asked, _in_memory(files[0]) if files else body)
    except ScanRefused as refused:
        return {"refused": [refused.code, refused.detail, refused.status, refused.flaws]}
    except MemoryError:
        return {"broken": "MemoryError"}
    except Exception as error:  # a library stumbled over what it was given
        return {"broken": f"{type(error).__name__}: {error}"[:500]}


def _in_memory(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0)
        return file.read()


def _stored(asked: dict[str, Any], body: bytes) -> dict[str, Any]:
    """Read a submission, and write what it holds to the path that is asked for."""
    parcel = parcel_of(body, asked["type"])
    scan = read_scan(parcel.uploads, parcel.beside, Limits(**asked["limits"]))
    digest = parcel.digest() if asked["digest"] else ""
    try:
        with may_write(asked["file_bytes"]):
            scan.save(Path(asked["path"]), parcel.originals())
    except OSError as error:
        return {"unstored": [error.errno, error.strerror]}
    return {"warnings": scan.warnings, "digest": digest}


if __name__ == "__main__":
    main()
