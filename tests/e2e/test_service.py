"""The whole service as a user runs it, through its HTTP API. Where its parts are killed: `test_chaos`."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from processes import ROOT, Service, eventually, free_port, start_service

from app.client import ProblemError
from app.schemas import Completion

SLOW = {"solver": "adam", "resolution": 192}
QUICK = {"solver": "lm", "resolution": 40, "pose": "canonical", "refine": "false"}
BETWEEN = {"solver": "lm", "resolution": 128}


def scan(seed: int = 0) -> bytes:
    """The front half of a ball of radius 2 about (10, 0, 0), as an NPY."""
    rows = np.random.default_rng(seed).normal(size=(600, 3))
    rows[:, 2] = np.abs(rows[:, 2])
    buffer = io.BytesIO()
    np.save(buffer, 2 * rows / np.linalg.norm(rows, axis=1, keepdims=True) + [10, 0, 0])
    return buffer.getvalue()


def submit(service: Service, **options: str | int) -> Completion:
    return service.client.submit(
        scan(), "ball.npy", model="tiny", form={"viewpoint": "[10, 0, 9]"}, **options
    )


def running(service: Service, completion: Completion) -> None:
    """Wait until it is being fitted."""
    eventually(lambda: service.client.status(completion.id).phase == "fit")


def closed_mesh(service: Service, completion: Completion) -> trimesh.Trimesh:
    mesh = trimesh.load(BytesIO(service.client.mesh(completion.id)), file_type="glb", force="mesh")
    assert mesh.is_watertight
    return mesh


@pytest.fixture(autouse=True)
def calm(service: Service) -> None:
    """Each test begins with a service that is ready."""
    service.ready()


def test_a_scan_goes_in_and_a_closed_mesh_comes_out(service):
    seen: list[Completion] = []
    submitted = submit(service, **BETWEEN)
    done = service.client.wait(submitted.id, seen.append, interval_s=0.02)
    assert done.status == "succeeded", done.error
    assert {"queued", "running", "succeeded"} >= {now.status for now in seen}
    assert {"fit"} <= {now.phase for now in seen}
    assert len({now.step for now in seen}) > 5
    assert any(now.residual is not None for now in seen)
    assert done.created_at <= done.started_at <= done.ended_at
    assert done.report["watertight"] is True
    mesh = closed_mesh(service, done)
    assert np.linalg.norm(mesh.bounds.mean(axis=0) - [10, 0, 0]) < 2


def test_a_depth_map_goes_in_too(service):
    rows, columns = np.mgrid[:96, :128]
    rays = np.stack([(columns - 63.5) / 120, (rows - 47.5) / 120, np.ones((96, 128))], axis=-1)
    a, b, c = (rays**2).sum(-1), -4 * rays[..., 2], 4 - 0.25
    inside = b * b - 4 * a * c > 0
    depth = np.where(inside, (-b - np.sqrt(np.maximum(b * b - 4 * a * c, 0))) / (2 * a), 0)
    form = {"intrinsics": json.dumps({"fx": 120, "fy": 120, "cx": 63.5, "cy": 47.5})}
    png, mask = as_png((1000 * depth).astype(np.uint16)), as_png((255 * inside).astype(np.uint8))
    submitted = service.client.submit(png, "depth.png", mask=mask, form=form, model="tiny", **QUICK)
    done = service.client.wait(submitted.id)
    assert done.status == "succeeded", done.error
    # Not the GLB, whose node turns the camera's frame upright.
    ply = trimesh.load(BytesIO(service.client.mesh(done.id, format="ply")), file_type="ply")
    assert ply.is_watertight and 1 < ply.bounds.mean(axis=0)[2] < 3


def as_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_running_and_a_waiting_completion_are_cancelled(service):
    first, second = submit(service, **SLOW), submit(service, **SLOW)
    running(service, first)
    assert service.client.cancel(second.id).status == "cancelled"
    assert service.client.cancel(first.id).status == "cancelled"
    assert service.client.status(second.id).status == "cancelled"
    assert service.client.cancel(first.id).status == "cancelled"
    with pytest.raises(ProblemError, match="completion_cancelled"):
        service.client.mesh(first.id)


def test_what_has_succeeded_cannot_be_cancelled(service):
    done = service.client.wait(submit(service, **QUICK).id)
    with pytest.raises(ProblemError) as refusal:
        service.client.cancel(done.id)
    assert (refusal.value.problem.status, refusal.value.problem.code) == (409, "already_ended")


def test_a_completion_survives_its_workers_death(service):
    first, second = submit(service, **BETWEEN), submit(service, **QUICK)
    running(service, first)
    service.kill("worker", signal.SIGKILL)
    done = service.client.wait(first.id, timeout_s=150)
    assert (done.status, done.attempt) == ("succeeded", 2)
    closed_mesh(service, done)
    assert service.client.wait(second.id).attempt == 1


def test_a_hostile_upload_does_no_harm(service):
    for data, name in (
        (b"ply\nformat ascii 1.0\nelement vertex 9999999999\n", "a.ply"),
        (b"PK\x03\x04", "a.npz"),
    ):
        with pytest.raises(ProblemError) as refusal:
            service.client.submit(data, name, model="tiny")
        assert refusal.value.problem.status == 422
    assert service.client.wait(submit(service, **QUICK).id).status == "succeeded"


def refusal_of_service(checkpoints: Path, data: Path, port: int) -> str:
    flags = {"--checkpoints-dir": checkpoints, "--data-dir": data, "--port": port}
    command = [sys.executable, "-m", "app", *(str(word) for flag in flags.items() for word in flag)]
    environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    refused = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=20)
    assert refused.returncode == 2, refused
    assert "Traceback" not in refused.stderr
    return refused.stderr


def test_a_service_that_cannot_work_says_why_at_once(service, tiny_checkpoint, tmp_path):
    models, port = tiny_checkpoint.parent, service.client.http.base_url.port
    assert "--data-dir" in refusal_of_service(models, service.data_dir, free_port())
    assert "--port" in refusal_of_service(models, tmp_path, port)
    assert "--checkpoints-dir" in refusal_of_service(tmp_path, tmp_path, free_port())


def test_stopping_leaves_no_process_and_starting_again_loses_nothing(tiny_checkpoint, tmp_path):
    service = start_service(tmp_path / "data", tiny_checkpoint, drain_s="0", lease_s="3")
    service.ready()
    done = service.client.wait(submit(service, **QUICK).id)
    first, second = submit(service, **SLOW), submit(service, **QUICK)
    running(service, first)
    children = service.children()
    assert children.keys() == {"queue", "worker", "api"}
    assert service.stop() == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in children.values())

    service = start_service(tmp_path / "data", tiny_checkpoint, lease_s="3")
    service.ready()
    assert service.client.status(done.id) == done
    running(service, first)  # once more: it was handed back, which costs no attempt
    assert service.client.status(first.id).attempt == 1
    service.client.cancel(first.id)
    assert service.client.wait(second.id, timeout_s=150).status == "succeeded"

    children = service.children()
    service.process.kill()
    service.process.wait()
    eventually(lambda: not any(is_alive(pid) for pid in children.values()))


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
