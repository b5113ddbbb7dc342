"""`python -m worker.local`: the same completion without a queue."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import trimesh
from PIL import Image
from processes import ROOT

from app.schemas import CompletionOptions
from app.settings import get_settings
from worker.local import BadReport, code_of, main
from worker.tasks import models

Local = Callable[..., tuple[int, str]]


@pytest.fixture
def local(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Local]:
    """The command in this process, as torch takes its time to import: its exit code, and what it says."""
    monkeypatch.setenv("DEEPSDF_DEVICE", "cpu")
    monkeypatch.setenv("DEEPSDF_CHECKPOINTS_DIR", str(tiny_checkpoint.parent))
    get_settings.cache_clear()
    models.cache_clear()

    def run(*arguments: str) -> tuple[int, str]:
        try:
            code = main([*arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, capsys.readouterr().err

    yield run
    get_settings.cache_clear()
    models.cache_clear()


def test_help_is_there_at_once():
    start = time.perf_counter()
    command = [sys.executable, "-m", "worker.local", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert time.perf_counter() - start < 2
    assert shown.returncode == 0
    options = {name.replace("_", "-") for name in CompletionOptions.model_fields} - {"start-from", "priority"}
    for flag in (*options, "viewpoint", "intrinsics", "mask", "color-image", "report", "start"):
        assert f"--{flag}" in shown.stdout, flag


def ball(folder: Path, count: int = 500) -> str:
    rows = np.random.default_rng(0).normal(size=(count, 3))
    np.save(folder / "ball.npy", rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return str(folder / "ball.npy")


def test_a_scan_becomes_a_mesh_and_a_report_to_start_from(local, tmp_path):
    mesh, report = tmp_path / "new" / "ball.glb", tmp_path / "other" / "ball.json"
    flags = ["--model", "tiny", "--resolution", "40", "--report", str(report)]
    code, told = local(ball(tmp_path), str(mesh), *flags)
    assert code == 0, told
    assert trimesh.load(mesh, force="mesh").is_watertight
    assert json.loads(report.read_text())["faces"] == len(trimesh.load(mesh, force="mesh").faces)
    again = [*flags, "--start", str(report), "--no-refine"]
    code, told = local(ball(tmp_path), str(mesh), *again)
    assert code == 0, told


def test_several_scans_become_one_mesh_in_the_format_of_its_name(local, tmp_path):
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
    code, told = local(*scans, str(mesh), *flags)
    assert code == 0, told
    assert mesh.read_bytes().startswith(b"ply")
    assert trimesh.load(mesh, force="mesh").is_watertight


def test_what_cannot_be_done_is_said_in_a_line(local, tmp_path):
    scan = tmp_path / "broken.ply"
    scan.write_bytes(b"ply\nnothing")
    code, told = local(str(scan), str(tmp_path / "x.glb"), "--model", "tiny")
    assert (code, "invalid_ply" in told) == (1, True)
    code, told = local(ball(tmp_path), str(tmp_path / "x.glb"), "--model", "gone")
    assert (code, "gone" in told) == (1, True), told


def test_a_wrong_option_is_refused_before_any_work(local):
    for wrong, why in (
        (("a.ply", "b.glb", "--resolution", "5"), "resolution"),
        (("a.ply", "b.glb", "--target-faces", "few"), "--target-faces"),
        (("a.ply", "b.fbx"), "glb, ply, obj, stl"),
    ):
        code, told = local(*wrong)
        assert (code, why in told) == (2, True)


def test_what_is_no_report_is_told(local, tmp_path):
    start = tmp_path / "report.json"
    start.write_text("{}")
    code, told = local(ball(tmp_path), str(tmp_path / "x.glb"), "--model", "tiny", "--start", str(start))
    assert (code, "no report" in told) == (1, True)


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"code": 5}'])
def test_a_report_has_a_code(tmp_path, text):
    report = tmp_path / "report.json"
    report.write_text(text)
    with pytest.raises(BadReport, match="no report"):
        code_of(report)
