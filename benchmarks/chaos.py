"""The service under fire: `python -m benchmarks.chaos`, or `make chaos`.

Starts `python -m app` with a small model, keeps it busy, and hurts it: workers, API and queue are killed, the
worker is stopped, its disk is full, clients are slow or leave, the clock is set. Then every accepted
completion is looked at: it must have ended, once, and still be what it was when it had ended.

Two faults are stand-ins. The disk is full by a limit on the size of files (RLIMIT_FSIZE) of worker and API,
which needs no root; the queue keeps its disk. The clock is set for `time.time` of our Python processes, which
is what leases go by; the queue's own stays (libfaketime breaks `time.sleep` of Python 3.11). Needs Linux.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import httpx2
from redis import Redis
from rich.console import Console
from rich.table import Table
from rq.results import Result

from app.client import ProblemError
from app.embedded import EmbeddedQueue
from app.schemas import ENDED, Completion
from app.settings import Settings
from app.storage import Storage
from benchmarks.serving import Service, half_ball, save_small_model, start_service

QUICK = {"pose": "canonical", "refine": "false", "resolution": 32}
LONG = {"pose": "upright", "refine": "true", "samples": 2, "resolution": 96, "priority": "high"}
"""Each phase of it takes long enough to be hit."""
FITTED = {"pose": "upright", "priority": "high"}
"""Its fit does, and the rest is soon over."""

PHASES = ("read", "observe", "fit", "refine", "mesh", "export")
PATIENCE_S = 240.0
SET_CLOCK = """
import os, time
real = time.time
def shifted():
    try:
        with open(os.environ["CHAOS_CLOCK"]) as file:
            return real() + float(file.read() or 0)
    except Exception:  # readers of scans are confined, and need no leases
        return real()
time.time = shifted
"""
progress = Console(stderr=True)


class NotSeen(Exception):
    """A phase went by before it could be hit."""


@dataclass(frozen=True)
class Ending:
    """What a completion ended as: it must not change any more."""

    status: str
    ended_at: str
    mesh: str  # SHA-256, empty unless it succeeded


@dataclass
class Row:
    """One fault, and what became of the completions that were accepted around it."""

    fault: str
    endings: dict[str, Ending | None] = field(default_factory=dict)
    duplicated: set[str] = field(default_factory=set)
    recovery_s: float | None = None
    note: str = ""

    @property
    def lost(self) -> int:
        """Those that are unknown, or have not ended."""
        return sum(ending is None for ending in self.endings.values())


class Siege:
    """A service, and what it has accepted."""

    def __init__(
        self, service: Service, clock: Path | None, jobs: int, long: Mapping[str, str | int]
    ) -> None:
        self.service, self.clock, self.jobs, self.long = service, clock, jobs, long
        self.rows: list[Row] = []
        self.begun = time.monotonic()

    def submit(self, patience_s: float = 30, **options: str | int) -> str:
        """Submit until it is accepted; its id."""
        give_up = time.monotonic() + patience_s
        while True:
            try:
                wanted = {**QUICK, **options}
                form = {"viewpoint": "[10, 0, 9]"}
                scan = half_ball(
                    points=30_000 if "samples" in options else 10_000 if "pose" in options else 400
                )
                sent = self.service.client.submit(scan, "ball.npy", form=form, model="balls", **wanted)
                self.rows[-1].endings[sent.id] = None
                return sent.id
            except (ProblemError, httpx2.TransportError):
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.05)

    def status(self, completion_id: str) -> Completion | None:
        """As it stands; None if nothing is known of it. Waits while nobody answers."""
        give_up = time.monotonic() + 30
        while True:
            try:
                return self.service.client.status(completion_id)
            except ProblemError as error:
                if error.problem.status == 404:
                    return None
                if time.monotonic() > give_up:
                    raise
            except httpx2.TransportError:
                if time.monotonic() > give_up:
                    raise
            time.sleep(0.05)

    def ended(self, completion_id: str, give_up: float) -> Ending | None:
        """Wait for its end; None if it is lost."""
        while (now := self.status(completion_id)) is not None and now.status not in ENDED:
            if time.monotonic() > give_up:
                return None
            time.sleep(0.1)
        if now is None:
            return None
        mesh = self.service.client.mesh(now.id) if now.status == "succeeded" else b""
        return Ending(now.status, str(now.ended_at), sha256(mesh).hexdigest() if mesh else "")

    def settle(self) -> None:
        """Wait until all of this row have ended."""
        give_up = time.monotonic() + PATIENCE_S
        for completion_id in self.rows[-1].endings:
            self.rows[-1].endings[completion_id] = self.ended(completion_id, give_up)

    def check(self) -> None:
        """Look at all once more: each has ended once, as it was seen to have ended."""
        queue = Redis.from_url(EmbeddedQueue(self.service.data_dir).url)
        for row in self.rows:
            for completion_id, before in row.endings.items():
                if before is None:
                    continue
                again = self.ended(completion_id, time.monotonic())
                results = int(queue.xlen(Result.get_key(completion_id)))
                if again != before or results > 1:
                    row.duplicated.add(completion_id)

    def within(self, condition: Callable[[], bool]) -> float:
        """Seconds until something holds."""
        start = time.monotonic()
        while not condition():
            if time.monotonic() - start > 60:
                raise TimeoutError("no recovery within a minute")
            time.sleep(0.02)
        return time.monotonic() - start


Fault = Callable[[Siege], float]
"""Hurts the service, and returns the seconds until it was itself again."""


def worker_killed_in(phase: str) -> Fault:
    """kill -9 of the worker while a completion is in a phase; recovered when that is anew in living hands."""

    def fault(siege: Siege) -> float:
        for _ in range(4):
            hit = siege.submit(**siege.long)
            while (now := siege.status(hit)) is not None and now.status in ("queued", "running"):
                if now.phase == phase:
                    siege.service.kill("worker")
                    return siege.within(lambda hit=hit: taken_back(siege, hit))
        raise NotSeen(phase)

    return fault


def taken_back(siege: Siege, completion_id: str) -> bool:
    """Whether a living worker has it, or will, after the others that the dead one had, each alone."""
    now = siege.status(completion_id)
    back = now is not None and (now.status in ENDED or now.attempt > 1)
    return back and siege.service.client.is_ready()


def worker_stopped(siege: Siege) -> float:
    """SIGTERM of the worker under load; recovered when another one is ready."""
    siege.service.kill("worker", signal.SIGTERM)
    return siege.within(siege.service.client.is_ready)


def api_killed(siege: Siege) -> float:
    """kill -9 of the API while clients submit."""
    client = threading.Thread(target=lambda: [siege.submit() for _ in range(siege.jobs)])
    client.start()
    siege.service.kill("api")
    recovered = siege.within(siege.service.client.is_ready)
    client.join()
    return recovered


def queue_killed(siege: Siege) -> float:
    """kill -9 of the queue: it comes back with its append-only file."""
    siege.service.kill("queue")
    return siege.within(siege.service.client.is_ready)


def disk_full(siege: Siege) -> float:
    """No file of more than a kilobyte can be written for a while; recovered when a completion succeeds."""
    pids = [siege.service.children()[name] for name in ("worker", "api")]
    for pid in pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
    refused = 0
    for _ in range(3):
        try:
            siege.submit(patience_s=0)
        except (ProblemError, httpx2.TransportError):
            refused += 1
    time.sleep(1)
    for pid in pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert refused == 3, "an upload was stored: the disk was not full for those that read them"
    siege.rows[-1].note = f"{refused} of 3 uploads refused meanwhile"
    after = siege.submit(priority="high")
    return siege.within(lambda: (now := siege.status(after)) is not None and now.status == "succeeded")


def slow_client(siege: Siege) -> float:
    """A client that sends a byte now and then; others are served meanwhile."""
    with opened(siege, length=10_000) as slow:
        for _ in range(siege.jobs // 2):
            slow.sendall(b"x")
            siege.submit()
        check_unanswered(slow)
        return siege.within(siege.service.client.is_ready)


def client_gone(siege: Siege) -> float:
    """Clients that leave in the middle of an upload leave nothing behind."""
    storage = Storage(siege.service.data_dir)
    before = len(storage.ages())
    for _ in range(10):
        with opened(siege, length=10_000) as gone:
            gone.sendall(b"x" * 5000)
            check_unanswered(gone)
    time.sleep(0.5)
    left = len(storage.ages()) - before
    siege.rows[-1].note = f"{left} uploads left behind"
    return siege.within(siege.service.client.is_ready)


@contextmanager
def opened(siege: Siege, length: int) -> Iterator[socket.socket]:
    """An upload of which the head is sent."""
    url = siege.service.client.http.base_url
    with socket.create_connection((url.host, url.port or 80)) as connection:
        head = "POST /v1/completions?model=balls HTTP/1.1\r\nHost: localhost"
        kind = "Content-Type: multipart/form-data; boundary=b"
        part = '--b\r\nContent-Disposition: form-data; name="scan"; filename="a.xyz"\r\n\r\n'
        connection.sendall(f"{head}\r\n{kind}\r\nContent-Length: {length}\r\n\r\n{part}".encode())
        yield connection


def check_unanswered(upload: socket.socket) -> None:
    """An upload that was refused in the middle would be no fault at all."""
    upload.settimeout(0.05)
    with suppress(TimeoutError):
        raise AssertionError(f"answered before all had come: {upload.recv(100)!r}")


def clock_set(siege: Siege) -> float:
    """An hour forward and back, with leases of that hour; then the worker is killed that has them."""
    assert siege.clock is not None
    hit = siege.submit(**siege.long)
    siege.clock.write_text("3600")
    time.sleep(4)
    siege.clock.write_text("0")
    siege.within(lambda: (now := siege.status(hit)) is not None and now.status != "queued")
    siege.service.kill("worker")
    return siege.within(lambda: taken_back(siege, hit))


CLOCK = "clock set forward and back"
FAULTS: dict[str, Fault] = {
    **{f"worker killed in phase {phase}": worker_killed_in(phase) for phase in PHASES},
    "worker stopped under load": worker_stopped,
    "API killed while clients submit": api_killed,
    "queue killed": queue_killed,
    "disk full": disk_full,
    "slow client": slow_client,
    "clients gone in mid-upload": client_gone,
    CLOCK: clock_set,
}
IN_A_HURRY = (
    "worker killed in phase fit",
    "worker stopped under load",
    "API killed while clients submit",
    "queue killed",
    "disk full",
    "clients gone in mid-upload",
)


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 if nothing was lost or duplicated."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer faults, 2 completions around each")
    parser.add_argument("--jobs", type=int, help="completions around each fault (16)")
    options = parser.parse_args(arguments)
    quick = options.quick or os.environ.get("QUICK") == "1"
    with tempfile.TemporaryDirectory() as folder:
        chosen = {name: FAULTS[name] for name in (IN_A_HURRY if quick else FAULTS)}
        rows = besieged(Path(folder), chosen, options.jobs or (2 if quick else 16), hurry=quick)
    return told(rows)


def besieged(folder: Path, faults: Mapping[str, Fault], jobs: int, hurry: bool) -> list[Row]:
    """Faults, one after the other, with `jobs` completions around each.

    In a hurry leases are shorter than they are by default, and what is hit takes less time.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    model = save_small_model(folder / "models" / "balls")
    clock = _faked_clock(folder) if CLOCK in faults else None
    lease_s = 3 if hurry else Settings.model_fields["lease_s"].default
    more = {"max_queued": "400", "device": "cpu", "batch_slots": "4", "drain_s": "1", "lease_s": str(lease_s)}
    service = start_service(folder / "data", model, **more)
    siege = Siege(service, clock, jobs, FITTED if hurry else LONG)
    try:
        service.ready()
        for name, fault in faults.items():
            _run(siege, name, fault)
        siege.check()
    finally:
        service.stop()
    return siege.rows


def _run(siege: Siege, name: str, fault: Fault) -> None:
    progress.print(f"{time.monotonic() - siege.begun:5.1f} s  {name}")
    row = Row(name)
    siege.rows.append(row)
    for _ in range(siege.jobs):
        siege.submit()
    try:
        row.recovery_s = fault(siege)
    except NotSeen as why:
        row.note = f"{why}: not hit"
    siege.settle()


def _faked_clock(folder: Path) -> Path:
    """The file that says by how many seconds the service's clock is off; Python runs a `sitecustomize`."""
    clock = folder / "clock"
    clock.write_text("0")
    (folder / "sitecustomize.py").write_text(SET_CLOCK)
    os.environ |= {"CHAOS_CLOCK": str(clock), "PYTHONPATH": str(folder)}
    return clock


def told(rows: list[Row]) -> int:
    """The table, and the line that counts."""
    table = Table("fault", "jobs", "succeeded", "lost", "duplicated", "recovery", "")
    for row in rows:
        done = sum(ending is not None and ending.status == "succeeded" for ending in row.endings.values())
        recovery = "" if row.recovery_s is None else f"{row.recovery_s:.1f} s"
        figures = len(row.endings), done, row.lost, len(row.duplicated)
        table.add_row(row.fault, *map(str, figures), recovery, row.note)
    Console(width=110).print(table)
    bad = sum(row.lost + len(row.duplicated) for row in rows)
    print(f"of {sum(len(row.endings) for row in rows)} accepted completions")
    print(f"chaos: {bad} jobs lost or duplicated")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
