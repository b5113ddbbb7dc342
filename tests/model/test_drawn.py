"""Chairs that a program draws are solids of plausible size, and each is drawn from its number alone."""

import csv
from pathlib import Path

import numpy as np
import pytest
import trimesh

from model.training.drawn import draw, rows
from model.training.drawn.__main__ import main as list_chairs
from model.training.drawn.arms import ARMS
from model.training.drawn.backs import BACKS
from model.training.drawn.chairs import KINDS, chair
from model.training.drawn.legs import LEGS
from model.training.drawn.solids import bent, line, loft, rod, slab, superellipse
from model.training.recipe import SamplesRecipe
from model.training.samples import variant_numbers
from model.training.shapes import SourceError, read_shapes, write_shapes
from model.training.sources import bring

NUMBERS = range(60)


def welded(triangles: np.ndarray) -> trimesh.Trimesh:
    return trimesh.Trimesh(triangles.reshape(-1, 3), np.arange(3 * len(triangles)).reshape(-1, 3))


def area(outline: np.ndarray) -> float:
    x, y = outline.T
    return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


def level(at: np.ndarray) -> np.ndarray:
    return at[:, [0, 2, 1]]


@pytest.mark.parametrize(
    "triangles",
    [
        rod(line((0, 0, 0), (0, 1, 0)), (0.1, 0.2)),
        rod(line((0, 0, 0), (1, 0, 0)), (0.1, 0.1), 10),
        rod(bent([(0, 0, 0), (1, 0, 0), (1, 1, 0)], 0.2), (0.05, 0.05)),
        slab(superellipse(4, 40), 0.2, 0.05, level),
        slab(superellipse(2, 40), 0.2, 0.1, level, dish=0.05),
    ],
)
def test_solids_are_closed_and_face_outwards(triangles: np.ndarray) -> None:
    mesh = welded(triangles)
    assert mesh.is_watertight
    assert mesh.volume > 0


def test_a_rod_has_the_volume_of_its_section_times_its_length() -> None:
    made = welded(rod(line((0, 0, 0), (0, 2, 0)), (0.1, 0.2)))
    assert made.volume == pytest.approx(2 * 0.1 * 0.2 * area(superellipse(2, 12)))


def test_a_slab_with_sharp_edges_has_the_volume_of_its_outline_times_its_thickness() -> None:
    outline = superellipse(2, 40)
    made = welded(slab(outline, 0.1, 1e-6, level))
    assert made.volume == pytest.approx(0.1 * area(outline), rel=1e-3)


def test_rings_in_either_order_make_a_solid_that_faces_outwards() -> None:
    rings = np.stack([np.insert(superellipse(2, 8), 1, height, axis=1) for height in (0.0, 1.0)])
    assert welded(loft(rings)).volume == pytest.approx(welded(loft(rings[::-1])).volume)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_chair_stands_on_the_floor_and_has_a_chairs_size(number: int) -> None:
    _, triangles = chair(number)
    low, high = triangles.reshape(-1, 3).min(axis=0), triangles.reshape(-1, 3).max(axis=0)
    assert np.isfinite(triangles).all()
    assert abs(low[1]) < 0.05
    assert (high - low < [1.2, 1.7, 2.0]).all()
    assert (high - low > [0.25, 0.3, 0.25]).all()


def test_a_number_is_always_the_same_chair_and_another_number_another() -> None:
    assert np.array_equal(chair(3)[1], chair(3)[1])
    assert not np.array_equal(chair(3)[1][:50], chair(4)[1][:50])


def test_every_kind_of_part_is_known_and_every_known_one_is_used() -> None:
    for parts, known in (("legs", LEGS), ("backs", BACKS), ("arms", ARMS)):
        named = {word for kind in KINDS.values() for word in getattr(kind, parts).split()}
        assert named == set(known)


def test_drawn_chairs_are_listed_beside_the_others_once_and_brought(tmp_path: Path) -> None:
    folder, data = tmp_path / "checkpoint", tmp_path / "data"
    write_shapes(rows([99]), folder)
    for _ in range(2):
        assert list_chairs([str(folder), "--count", "3"]) == 0
    shapes = read_shapes(folder)
    assert [shape.file for shape in shapes] == ["chair/0", "chair/1", "chair/2"]
    for shape, path in zip(shapes, bring(shapes, data), strict=True):
        assert trimesh.load_mesh(path).extents == pytest.approx(shape.size, rel=1e-4)


def test_drawn_chairs_have_variants_of_their_own_number() -> None:
    recipe = SamplesRecipe(variants=7, drawn_variants=2)
    assert list(variant_numbers(rows([0])[0], recipe)) == [0, 1, 2]


@pytest.mark.parametrize("file", ["table/3", "chair/x", "chair"])
def test_what_cannot_be_drawn_is_said(file: str) -> None:
    with pytest.raises(SourceError, match="chair/NUMBER"):
        draw(file)


def test_a_missing_list_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list_chairs([str(tmp_path)]) == 1
    assert "shapes.csv" in capsys.readouterr().err


def test_the_list_names_author_and_licence(tmp_path: Path) -> None:
    path = write_shapes(rows(range(2)), tmp_path)
    with path.open() as file:
        assert {row["licence"] for row in csv.DictReader(file)} == {"CC0-1.0"}
