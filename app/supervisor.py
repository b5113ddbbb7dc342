"""Keeps the service's processes alive, and stops all of them together."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from types import FrameType

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
MAX_ENDS, LIVED_S = 5, 10.0
"""A child that ends so often before it has lived so many seconds will not come right by starting it again."""


@dataclass
class Child:
    """One process: what it runs, and how it has been."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    ready: Callable[[], bool] = lambda: True
    kind: str = ""  # those of one kind, which do not need one another, are stopped at the same time
    early_ends: int = 0
    started: float = 0.0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, so that it dies with us even if we are killed."""
        environment = {**os.environ, **self.environment}
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            self.command,
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )

    @property
    def ended(self) -> bool:
        """Whether it is no longer there."""
        return self.process is None or self.process.poll() is not None

    @property
    def hopeless(self) -> bool:
        """Whether it ended too early too often, one time after the other."""
        return self.early_ends >= MAX_ENDS

    def ask_to_end(self) -> None:
        """Ask it to end, if it is there."""
        if self.process is not None and not self.ended:
            self.process.terminate()

    def see_to_its_end(self, patience_s: float) -> None:
        """Wait for its end; insist after a while."""
        if self.process is None:
            return
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            log.warning("%s does not stop and is killed", self.name)
            self.process.kill()
            self.process.wait()


class Supervisor:
    """Runs children, in the order in which they need one another, until it is told to stop."""

    def __init__(self, children: list[Child], patience_s: float) -> None:
        self.children, self.patience_s = children, patience_s
        self.stopping = False

    def run(self) -> int:
        """Returns 0 after a requested stop, 1 when a child could not be kept alive."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        try:
            for child in self.children:
                self._start(child)
            while not self.stopping:
                time.sleep(0.2)
                for child in self.children:
                    if child.ended and not self.stopping and not self._revive(child):
                        return 1
            return 0
        finally:
            self.stopping = True
            for _, peers in groupby(reversed(self.children), lambda child: child.kind or child.name):
                self._end(list(peers))

    def _end(self, peers: list[Child]) -> None:
        """Stop them, all within our patience."""
        for child in peers:
            child.ask_to_end()
        give_up = time.monotonic() + self.patience_s
        for child in peers:
            child.see_to_its_end(max(0.0, give_up - time.monotonic()))

    def _start(self, child: Child) -> None:
        if self.stopping:
            return
        child.start()
        give_up = time.monotonic() + 10
        while not (child.ready() or child.ended or self.stopping or time.monotonic() > give_up):
            time.sleep(0.05)

    def _revive(self, child: Child) -> bool:
        lived = time.monotonic() - child.started
        child.early_ends = child.early_ends + 1 if lived < LIVED_S else 0
        code = child.process.returncode if child.process else None
        if child.hopeless:
            log.error("%s ended %d times soon after its start: giving up", child.name, MAX_ENDS)
            return False
        log.warning("%s ended with code %s and is started again", child.name, code)
        time.sleep(0.2 * child.early_ends)
        self._start(child)
        return True

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
