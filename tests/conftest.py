"""Fixtures that all tests share: a real Valkey, real processes, a checkpoint trained on the spot."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis

from app.client import Client
from app.embedded import EmbeddedQueue
from app.settings import Settings

ROOT = Path(__file__).resolve().parent.parent


def eventually(condition: Callable[[], bool], timeout_s: float = 30, interval_s: float = 0.02) -> None:
    """Wait until something holds."""
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, f"did not happen within {timeout_s} s"
        time.sleep(interval_s)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model of spheres and boxes, called `tiny`."""
    from shapes import train_tiny_checkpoint

    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    folder.mkdir()
    train_tiny_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The REDIS_URL of a real server."""
    queue = EmbeddedQueue(tmp_path_factory.mktemp("valkey"))
    process = subprocess.Popen(queue.command(), stdout=subprocess.DEVNULL)
    eventually(queue.socket.exists)
    yield queue.url
    process.terminate()
    process.wait()


@pytest.fixture
def settings(valkey: str, tmp_path: Path) -> Settings:
    """Settings on an empty queue, an empty data folder and a model that exists by its card only."""
    card = tmp_path / "checkpoints" / "tiny" / "card.json"
    card.parent.mkdir(parents=True)
    card.write_text('{"name": "tiny", "description": "spheres and boxes", "category": "none"}')
    Redis.from_url(valkey).flushall()
    return Settings(
        redis_url=valkey,
        data_dir=tmp_path / "data",
        checkpoints_dir=card.parent.parent,
        max_queued=4,
        max_body_bytes=4 * 2**20,
    )


@dataclass
class Service:
    """`python -m app` as a user starts it, and what one can do to its processes."""

    process: subprocess.Popen[bytes]
    client: Client
    data_dir: Path

    def children(self) -> dict[str, int]:
        """Process ids of the queue, the worker and the API."""
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        found = {}
        for pid in map(int, listed):
            command = _command_of(pid)
            for name, word in (("queue", "valkey-server"), ("worker", " worker"), ("api", "uvicorn")):
                if word in command:
                    found[name] = pid
        return found

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to one child, and wait until another one has its place."""
        old = self.children()[name]
        os.kill(old, number)
        eventually(lambda: self.children().get(name, old) != old)

    def ready(self) -> None:
        """Wait for it."""
        eventually(self.client.is_ready, timeout_s=60, interval_s=0.1)

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def start_service(folder: Path, checkpoint: Path, **more: str) -> Service:
    """Start a service on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    given = {"port": str(port), "data_dir": str(folder), "checkpoints_dir": str(checkpoint.parent), **more}
    environment |= {f"DEEPSDF_{name.upper()}": value for name, value in given.items()}
    process = subprocess.Popen([sys.executable, "-m", "app"], cwd=ROOT, env=environment)
    return Service(process, Client(f"http://127.0.0.1:{port}"), folder)


@pytest.fixture(scope="session")
def service(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all end-to-end tests, with a short lease so that recovery is quick to see."""
    folder = tmp_path_factory.mktemp("service")
    running = start_service(folder, tiny_checkpoint, lease_s="3", drain_s="0", device="cpu")
    running.ready()
    yield running
    running.stop()
