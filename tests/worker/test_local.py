"""`python -m worker.local`: the same completion without a queue."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import trimesh
from PIL import Image
from processes import ROOT

from app.schemas import CompletionOptions
from worker.local import BadReport, code_of


def local(*arguments: str, checkpoints: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DEEPSDF_DEVICE": "cpu"}
    if checkpoints is not None:
        environment["DEEPSDF_CHECKPOINTS_DIR"] = str(checkpoints)
    command = [sys.executable, "-m", "worker.local", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_help_is_there_at_once():
    start = time.perf_counter()
    shown = local("--help")
    assert time.perf_counter() - start < 2
    assert shown.returncode == 0
    options = {name.replace("_", "-") for name in CompletionOptions.model_fields} - {"start-from", "priority"}
    for flag in (*options, "viewpoint", "intrinsics", "mask", "color-image", "report", "start"):
        assert f"--{flag}" in shown.stdout, flag


def ball(folder: Path, count: int = 500) -> str:
    rows = np.random.default_rng(0).normal(size=(count, 3))
    np.save(folder / "ball.npy", rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return str(folder / "ball.npy")


def test_a_scan_becomes_a_mesh_and_a_report_to_start_from(tiny_checkpoint, tmp_path):
    mesh, report = tmp_path / "new" / "ball.glb", tmp_path / "other" / "ball.json"
    flags = ["--model", "tiny", "--resolution", "40", "--report", str(report)]
    done = local(ball(tmp_path), str(mesh), *flags, checkpoints=tiny_checkpoint.parent)
    assert done.returncode == 0, done.stderr
    assert trimesh.load(mesh, force="mesh").is_watertight
    told = json.loads(report.read_text())
    assert told["faces"] == len(trimesh.load(mesh, force="mesh").faces)
    again = [*flags, "--start", str(report), "--no-refine"]
    done = local(ball(tmp_path), str(mesh), *again, checkpoints=tiny_checkpoint.parent)
    assert done.returncode == 0, done.stderr


def test_several_scans_become_one_mesh_in_the_format_of_its_name(tiny_checkpoint, tmp_path):
    rows, columns = np.mgrid[:48, :64]
    beside = np.minimum((rows - 24) ** 2 + (columns - 32) ** 2, 200)
    near = beside < 200
    depth = np.where(near, 2000 - 30 * np.sqrt(200 - beside), 0).astype(np.uint16)
    mask = tmp_path / "mask.png"
    Image.fromarray((255 * near).astype(np.uint8)).save(mask)
    Image.fromarray(depth).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "b.tif", depth)
    scans = [str(tmp_path / "a.png"), str(tmp_path / "b.tif")]
    camera = '{"fx": 60, "fy": 60, "cx": 31.5, "cy": 23.5}'
    pose = json.dumps(np.diag([1, -1, -1, 1]).tolist())
    flags = ["--model", "tiny", "--resolution", "32", "--intrinsics", camera]
    for _ in scans:
        flags += ["--camera-to-world", pose, "--mask", str(mask)]
    mesh = tmp_path / "out.ply"
    done = local(*scans, str(mesh), *flags, checkpoints=tiny_checkpoint.parent)
    assert done.returncode == 0, done.stderr
    assert mesh.read_bytes().startswith(b"ply")
    assert trimesh.load(mesh, force="mesh").is_watertight


def test_what_cannot_be_done_is_said_in_a_line(tiny_checkpoint, tmp_path):
    scan = tmp_path / "broken.ply"
    scan.write_bytes(b"ply\nnothing")
    done = local(str(scan), str(tmp_path / "x.glb"), "--model", "tiny")
    assert (done.returncode, "invalid_ply" in done.stderr) == (1, True)
    np.save(tmp_path / "ok.npy", np.random.default_rng(0).normal(size=(100, 3)))
    gone = local(str(tmp_path / "ok.npy"), str(tmp_path / "x.glb"), "--model", "gone")
    assert (gone.returncode, "Traceback" in gone.stderr) == (1, False)


def test_a_wrong_option_is_refused_before_any_work(tmp_path):
    done = local("a.ply", "b.glb", "--resolution", "5")
    assert (done.returncode, "Traceback" in done.stderr, "resolution" in done.stderr) == (2, False, True)
    done = local("a.ply", "b.glb", "--target-faces", "few")
    assert (done.returncode, "--target-faces" in done.stderr) == (2, True)
    done = local("a.ply", "b.fbx")
    assert (done.returncode, "glb, ply, obj, stl" in done.stderr) == (2, True)


def test_what_is_no_report_is_told(tiny_checkpoint, tmp_path):
    start = tmp_path / "report.json"
    start.write_text("{}")
    done = local(ball(tmp_path), str(tmp_path / "x.glb"), "--model", "tiny", "--start", str(start))
    assert (done.returncode, "Traceback" in done.stderr, "no report" in done.stderr) == (1, False, True)


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"code": 5}'])
def test_a_report_has_a_code(tmp_path, text):
    report = tmp_path / "report.json"
    report.write_text(text)
    with pytest.raises(BadReport, match="no report"):
        code_of(report)
