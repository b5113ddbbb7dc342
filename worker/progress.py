"""Percent out, interruption in: what a running completion tells, and what may end it early."""

from __future__ import annotations

import time
from threading import Event
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from worker.leases import Lease, LeaseLost, Leases

if TYPE_CHECKING:
    from model.completion import Progress

INTERVAL_S = 0.2
"""At most five reports a second within a phase: each one writes the whole meta dictionary."""

LOOK_S = 0.05
"""How often a completion looks whether its lease still holds: that is how it hears of being cancelled."""


class DeadlinePassed(Exception):
    """The completion took too long."""


class Interrupted(Exception):
    """This worker stops, and another one shall do the completion from its start."""


class Reporter:
    """The `on_step` of one completion: the only writer of its record while it runs.

    `draining` is set when this worker must give back what it has in hand.
    """

    def __init__(self, lease: Lease, leases: Leases, deadline_s: float, draining: Event) -> None:
        self.lease, self.leases, self.draining = lease, leases, draining
        self.meta = lease.job.meta
        self.deadline = time.monotonic() + deadline_s
        self.next_report = self.next_look = 0.0

    def __call__(self, progress: Progress) -> None:
        """Tell the progress. Raises LeaseLost, DeadlinePassed or Interrupted to end the completion."""
        self.tell(
            progress.phase, progress.step, progress.steps, residual=progress.residual, share=progress.fraction
        )

    def tell(
        self, phase: str, step: int = 0, steps: int = 0, *, residual: float | None = None, share: float = 0.0
    ) -> None:
        """As above, in plain words."""
        another = phase != self.meta.get("phase")
        self.meta |= {"phase": phase, "step": step, "steps": steps, "residual": residual, "progress": share}
        if another or time.monotonic() >= self.next_report:
            self.next_report = time.monotonic() + INTERVAL_S
            self.next_look = time.monotonic() + LOOK_S
            self._write()
        self.look()

    def preview(self) -> None:
        """Tell at once that there is a new preview."""
        self.meta["preview"] = self.meta.get("preview", 0) + 1
        self._write()

    def look(self) -> None:
        """Raise LeaseLost, DeadlinePassed or Interrupted where it is time to end."""
        if time.monotonic() > self.deadline:
            raise DeadlinePassed
        if self.draining.is_set():
            raise Interrupted
        if time.monotonic() < self.next_look:
            return
        self.next_look = time.monotonic() + LOOK_S
        try:
            held = self.leases.holds(self.lease)
        except RedisError:
            return  # the completion goes on without an audience
        if not held:
            raise LeaseLost

    def _write(self) -> None:
        try:
            held = self.leases.write(self.lease, self.meta)
        except RedisError:
            return
        if not held:
            raise LeaseLost
