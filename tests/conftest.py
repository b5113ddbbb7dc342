"""Fixtures that all tests share: a real Valkey, real processes, a checkpoint trained on the spot."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from processes import Service, eventually, settings_at, start_service

from app.embedded import EmbeddedQueue
from app.settings import Settings


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model of spheres and boxes, `tiny`: who comes first trains it for all."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "checkpoints" / "tiny"
    with FileLock(shared / "tiny.lock"):
        if not (folder / "card.json").exists():
            from shapes import train_tiny_checkpoint

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
    return settings_at(valkey, tmp_path)


@pytest.fixture(scope="session")
def service(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all end-to-end tests, with a short lease so that recovery is quick to see."""
    folder = tmp_path_factory.mktemp("service")
    running = start_service(folder, tiny_checkpoint, lease_s="3", drain_s="0", device="cpu")
    running.ready()
    yield running
    running.stop()


@pytest.fixture
def own_signals() -> Iterator[None]:
    """A worker or a supervisor in this process takes its signals over; give them back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
