"""`python -m worker.local`: the same completion without a queue."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import trimesh
from processes import ROOT


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
    for option in ("--model", "--up", "--solver", "--resolution", "--seed", "--viewpoint", "--intrinsics"):
        assert option in shown.stdout


def test_a_scan_becomes_a_mesh(tiny_checkpoint, tmp_path):
    rows = np.random.default_rng(0).normal(size=(500, 3))
    np.save(tmp_path / "ball.npy", rows / np.linalg.norm(rows, axis=1, keepdims=True))
    scan, mesh = str(tmp_path / "ball.npy"), str(tmp_path / "new" / "ball.glb")
    done = local(scan, mesh, "--model", "tiny", "--resolution", "40", checkpoints=tiny_checkpoint.parent)
    assert done.returncode == 0, done.stderr
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
