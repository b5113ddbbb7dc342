"""Both benchmarks on a tiny model of solids, with samples in the files that they read of any model."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest
import trimesh
from listing import COLUMNS, last_number, write_csv
from shapes import ball_points, box

from benchmarks import latent, surface
from model.surface import ZeroLevel
from model.training.samples import Quality, sample_path
from model.training.shapes import Shape, read_shapes

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
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surface, "CELLS", (128, 192))
    file = tmp_path / "surface.json"
    assert surface.main(["--quick", "--checkpoint", str(checkpoint), "--json", str(file)]) == 0
    ratio = last_number(capsys.readouterr().out, r"surface: ([\d.]+) times fewer evaluations")
    facts = json.loads(file.read_text())
    assert {one["corners"] for one in facts["shapes"]} == {129, 193}
    assert ratio == pytest.approx(facts["number"], abs=0.05) and 1 < ratio < facts["number_of_finest"]
    assert facts["same_mesh"] and facts["broken"] == 0
    for extraction in facts["shapes"]:
        assert extraction["same_faces"] and 0 < extraction["used"] < 1


def test_missing_samples_end_with_the_commands_that_make_them(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"python -m model\.training\.samples .* --split test"):
        latent.main(["--quick", "--checkpoint", str(checkpoint), "--data", str(tmp_path)])


def test_a_lost_piece_of_the_surface_is_seen() -> None:
    whole, lost = mesh_of((0.3, 0.0), (0.1, 0.7)), mesh_of((0.3, 0.0))
    for pair in ((whole, lost), (lost, whole)):
        deviation, same_faces = surface.difference(*pair)
        assert deviation > 0.1 and not same_faces
        assert surface.difference(*pair, edge=0.5) == (0.0, True)
    assert surface.difference(whole, whole) == (0.0, True)


def mesh_of(*balls: tuple[float, float]) -> ZeroLevel:
    """Balls of a radius at a place along x."""
    bodies = [trimesh.creation.icosphere(3, radius) for radius, _ in balls]
    for body, (_, x) in zip(bodies, balls, strict=True):
        body.apply_translation([x, 0, 0])
    both = trimesh.util.concatenate(bodies)
    return ZeroLevel(both.vertices.astype(np.float32), both.faces.astype(np.int32), 1)


def test_a_field_that_is_steeper_or_bends_more_than_it_says_is_seen() -> None:
    """A sheet in the middle of a grid: what bends are left when it is said to be as steep as it is."""
    cell = 1 / 32
    y = np.broadcast_to(np.arange(-32, 33)[:, None] * cell, (65, 65, 65)).astype(np.float32)
    sheet = np.abs(y)
    for lipschitz, bend, honest in ((1.0, 1.0, True), (0.9, 1.0, False), (1.0, 0.9, False)):
        broken, used = surface.bounds_at_work(sheet, Said(lipschitz, bend), cell, 4)
        assert (broken == 0) == honest
        assert used == pytest.approx(1 / min(lipschitz, bend), rel=1e-4)


@dataclass(frozen=True)
class Said:
    """What a field says of itself."""

    lipschitz: float
    bend: float
