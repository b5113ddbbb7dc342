"""Both benchmarks on a tiny model of solids, with samples in the files that they read of any model."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import trimesh
from listing import COLUMNS, last_number, write_csv
from shapes import ball_points, box

from benchmarks import latent, surface
from model.surface import ZeroLevel
from model.training.samples import Quality, sample_path
from model.training.sources import Shape, read_shapes

UNSEEN = {"unseen_box": box(0.45, 0.4, 0.5), "rejected_box": box(0.4, 0.45, 0.5)}


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a list of unseen solids."""
    folder = tmp_path_factory.mktemp("listed") / "tiny"
    shutil.copytree(tiny_checkpoint, folder)
    row = dict.fromkeys(COLUMNS, "none") | {
        "split": "test",
        "rotation": "",
        "width": 1,
        "height": 1,
        "depth": 1,
    }
    write_csv(folder / "shapes.csv", [row | {"id": name} for name in UNSEEN])
    return folder


@pytest.fixture(scope="module")
def data(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exact signed distances of the unseen solids, one of which is rejected."""
    folder = tmp_path_factory.mktemp("data")
    samples = folder / "samples" / "tiny"
    samples.mkdir(parents=True)
    row = dict.fromkeys((field.name for field in fields(Quality)), 0)
    row |= {"category": "none", "split": "test", "rejected": ""}
    rejected = {"unseen_box": "", "rejected_box": "open shell"}
    write_csv(
        samples / "quality.csv", [row | {"id": name, "rejected": why} for name, why in rejected.items()]
    )
    for shape in read_shapes(checkpoint):
        if not rejected[shape.id]:
            write_samples(shape, samples)
    return folder


def write_samples(shape: Shape, folder: Path) -> None:
    points = ball_points(4000, np.random.default_rng(0))
    rows = np.column_stack([points, UNSEEN[shape.id](points)]).astype(np.float32)
    path = sample_path(folder, shape)
    path.parent.mkdir(parents=True)
    np.savez(path, pos=rows[rows[:, 3] >= 0], neg=rows[rows[:, 3] < 0])


def test_levenberg_marquardt_is_faster_than_adam_on_an_unseen_solid(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "latent.json"
    options = ["--quick", "--checkpoint", str(checkpoint), "--data", str(data), "--json", str(file)]
    assert latent.main(options) == 0
    ratio = last_number(capsys.readouterr().out, r"latent: ([\d.]+) times faster")
    facts = json.loads(file.read_text())
    (race,) = facts["shapes"]
    assert ratio == pytest.approx(facts["number"], abs=0.05) and ratio > 1
    assert race["shape"] == "unseen_box"
    assert race["reached"] and race["lm_error"] <= latent.MARGIN * race["adam_error"]
    assert race["patient_ratio"] <= race["ratio"]
    # Left alone it goes on to a lower error, on more rows and for longer.
    assert race["final_error"] <= race["lm_error"] and race["final_seconds"] >= race["lm_seconds"]
    assert not race["worse"] and facts["worse_share"] == 0


def test_the_coarse_to_fine_surface_is_the_dense_one_for_less(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "surface.json"
    assert surface.main(["--quick", "--checkpoint", str(checkpoint), "--json", str(file)]) == 0
    ratio = last_number(capsys.readouterr().out, r"surface: ([\d.]+) times fewer evaluations")
    facts = json.loads(file.read_text())
    (extraction,) = facts["shapes"]
    assert ratio == pytest.approx(facts["number"], abs=0.05) and ratio > 1
    assert facts["same_mesh"] and extraction["same_faces"] and extraction["vertices"] > 1000


def test_missing_samples_end_with_the_commands_that_make_them(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"python -m model\.training\.samples .* --split test"):
        latent.main(["--quick", "--checkpoint", str(checkpoint), "--data", str(tmp_path)])


def test_a_lost_piece_of_the_surface_is_seen() -> None:
    ball, crumb = (trimesh.creation.icosphere(3, radius) for radius in (0.3, 0.1))
    crumb.apply_translation([0.7, 0, 0])
    both = trimesh.util.concatenate([ball, crumb])
    whole, lost = (
        ZeroLevel(m.vertices.astype(np.float32), m.faces.astype(np.int32), 1) for m in (both, ball)
    )
    deviation, same_faces = surface.difference(whole, lost)
    assert deviation > 0.1 and not same_faces
    assert surface.difference(whole, whole) == (0.0, True)
