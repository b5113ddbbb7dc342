"""Shapes of one design: copies, stretched copies, and shapes that only resemble each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("igl")

from model.training import duplicates  # noqa: E402
from model.training.duplicates import find_pairs, groups_of, surface_distance  # noqa: E402
from model.training.meshes import write_ply  # noqa: E402
from model.training.shapes import Shape, write_shapes  # noqa: E402


def chair(legs=0.05, back=0.5):
    """A seat on four legs with a back."""
    parts = [((0.5, 0.06, 0.5), (0, 0.45, 0)), ((0.5, back, 0.05), (0, 0.48 + back / 2, -0.22))]
    parts += [((legs, 0.42, legs), (x, 0.21, z)) for x in (-0.2, 0.2) for z in (-0.2, 0.2)]
    meshes = [trimesh.creation.box(extent).apply_translation(place) for extent, place in parts]
    return trimesh.util.concatenate(meshes)


def table():
    """A board on one leg."""
    board = trimesh.creation.cylinder(
        0.5, 0.04, transform=trimesh.geometry.align_vectors([0, 0, 1], [0, 1, 0])
    )
    return trimesh.util.concatenate(
        [board, trimesh.creation.box((0.1, 0.8, 0.1)).apply_translation((0, -0.4, 0))]
    )


def found(*meshes, **options):
    categories = ["chair"] * len(meshes)
    return {(pair.first, pair.second) for pair in find_pairs(categories, lambda n: meshes[n], **options)}


def test_a_resized_copy_is_the_same_design():
    copy = chair().apply_transform(np.diag([2.0, 0.7, 1.3, 1.0])).apply_translation((5, 6, 7))
    assert surface_distance(chair(), copy) == pytest.approx(0, abs=1e-9)
    assert found(chair(), copy, table()) == {(0, 1)}


def test_other_triangles_of_the_same_surface_are_the_same_design():
    assert surface_distance(chair(), chair().subdivide()) == pytest.approx(0, abs=1e-9)
    assert found(chair(), chair().subdivide().subdivide()) == {(0, 1)}


def test_another_design_is_far():
    assert surface_distance(chair(), table()) > 10 * duplicates.WITHIN
    assert found(chair(), table()) == set()


def test_distance_is_that_of_the_surfaces():
    # In the cube, the lids of the open box and of the closed one are all that differs: 4 of 24 of the area,
    # on average far from the walls. Its mean distance to the nearest wall is 1/3, as in a pyramid.
    closed = trimesh.creation.box((1, 2, 3))
    lid = np.isclose(closed.face_normals[:, 1], 1)
    open_box = trimesh.Trimesh(closed.vertices, closed.faces[~lid], process=False)
    assert surface_distance(closed, open_box) == pytest.approx(4 / 24 / 3, rel=0.15)


def test_what_counts_as_one_design_can_be_said():
    near = chair(back=0.55)
    apart = surface_distance(chair(), near)
    assert found(chair(), near, within=apart * 1.01) == {(0, 1)}
    assert found(chair(), near, within=apart * 0.99) == set()


def test_shapes_of_two_categories_are_not_compared():
    assert find_pairs(["chair", "bench"], lambda number: chair()) == []


def test_a_flat_sheet_is_no_trouble():
    sheet = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])
    assert surface_distance(sheet, sheet) == pytest.approx(0, abs=1e-9)


def test_groups_reach_over_all_links():
    pairs = [duplicates.Pair(1, 4, 0.0), duplicates.Pair(2, 4, 0.0)]
    assert groups_of(6, pairs) == [0, 1, 1, 3, 1, 5]
    assert groups_of(0, []) == []


@pytest.fixture
def folder(tmp_path):
    """A list with a chair, its stretched copy in test, and a table; the PLYs are there."""
    first = Shape(
        "a", "A", "chair", "chair", "train", "a", "", "a.obj", np.eye(3), np.ones(3), "Ann", "CC0-1.0"
    )
    shapes = [first, replace(first, id="b", group="b", split="test"), replace(first, id="c", group="c")]
    meshes = [chair(), chair().apply_scale((1, 2, 1)), table()]
    for shape, mesh in zip(shapes, meshes, strict=True):
        write_ply(mesh, shape.path(tmp_path / "data"))
    write_shapes(shapes, tmp_path)
    return tmp_path


def test_the_check_names_designs_in_two_splits(folder, capsys):
    assert duplicates.main([str(folder), "--data", str(folder / "data")]) == 1
    printed = capsys.readouterr().out
    assert "a (train)  b (test)" in printed
    assert "1 pairs of one design: 1 without a common group, 1 in two splits" in printed


def test_the_check_says_which_command_brings_the_shapes(folder, capsys):
    assert duplicates.main([str(folder), "--data", str(folder / "elsewhere")]) == 1
    assert "python -m model.training.sources" in capsys.readouterr().err
