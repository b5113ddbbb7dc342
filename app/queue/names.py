"""What things are called in Redis, beside RQ's own keys."""

from __future__ import annotations

import secrets
import time

QUEUE = "completions"
SERIALIZER = "json"
"""RQ's default is pickle, which runs what it reads."""

TASK, INTERPOLATE = "worker.tasks.complete_scan", "worker.tasks.interpolate"
"""What the worker is asked to do: reached by name only."""

INDEXES = {TASK: "deepsdf:completions", INTERPOLATE: "deepsdf:interpolations"}

OPEN = "deepsdf:open"
"""A hash of what has not been seen to end: id to owner. `app.housekeeping` takes out what has ended."""

DELETED = "deepsdf:deleted"
"""A sorted set of what was deleted lately, by time: a worker may write a file just after that."""

WAKE = "deepsdf:wake"
"""A list whose elements say that something was enqueued: what an idle worker waits for."""


def new_id() -> str:
    """32 hexadecimal digits, which begin with the time: ids in order are completions in order."""
    return f"{int(1000 * time.time()):012x}{secrets.token_hex(10)}"


def index_key(task: str, owner: str) -> str:
    """The ids of what an owner has asked for with a task, in order."""
    return f"{INDEXES[task]}:{owner}"


def facts_key(worker: str) -> str:
    """What a worker says of itself."""
    return f"deepsdf:worker:{worker}"
