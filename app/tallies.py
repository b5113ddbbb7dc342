"""What ended completions add to the service's counts: kept in Redis, so that replicas and restarts agree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from app.schemas import Completion, Entry

TALLIES = "deepsdf:tallies"
"""A hash: names as below, to sums."""

WAIT, PHASE = "queue_wait_seconds", "job_seconds"
BUCKETS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, float("inf"))
"""Upper bounds in seconds of the bins of every histogram."""


def tallies_of(ended: Entry) -> dict[str, float]:
    """What one adds: `jobs|<status>|<model>`, `solver_steps`, and its part of each histogram."""
    added = {f"jobs|{ended.status}|{ended.options.model}": 1.0}
    report = _report(ended)
    if isinstance(steps := report.get("steps"), int):
        added["solver_steps"] = float(steps)
    for name, label, seconds in _durations(ended):
        bucket = next(bound for bound in BUCKETS if seconds <= bound)
        added[f"{name}|{label}|{bucket}"] = 1.0
        added[f"{name}|{label}|sum"] = seconds
    return added


def _report(ended: Entry) -> dict[str, Any]:
    return ended.report or {} if isinstance(ended, Completion) else {}


def _durations(ended: Entry) -> Iterator[tuple[str, str, float]]:
    if ended.started_at is not None:
        waited = (ended.started_at - ended.created_at).total_seconds()
        yield WAIT, "", max(0.0, waited)
    seconds = _report(ended).get("seconds")
    if isinstance(seconds, dict):
        for phase, spent in seconds.items():
            yield PHASE, str(phase), float(spent)
