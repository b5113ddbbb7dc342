"""Signed distances of meshes, against solids whose signed distance is known exactly."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray

pytest.importorskip("embreex")
pytest.importorskip("igl")

from model.frame import BALL_RADIUS
from model.training import deform, samples, signs, slices
from model.training.meshes import write_ply
from model.training.recipe import SamplesRecipe
from model.training.shapes import Shape

Floats = NDArray[np.float64]

RECIPE = SamplesRecipe(points=4000, variants=2)
HALF = np.array([0.4, 0.3, 0.25])
MAJOR, MINOR = 0.5, 0.2


def box_distance(points: Floats, half: Floats = HALF) -> Floats:
    q = np.abs(points) - half
    return np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(axis=1), 0)


def ball_distance(points: Floats) -> Floats:
    return np.linalg.norm(points, axis=1) - 0.6


def torus_distance(points: Floats) -> Floats:
    ring = np.hypot(np.hypot(points[:, 0], points[:, 1]) - MAJOR, points[:, 2])
    return ring - MINOR


def two_boxes_distance(points: Floats) -> Floats:
    return np.minimum(box_distance(points), box_distance(points - (0.3, 0.2, 0.0)))


def box(*shift: float, extents: Floats = 2 * HALF) -> trimesh.Trimesh:
    mesh = trimesh.creation.box(extents)
    return mesh.apply_translation(shift) if shift else mesh


def flipped(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """Every other face turned over, some doubled: windings that say nothing."""
    faces = mesh.faces.copy()
    faces[::2] = faces[::2, ::-1]
    return trimesh.Trimesh(mesh.vertices, np.concatenate([faces, faces[:3]]), process=False)


def holed_box(hole: float) -> trimesh.Trimesh:
    """A shell of side 1 without the middle `hole` × `hole` of its bottom."""
    half = hole / 2
    outer = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    corners = np.concatenate([outer, outer * hole])
    ring = [[i, (i + 1) % 4, 4 + i] for i in range(4)] + [
        [(i + 1) % 4, 4 + (i + 1) % 4, 4 + i] for i in range(4)
    ]
    bottom = trimesh.Trimesh(
        np.insert(corners, 1, -0.5, axis=1), ring if half < 0.5 else ring[:0], process=False
    )
    lid = box(extents=np.ones(3))
    lid.update_faces(lid.triangles_center[:, 1] > -0.49)
    return trimesh.util.concatenate([lid, bottom]) if half < 0.5 else lid


def triangles_of(mesh: trimesh.Trimesh) -> Floats:
    return np.asarray(mesh.triangles, np.float64)


def shape(split: str = "test", name: str = "thing") -> Shape:
    words = {
        "kind": "chair",
        "group": name,
        "package": "pack",
        "file": "",
        "author": "",
        "licence": "CC0-1.0",
    }
    pose = {"rotation": np.eye(3), "size": np.ones(3)}
    return Shape(id=name, name=name, category="chair", split=split, **words, **pose)


def brought(mesh: trimesh.Trimesh, data: Path, split: str = "test", name: str = "thing") -> Shape:
    write_ply(mesh, shape(split, name).path(data))
    return shape(split, name)


@pytest.mark.parametrize(
    ("mesh", "exact", "chord"),
    [
        (box(), box_distance, 0.0),
        (flipped(box()), box_distance, 0.0),
        (trimesh.creation.icosphere(5, 0.6), ball_distance, 4e-4),
        (trimesh.creation.torus(MAJOR, MINOR, 128, 96), torus_distance, 4e-4),
    ],
    ids=["box", "box with flipped and doubled faces", "ball", "torus"],
)
def test_distances_and_signs_are_those_of_the_exact_solid(
    mesh: trimesh.Trimesh, exact: Callable[[Floats], Floats], chord: float
) -> None:
    points = samples.draw_points(triangles_of(mesh), RECIPE, np.random.default_rng(0))
    measured = signs.Solid(triangles_of(mesh)).signed_distance(points)
    assert np.abs(measured - exact(points)).max() < chord + 1e-6


def test_inside_overlapping_parts_is_inside() -> None:
    mesh = trimesh.util.concatenate([box(), box(0.3, 0.2, 0.0)])
    points = samples.draw_points(triangles_of(mesh), RECIPE, np.random.default_rng(0))
    measured, exact = signs.Solid(triangles_of(mesh)).signed_distance(points), two_boxes_distance(points)
    assert np.array_equal(measured < 0, exact < 0)
    # Inside, the nearest face may be one that the other part covers: the distance is a bound there.
    assert np.abs(measured - exact)[exact > 0].max() < 1e-6
    assert (measured >= exact - 1e-6).all()


@pytest.mark.parametrize("thickness", [0.006, 0.013, 0.017, 0.03])
def test_a_plate_as_thin_as_a_voxel_has_its_inside(thickness: float) -> None:
    half = np.array([0.5, 0.4, thickness / 2])
    turn = trimesh.transformations.euler_matrix(0.3, 0.5, 0.9)
    mesh = box(extents=2 * half).apply_transform(turn)
    points = samples.surface_points(triangles_of(mesh), 4000, np.random.default_rng(0))
    points += np.random.default_rng(1).normal(scale=0.01, size=points.shape)
    measured = signs.Solid(triangles_of(mesh)).signed_distance(points)
    assert np.abs(measured - box_distance(points @ turn[:3, :3], half)).max() < 1e-6


def test_a_sheet_without_thickness_has_no_inside_but_the_skin() -> None:
    sheet = np.array([[[-0.5, 0, -0.5], [0.5, 0, -0.5], [0.5, 0, 0.5]]])
    points = samples.draw_points(sheet, RECIPE, np.random.default_rng(0))
    solid = signs.Solid(sheet)
    assert np.allclose(solid.signed_distance(points), solid.nearest(points)[0], atol=1e-9)


@pytest.mark.parametrize(
    ("hole", "centre_is_inside", "accepted"),
    [(0.0, True, True), (0.06, True, True), (0.5, False, False), (1.0, False, True)],
    ids=["closed", "small hole: solid", "window: undecided", "no bottom: hollow"],
)
def test_the_inside_of_a_leaky_shell_is_what_cannot_be_seen(
    hole: float, centre_is_inside: bool, accepted: bool, tmp_path: Path
) -> None:
    thing = brought(holed_box(hole), tmp_path)
    quality = samples.sample_shape(thing, tmp_path, tmp_path / "out", RECIPE)
    assert (quality.rejected == "") is accepted, quality
    assert samples.sample_path(tmp_path / "out", thing).exists() is accepted
    if accepted:
        centre = signs.Solid(triangles_of(holed_box(hole))).signed_distance(np.zeros((1, 3)))
        assert bool(centre[0] < 0) is centre_is_inside


def test_only_a_surface_without_rim_that_is_drawn_once_is_closed() -> None:
    shell = box()
    shell.update_faces(shell.triangles_center[:, 1] < HALF[1] - 1e-6)
    both_sides = np.concatenate([shell.triangles, shell.triangles[:, ::-1]])
    two = np.concatenate([box().triangles, box(1, 0, 0).triangles])
    assert signs.is_closed(box().triangles) and signs.is_closed(two)
    assert not signs.is_closed(shell.triangles)
    assert not signs.is_closed(both_sides), "an open shell with two sides"


def test_a_deep_recess_of_a_closed_surface_is_outside_though_hardly_a_camera_sees_it() -> None:
    """A tube with a bottom, nine times as deep as wide."""
    tube = trimesh.creation.annulus(0.1, 0.3, 1.8)
    bottom = trimesh.creation.cylinder(0.3, 0.1)
    bottom.apply_translation((0, 0, -0.94))
    solid = signs.Solid(np.concatenate([tube.triangles, bottom.triangles]))
    depths = np.linspace(-0.85, 0.85, 50)
    points = np.column_stack([0 * depths, 0 * depths, depths])
    assert (solid.sight.cameras(points) < signs.SEEN).any()
    assert (solid.signed_distance(points) > 0).all()
    assert (solid.signed_distance(points + np.array([0.2, 0, 0])) < 0).all()


def test_files_are_those_of_deepsdf_with_the_skin_applied(tmp_path: Path) -> None:
    mesh = box(3.0, -2.0, 1.0)
    thing = brought(mesh, tmp_path)
    samples.make_samples([thing], tmp_path, tmp_path / "out", RECIPE)
    path = tmp_path / "out" / "SdfSamples" / "pack" / "chair" / "thing.npz"
    with np.load(path) as arrays:
        assert set(arrays) == {"pos", "neg"}
        assert all(arrays[key].dtype == np.float32 and arrays[key].shape[1] == 4 for key in arrays)
        assert (arrays["pos"][:, 3] >= 0).all() and (arrays["neg"][:, 3] < 0).all()
    points, distances = samples.read_samples(path)
    assert points.shape == (RECIPE.points, 3) and distances.shape == (RECIPE.points,)
    way = samples.read_normalization(
        tmp_path / "out" / "NormalizationParameters" / "pack" / "chair" / "thing.npz"
    )
    raw = way.invert(points.astype(np.float64)) - (3.0, -2.0, 1.0)
    assert np.abs(distances - (box_distance(raw) * way.scale - RECIPE.skin)).max() < 1e-5
    assert np.isclose(
        np.linalg.norm(way.apply(np.asarray(mesh.vertices)), axis=1).max(), BALL_RADIUS, atol=1e-6
    )


def test_a_share_of_the_points_fills_the_ball_and_the_rest_hugs_the_surface() -> None:
    recipe = SamplesRecipe(points=20_000)
    points = samples.draw_points(triangles_of(box()), recipe, np.random.default_rng(0))
    near, uniform = np.split(points, [round((1 - recipe.uniform_share) * recipe.points)])
    radii = np.linalg.norm(uniform, axis=1)
    assert radii.max() <= 1.0 and np.isclose((radii**3).mean(), 0.5, atol=0.03)
    # Normal offsets of a plate are the Gaussian noise itself: half of them of each width.
    sheet = np.array([[[-50.0, 0, -50], [50, 0, -50], [0, 0, 50]]])
    offsets = samples.draw_points(sheet, recipe, np.random.default_rng(0))[: len(near), 1]
    widths = sorted([offsets[::2].std(), offsets[1::2].std()])
    assert np.allclose(widths, sorted(recipe.near_sigma), rtol=0.03)


def test_only_training_shapes_have_variants_and_all_fill_the_ball(tmp_path: Path) -> None:
    shapes = [brought(box(), tmp_path, split, split) for split in ("train", "val", "test")]
    samples.make_samples(shapes, tmp_path, tmp_path / "out", RECIPE)
    names = sorted(path.name for path in (tmp_path / "out" / "SdfSamples" / "pack" / "chair").iterdir())
    assert names == ["test.npz", "train.npz", "train__v01.npz", "train__v02.npz", "val.npz"]
    variant = samples.variant_of(triangles_of(box()), RECIPE, np.random.default_rng(1))
    assert np.isclose(np.linalg.norm(variant, axis=2).max(), BALL_RADIUS)


def test_distances_of_a_variant_are_measured_on_the_variant() -> None:
    """A stretch and a mirror alone leave a box a box, whose distance is known."""
    stretch = np.array([1.2, 0.8, 1.0])
    change = deform.Deformation(stretch, np.zeros((3, 3, 3, 3)), mirrored=True)
    triangles = deform.deformed(triangles_of(box(0.1, 0.0, 0.0)), change)
    points = samples.draw_points(triangles, RECIPE, np.random.default_rng(0))
    exact = box_distance(points - (-0.12, 0.0, 0.0), HALF * stretch)
    assert np.abs(signs.Solid(triangles).signed_distance(points) - exact).max() < 1e-6


def test_a_symmetric_lattice_keeps_symmetric_shapes_symmetric() -> None:
    rng = np.random.default_rng(0)
    lattice = deform.symmetrised(rng.normal(scale=0.09, size=(3, 3, 3, 3)))
    change = deform.Deformation(np.array([1.1, 0.9, 1.3]), lattice, mirrored=False)
    mirror = np.array([-1.0, 1.0, 1.0])
    points = rng.uniform(-0.6, 0.6, size=(100, 3))
    assert np.allclose(change(points * mirror), change(points) * mirror)
    assert np.allclose(deform.Deformation(change.stretch, lattice, True)(points), change(points) * mirror)


def test_the_lattice_is_met_at_its_nodes_and_never_folds() -> None:
    for seed in range(20):
        change = deform.draw_deformation(np.random.default_rng(seed), 0.28, 0.09)
        nodes = np.stack(np.meshgrid(*[[-1.0, 0.0, 1.0]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
        scale = change.stretch * ((-1.0 if change.mirrored else 1.0), 1.0, 1.0)
        assert np.allclose(change(nodes) / scale, nodes + change.lattice.reshape(-1, 3))
        points = samples.ball_points(500, np.random.default_rng(seed))
        columns = [(change(points + 1e-5 * e) - change(points - 1e-5 * e)) / 2e-5 for e in np.eye(3)]
        volumes = np.linalg.det(np.stack(columns, axis=-1) / scale[:, None])
        assert volumes.min() > 0.05


def test_cutting_long_triangles_keeps_the_surface_and_opens_no_crack() -> None:
    cut = deform.bisected(triangles_of(box()), 0.08)
    assert deform.edge_lengths(cut).max() <= 0.08
    welded = trimesh.Trimesh(cut.reshape(-1, 3), np.arange(3 * len(cut)).reshape(-1, 3), process=True)
    assert welded.is_watertight and np.isclose(welded.volume, 8 * HALF.prod())


def test_a_second_run_keeps_what_is_there_and_makes_what_is_missing(tmp_path: Path) -> None:
    thing, out = brought(box(), tmp_path, "train"), tmp_path / "out"
    first = samples.make_samples([thing], tmp_path, out, RECIPE)
    paths = [samples.sample_path(out, thing, variant) for variant in range(3)]
    contents = [path.read_bytes() for path in paths]
    assert samples.make_samples([thing], tmp_path, out, RECIPE) == first
    times = [path.stat().st_mtime_ns for path in paths]
    paths[1].unlink()
    samples.make_samples([thing], tmp_path, out, RECIPE)
    assert paths[1].read_bytes() == contents[1] != contents[2]
    assert [paths[i].stat().st_mtime_ns for i in (0, 2)] == [times[0], times[2]]
    assert not list(out.rglob("*.part"))


def test_samples_of_another_recipe_are_not_mixed_in(tmp_path: Path) -> None:
    thing, out = brought(box(), tmp_path), tmp_path / "out"
    samples.make_samples([thing], tmp_path, out, RECIPE)
    with pytest.raises(samples.SamplesError, match="other settings"):
        samples.make_samples([thing], tmp_path, out, RECIPE.model_copy(update={"skin": 0.01}))
    samples.make_samples([thing], tmp_path, out, RECIPE.model_copy(update={"variants": 5}))


def test_the_command_samples_in_processes_of_its_own_and_lists_the_quality(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "recipe.toml").write_text(
        'name = "boxes"\ndescription = "boxes"\ncategory = "chair"\n[samples]\npoints = 500\nvariants = 1\n'
    )
    header = "id,name,category,kind,split,group,package,file,rotation,width,height,depth,author,licence"
    row = "{0},{0},chair,chair,{1},{0},pack,,,1,1,1,,CC0-1.0"
    rows = [header, row.format("one", "train"), row.format("two", "test"), row.format("shell", "val")]
    (folder / "shapes.csv").write_text("\n".join(rows) + "\n")
    for name, mesh in (("one", box()), ("two", box()), ("shell", holed_box(0.5))):
        brought(mesh, tmp_path, name=name)
    assert samples.main([str(folder), "--data", str(tmp_path), "--jobs", "2", "--pictures"]) == 0
    pictures = {file.stem for file in (tmp_path / "samples" / "boxes" / "slices").glob("*.png")}
    assert pictures == {"one", "two", "shell"}
    assert "1 rejected:\n  shell: open shell" in capsys.readouterr().out
    with (tmp_path / "samples" / "boxes" / "quality.csv").open() as file:
        found = {line["id"]: line for line in csv.DictReader(file)}
    assert {key: line["files"] for key, line in found.items()} == {"one": "2", "two": "1", "shell": "0"}


def test_a_missing_mesh_is_named(tmp_path: Path) -> None:
    with pytest.raises(samples.SamplesError, match=r"thing\.ply"):
        samples.make_samples([shape()], tmp_path, tmp_path / "out", RECIPE)


def test_slices_show_inside_skin_and_outside_where_they_are() -> None:
    """A box, seen along x, y and z: 240 pixels are two units."""
    picture = np.asarray(slices.slices(signs.Solid(box().triangles), skin=0.05)).astype(int)
    assert picture.shape == (240, 3 * 240, 3)

    def blueness(plane: int, right: float, down: float) -> int:
        red, _, blue = picture[int(120 * (1 + down)), 240 * plane + int(120 * (1 + right))]
        return int(blue - red)

    for plane in range(3):
        assert all(blueness(plane, *at) > 30 for at in ((0.0, 0.0), (0.2, 0.2)))
        assert all(-30 < blueness(plane, *at) < 30 for at in ((0.9, 0.9), (0.0, 0.6), (-0.6, 0.0)))
    # In the skin of the front view's right edge and of its top.
    assert blueness(2, HALF[0] + 0.03, 0.0) < -100 and blueness(2, 0.0, -HALF[1] - 0.03) < -100
