"""`deepsdf doctor`: whether all that a service needs is here, and what to do where it is not."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata

import typer

from app.settings import Settings, get_settings
from worker.cli.exits import FAILED, OK


@dataclass(frozen=True)
class Finding:
    """What one check has found; `mend` says what to do, and is empty where nothing is amiss."""

    what: str
    found: str
    mend: str = ""


FREE_BYTES = 2 * 2**30
DISTRIBUTION = "deepsdf-service"
MODULES = {"libigl": "igl", "openexr": "OpenEXR", "pillow": "PIL", "scikit-image": "skimage"}
"""What is imported under another name than it is installed by."""


def main(url: str | None, as_json: bool) -> int:
    """Print each finding; 0 when nothing is to be mended."""
    findings = [*of_installation(get_settings()), *([_service(url)] if url else [])]
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print(findings)
    return FAILED if any(finding.mend for finding in findings) else OK


def _print(findings: list[Finding]) -> None:
    """Without rich, which may be what is missing."""
    for finding in findings:
        mark = typer.style("✗", fg="red") if finding.mend else typer.style("✓", fg="green")
        typer.echo(f"{mark} {finding.what}: {finding.found}")
        if finding.mend:
            typer.echo(f"    {finding.mend}")
    amiss = sum(bool(finding.mend) for finding in findings)
    typer.echo(f"\n{amiss} to mend" if amiss else "\nAll is well: `deepsdf serve` starts the service.")


def of_installation(settings: Settings) -> list[Finding]:
    """What is found of this installation under these settings."""
    checks: list[Callable[[Settings], Finding]] = [_python, _packages, _device, _models, _queue, _data, _port]
    return [_safely(check, settings) for check in checks]


def _safely(check: Callable[[Settings], Finding], settings: Settings) -> Finding:
    """A check that breaks is a finding too."""
    try:
        return check(settings)
    except Exception as error:
        return Finding(
            check.__name__.strip("_"), f"{type(error).__name__}: {error}", "Install anew: make setup"
        )


def _python(_: Settings) -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("Python", version, "" if sys.version_info >= (3, 11) else "Use Python 3.11 or newer.")


def required() -> list[str]:
    """The modules of all packages that the installation asks for, extras aside."""
    asked = [line for line in metadata.requires(DISTRIBUTION) or [] if "extra ==" not in line]
    names = [re.split(r"[^\w-]", line)[0] for line in asked]
    return [MODULES.get(name.lower(), name.replace("-", "_")) for name in names]


def _packages(_: Settings) -> Finding:
    modules, missing = required(), []
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing.append(f"{name} ({error})")
    if missing:
        return Finding("packages", f"cannot import {', '.join(missing)}", "Install them: make setup")
    return Finding("packages", f"all {len(modules)} can be imported")


def _device(settings: Settings) -> Finding:
    import torch

    gpu = torch.cuda.is_available()
    found = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    if settings.device.startswith("cuda") and not gpu:
        return Finding(
            "device", found, "DEEPSDF_DEVICE asks for CUDA, which torch does not see: use auto or cpu."
        )
    return Finding("device", f"{found}, torch {torch.__version__}")


def _models(settings: Settings) -> Finding:
    from model.checkpoint import BadCheckpoint, load_checkpoint

    folder = settings.checkpoints_dir
    names = sorted(card.parent.name for card in folder.glob("*/card.json"))
    if not names:
        mend = "Run it where the folder `checkpoints` is, or say where by DEEPSDF_CHECKPOINTS_DIR."
        return Finding("models", f"none in {folder.resolve()}", mend)
    for name in names:
        try:
            load_checkpoint(folder / name, "cpu")
        except (BadCheckpoint, OSError) as error:
            return Finding(
                "models", f"{name} cannot be loaded: {error}", f"Restore or remove {folder / name}."
            )
    return Finding("models", ", ".join(names))


def _queue(settings: Settings) -> Finding:
    from app.embedded import NoServer, find_server
    from app.queue import connect

    if settings.redis_url is not None:
        try:
            connect(settings, patience_s=0).ping()
        except Exception as error:
            mend = "Start that server, or unset REDIS_URL to use the embedded one."
            return Finding("queue", f"{settings.redis_url} does not answer: {error}", mend)
        return Finding("queue", f"{settings.redis_url} answers")
    try:
        return Finding("queue", f"embedded, {find_server()}")
    except NoServer as error:
        return Finding("queue", "no server", str(error))


def _data(settings: Settings) -> Finding:
    folder = settings.data_dir
    there = next(parent for parent in [folder, *folder.resolve().parents] if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        mend = "Choose a folder that you may write to by DEEPSDF_DATA_DIR."
        return Finding("data folder", f"{folder}: {error}", mend)
    free = shutil.disk_usage(there).free
    mend = "" if free > FREE_BYTES else "Make room: scans and meshes need some MB each."
    return Finding("data folder", f"{folder}, {free / 2**30:.1f} GiB free", mend)


def _port(settings: Settings) -> Finding:
    with socket.socket() as probe:
        probe.settimeout(1)
        taken = probe.connect_ex((settings.host, settings.port)) == 0
    where = f"{settings.host}:{settings.port}"
    return Finding("port", f"{where} is {'in use, maybe by a running service' if taken else 'free'}")


def _service(url: str) -> Finding:
    from app.client import Client

    with Client(url) as client:
        ready = client.is_ready()
    mend = (
        ""
        if ready
        else "Start it by `deepsdf serve`, or look into its log for a worker that does not come up."
    )
    return Finding("service", f"{url} is {'ready' if ready else 'not ready'}", mend)
