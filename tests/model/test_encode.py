"""Codes of whole meshes by the command: a box that the tiny checkpoint knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh

from model.training.encode import main


def box(folder: Path, name: str, extents: tuple[float, float, float]) -> Path:
    """A box far from the origin, in millimetres."""
    mesh = trimesh.creation.box(extents=1000 * np.array(extents))
    mesh.apply_translation([5000, -200, 30])
    mesh.export(folder / f"{name}.ply")
    return folder / f"{name}.ply"


def test_a_known_shape_comes_back_where_it_was(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = box(tmp_path, "box", (1.0, 1.0, 1.0))
    assert main([str(tiny_checkpoint), str(source), str(tmp_path / "out.glb"), "--resolution", "48"]) == 0
    made = trimesh.load(tmp_path / "out.glb", force="mesh")
    assert made.is_watertight
    np.testing.assert_allclose(made.bounds, trimesh.load(source).bounds, atol=60)  # a box of 1000
    assert "box_0.5_0.5" in capsys.readouterr().out  # the training cube is the nearest


def test_the_way_between_two_meshes_is_an_animation(tiny_checkpoint: Path, tmp_path: Path) -> None:
    first, last = box(tmp_path, "a", (1.0, 1.0, 1.0)), box(tmp_path, "b", (0.7, 1.0, 1.0))
    out = tmp_path / "way.glb"
    arguments = [str(tiny_checkpoint), str(first), str(out), "--to", str(last), "--steps", "3"]
    assert main([*arguments, "--resolution", "32"]) == 0
    assert len(trimesh.load(out).geometry) == 3
