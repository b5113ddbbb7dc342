"""The service as a user starts it, for benchmarks and tests: its processes, a small model, small scans."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from app.client import Client
from model.checkpoint import save_checkpoint
from model.decoder import Decoder, DecoderSpec

ROOT = Path(__file__).resolve().parent.parent


def eventually(condition: Callable[[], bool], timeout_s: float = 30, interval_s: float = 0.02) -> None:
    """Wait until something holds."""
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, f"did not happen within {timeout_s} s"
        time.sleep(interval_s)


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


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_service(folder: Path, checkpoint: Path, **more: str) -> Service:
    """Start a service on a free port."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    given = {"port": str(port), "data_dir": str(folder), "checkpoints_dir": str(checkpoint.parent), **more}
    environment |= {f"DEEPSDF_{name.upper()}": value for name, value in given.items()}
    process = subprocess.Popen([sys.executable, "-m", "app"], cwd=ROOT, env=environment)
    return Service(process, Client(f"http://127.0.0.1:{port}"), folder)


def save_small_model(folder: Path, steps: int = 200) -> Path:
    """A model of balls, trained in a second: the service's work without the method's."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for one another more than they work
    codes = torch.tensor([[-1.0, 0.3], [0.0, -0.3], [1.0, 0.1]])
    radii = 0.6 + 0.15 * codes[:, :1]
    decoder = Decoder(DecoderSpec(code_length=2, width=32, depth=3, skip_layer=(), dropout=0.0))
    adam = torch.optim.Adam(decoder.parameters(), lr=5e-3)
    for _ in range(steps):
        points = 2 * torch.rand(3, 400, 3) - 1
        wrong = decoder(codes, points) - (points.norm(dim=-1) - radii)
        adam.zero_grad()
        wrong.square().mean().backward()
        adam.step()
    torch.set_num_threads(threads)
    extents = torch.stack([-radii.expand(-1, 3), radii.expand(-1, 3)], dim=1)
    card = {"name": folder.name, "skin": 0.0, "clamping_distance": 0.5, "lipschitz": 2.0, "bend": 4.0}
    save_checkpoint(folder, decoder, codes, extents, ["small", "middle", "large"], card)
    return folder


def half_ball(seed: int = 0, points: int = 400) -> bytes:
    """The front half of a ball of radius 2 about (10, 0, 0), as an NPY."""
    rows = np.random.default_rng(seed).normal(size=(points, 3))
    rows[:, 2] = np.abs(rows[:, 2])
    buffer = io.BytesIO()
    np.save(buffer, 2 * rows / np.linalg.norm(rows, axis=1, keepdims=True) + [10, 0, 0])
    return buffer.getvalue()
