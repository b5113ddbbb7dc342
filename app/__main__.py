"""`python -m app`: the whole service on one machine: queue, worker and API."""

from __future__ import annotations

import fcntl
import ipaddress
import logging
import os
import socket
import sys
from pathlib import Path
from typing import IO

from pydantic_settings import CliApp

from app import logs
from app.embedded import EmbeddedQueue, NoServer
from app.settings import BadSettings, Settings, loaded
from app.supervisor import Child, Supervisor

log = logging.getLogger("app")


class Refused(Exception):
    """The service cannot start, for a reason that the person at the keyboard can mend."""


def main() -> int:
    """Start everything, keep it alive, stop it on SIGINT or SIGTERM."""
    logs.configure("service")
    try:
        settings = loaded(lambda: CliApp.run(Settings))
        _check_keys(settings)
        _check_models(settings)
        _check_port(settings)
        lock = _lock(settings.data_dir)
        children = _children(settings)
    except (BadSettings, Refused, NoServer, PermissionError) as error:
        print(f"python -m app: {error}", file=sys.stderr)
        return 2
    log.info("API at http://%s:%d, its documentation at /docs", settings.host, settings.port)
    with lock:
        return Supervisor(children, patience_s=settings.drain_s + 10).run()


def _children(settings: Settings) -> list[Child]:
    """Queue first, since the others need it."""
    queue = []
    if settings.redis_url is None:
        embedded = EmbeddedQueue(settings.data_dir)
        embedded.socket.unlink(missing_ok=True)
        settings = settings.model_copy(update={"redis_url": embedded.url})
        queue = [Child("queue", embedded.command(), ready=embedded.socket.exists)]
    environment = settings.environment()
    address = ["--host", settings.host, "--port", str(settings.port)]
    api = [sys.executable, "-m", "uvicorn", "app.main:create_app", "--factory", *address]
    return [
        *queue,
        *_workers(settings),
        Child("api", [*api, "--log-level", "warning", "--timeout-graceful-shutdown", "5"], environment),
    ]


def _workers(settings: Settings) -> list[Child]:
    """As many on each device as there shall be. Several share the cores, each with its threads."""
    devices = [device for device in settings.device.split(",") for _ in range(settings.workers_per_device)]
    environment, command = settings.environment(), [sys.executable, "-m", "worker"]
    if len(devices) > 1:
        share = max(1, (os.cpu_count() or 1) // len(devices))
        environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(share))
    return [
        Child(
            f"worker {number} on {device}", command, {**environment, "DEEPSDF_DEVICE": device}, kind="worker"
        )
        for number, device in enumerate(devices, start=1)
    ]


def _check_keys(settings: Settings) -> None:
    if not settings.api_keys and not settings.allow_without_keys and not _is_loopback(settings.host):
        told = f"others could use the service at {settings.host} without an API key"
        raise Refused(f"{told}; set DEEPSDF_API_KEYS (see `python -m app.keys`) or --allow-without-keys true")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_models(settings: Settings) -> None:
    if not any(settings.checkpoints_dir.glob("*/card.json")):
        raise Refused(f"there is no trained model in {settings.checkpoints_dir}; try --checkpoints-dir")


def _check_port(settings: Settings) -> None:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            address = f"{settings.host}:{settings.port}"
            raise Refused(f"cannot listen on {address} ({error.strerror}); try --port") from None


def _lock(data_dir: Path) -> IO[str]:
    """Two services on one data folder would write the same files."""
    data_dir.mkdir(parents=True, exist_ok=True)
    file = (data_dir / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Refused(f"another service uses {data_dir}; try --data-dir") from None
    return file


if __name__ == "__main__":
    sys.exit(main())
