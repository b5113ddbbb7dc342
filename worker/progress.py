"""Percent out, interruption in: what a running completion tells, and what may end it early."""

from __future__ import annotations

import time
from threading import Event
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from rq.job import Job

from app.queue import cancel_key

if TYPE_CHECKING:
    from model.completion import Progress

INTERVAL_S = 0.2
"""At most five reports a second: each one writes the whole meta dictionary."""

draining = Event()
"""Set when this process must give its completion back."""


class Cancelled(Exception):
    """The client wants no result any more."""


class DeadlinePassed(Exception):
    """The completion took too long."""


class Interrupted(Exception):
    """This worker stops, and another one shall do the completion from its start."""


class Reporter:
    """The `on_step` of one completion: the only writer of its record while it runs."""

    def __init__(self, job: Job, deadline_s: float) -> None:
        self.job = job
        self.deadline = time.monotonic() + deadline_s
        self.next_report = 0.0

    def __call__(self, progress: Progress) -> None:
        """Tell the progress. Raises Cancelled, DeadlinePassed or Interrupted to end the completion."""
        self.tell(
            progress.phase, progress.step, progress.steps, residual=progress.residual, share=progress.fraction
        )

    def tell(
        self, phase: str, step: int = 0, steps: int = 0, *, residual: float | None = None, share: float = 0.0
    ) -> None:
        """As above, in plain words."""
        if time.monotonic() > self.deadline:
            raise DeadlinePassed
        if draining.is_set():
            raise Interrupted
        if time.monotonic() < self.next_report:
            return
        self.next_report = time.monotonic() + INTERVAL_S
        known: dict[str, Any] = {
            "phase": phase,
            "step": step,
            "steps": steps,
            "residual": residual,
            "progress": share,
        }
        try:
            self._exchange(known)
        except RedisError:
            return  # the completion goes on without an audience

    def _exchange(self, known: dict[str, Any]) -> None:
        self.job.meta.update(known)
        self.job.save_meta()  # type: ignore[no-untyped-call]
        if self.job.connection.exists(cancel_key(self.job.id)):
            raise Cancelled
