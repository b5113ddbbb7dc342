"""The benchmark of sampling, on solids in a checkpoint's list."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from listing import COLUMNS, last_number, write_csv

from benchmarks import samples
from model.training.meshes import write_ply
from model.training.shapes import read_shapes

BODIES = {"open": trimesh.creation.box((0.5, 0.7, 0.6)), "whole": trimesh.creation.box((0.5, 0.7, 0.6))}
BODIES["open"].update_faces(np.arange(12) > 1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe and a list of a box without one side and a whole one."""
    folder = tmp_path_factory.mktemp("checkpoints") / "boxes"
    folder.mkdir()
    (folder / "recipe.toml").write_text('name = "boxes"\ndescription = "boxes"\ncategory = "none"\n')
    row = dict.fromkeys(COLUMNS, "none") | {"rotation": "", "width": 1, "height": 1, "depth": 1}
    write_csv(folder / "shapes.csv", [row | {"id": name, "split": "train"} for name in BODIES])
    return folder


@pytest.fixture(scope="module")
def data(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("data")
    for shape in read_shapes(checkpoint):
        shape.path(data).parent.mkdir(parents=True, exist_ok=True)
        write_ply(BODIES[shape.id], shape.path(data))
    return data


def test_signs_of_the_watertight_shape_are_compared_and_speed_is_told(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "samples.json"
    samples.main(["--quick", "--checkpoint", str(checkpoint), "--data", str(data), "--json", str(file)])
    pattern = r"samples: ([\d.]+) thousand signed distances a second and core"
    speed = last_number(capsys.readouterr().out, pattern)
    facts = json.loads(file.read_text())
    rows = {row["shape"]: row for row in facts["shapes"]}
    assert speed == pytest.approx(rows["open"]["per_second"] / 1000, abs=0.1)
    assert rows["open"]["compared"] == 0
    assert rows["whole"]["compared"] > 20_000 and rows["whole"]["agreeing"] == facts["agreeing"] == 1


def test_wrong_signs_are_seen(checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a solid that calls everything outside."""
    whole = read_shapes(checkpoint)[1]
    recipe = samples.load_recipe(checkpoint).samples.model_copy(update={"points": 5000})
    assert samples.sampled(whole, data, recipe).agreeing == 1
    right = samples.Solid.signed_distance
    monkeypatch.setattr(samples.Solid, "signed_distance", lambda solid, points: np.abs(right(solid, points)))
    assert samples.sampled(whole, data, recipe).agreeing < 0.7


def test_parts_that_face_inwards_are_turned_over(tmp_path: Path) -> None:
    inverted, other = trimesh.creation.box((0.5, 0.7, 0.6)), trimesh.creation.box((0.4, 0.4, 0.4))
    inverted.invert()
    other.apply_translation((2, 0, 0))
    file = tmp_path / "both.ply"
    write_ply(trimesh.util.concatenate([inverted, other]), file)
    vertices = np.asarray(trimesh.load_mesh(file).vertices)
    centres = samples.normalization_of(vertices).apply(np.array([[0.0, 0, 0], [2.0, 0, 0], [1.0, 0, 0]]))
    assert samples.winding_numbers(file, centres) == pytest.approx([1, 1, 0], abs=0.01)


def test_shapes_that_were_not_brought_end_with_the_command_that_brings_them(
    checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"python -m model\.training\.sources"):
        samples.main(["--quick", "--checkpoint", str(checkpoint), "--data", str(tmp_path)])
