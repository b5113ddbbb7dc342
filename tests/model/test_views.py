"""The virtual depth camera against shapes whose views are known in closed form."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

trimesh = pytest.importorskip("trimesh")
igl = pytest.importorskip("igl")
pytest.importorskip("embreex")

from PIL import Image  # noqa: E402  (after importorskip: the extra `train` may be missing)

from model.training import views  # noqa: E402
from model.training.shapes import read_shapes  # noqa: E402

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
CHORD = 2e-3  # how far the faces of the sphere lie below it


@pytest.fixture(scope="module")
def sphere():
    return trimesh.creation.icosphere(subdivisions=5)


@pytest.fixture(scope="module")
def view(sphere):
    return views.depth_view(sphere, (0.5, 1.0, 2.5), width=64, height=48)


def test_points_lie_on_the_sphere(view):
    assert len(view.points) > 500
    assert np.linalg.norm(view.points, axis=1) == pytest.approx(1.0, abs=CHORD)


def test_points_face_the_viewpoint(view):
    # On the unit sphere a point is its own normal; beyond the horizon, n · v < 1.
    assert np.all(view.points @ view.viewpoint > 1 - 10 * CHORD)


def test_background_rays_miss_the_sphere(view):
    assert np.linalg.norm(view.background, axis=1) == pytest.approx(1.0)
    along = -(view.background @ view.viewpoint)
    closest = view.viewpoint + along[:, None] * view.background
    assert np.all(np.linalg.norm(closest, axis=1) > 1 - CHORD)


def test_every_pixel_is_a_point_or_background(view):
    assert len(view.points) + len(view.background) == view.depth.size
    assert np.isfinite(view.depth).sum() == len(view.points)


def test_intrinsics_unproject_the_depth_image_to_the_points(view):
    k = view.intrinsics
    row, column = np.nonzero(np.isfinite(view.depth))
    z = view.depth[row, column]
    local = np.column_stack([(column - k.cx) / k.fx * z, (row - k.cy) / k.fy * z, z])
    world = local @ view.camera_to_world[:3, :3].T + view.camera_to_world[:3, 3]
    assert world == pytest.approx(view.points, abs=1e-9)


def test_projecting_the_points_gives_their_pixels_back(view):
    pixels, depth = views.Camera(view.intrinsics, view.camera_to_world).project(view.points)
    row, column = np.nonzero(np.isfinite(view.depth))
    assert pixels == pytest.approx(np.column_stack([column, row]), abs=1e-6)
    assert depth == pytest.approx(view.depth[row, column])


def test_image_is_upright_and_not_mirrored():
    """Seen from the front (+z), a ball above stands in the upper rows, one at +x in the right columns."""
    for place, (rows, columns) in {
        (0, 0.5, 0): (slice(0, 24), slice(None)),
        (0.5, 0, 0): (slice(None), slice(32, 64)),
    }.items():
        ball = trimesh.creation.icosphere(radius=0.2).apply_translation(place)
        seen = np.isfinite(views.depth_view(ball, (0, 0, 3), width=64, height=48).depth)
        assert seen.any()
        assert seen[rows, columns].sum() == seen.sum()


def test_pose_is_rigid_and_right_handed():
    for eye in [(1, 2, 3), (0, 5, 0), (0, -5, 0), (-1, 0, 0)]:
        pose = views.look_at(eye, (0, 0, 0))
        assert pose[:3, :3].T @ pose[:3, :3] == pytest.approx(np.eye(3), abs=1e-12)
        assert np.linalg.det(pose[:3, :3]) == pytest.approx(1.0)
        assert pose[:3, 2] == pytest.approx(-np.array(eye) / np.linalg.norm(eye))


def test_view_moves_with_the_mesh(sphere):
    shift = np.array([40.0, -7.0, 12.0])
    here = views.depth_view(sphere, (0, 0, 3), width=32, height=32)
    moved = sphere.copy().apply_translation(shift)
    there = views.depth_view(moved, shift + np.array([0, 0, 3]), target=shift, width=32, height=32)
    assert there.points == pytest.approx(here.points + shift, abs=1e-4)


def test_noise_is_gaussian_on_inverse_depth_and_repeatable():
    wall = trimesh.creation.box((20, 20, 1)).apply_translation((0, 0, -0.5))
    one, same = (
        views.depth_view(wall, (0, 0, 2), width=100, height=100, noise=0.01, rng=np.random.default_rng(3))
        for _ in range(2)
    )
    assert np.array_equal(one.depth, same.depth)
    error = 1 / one.depth - 1 / 2
    assert error.mean() == pytest.approx(0, abs=4e-4)  # four standard errors
    assert error.std() == pytest.approx(0.01, rel=0.03)
    assert len(one.background) == 0


def test_viewpoints_are_where_a_person_holds_a_sensor():
    eyes = views.viewpoints(40, seed=1, radius=2.0)
    assert np.linalg.norm(eyes, axis=1) == pytest.approx(5.0)
    elevation = np.degrees(np.arcsin(eyes[:, 1] / 5.0))
    assert elevation.min() >= 10
    assert elevation.max() <= 50
    azimuth = np.sort(np.arctan2(eyes[:, 0], eyes[:, 2]))
    gaps = np.diff(np.append(azimuth, azimuth[0] + 2 * np.pi))
    assert gaps.max() < 3 * (2 * np.pi / 40)


def test_viewpoints_depend_on_the_seed_alone():
    assert np.array_equal(views.viewpoints(5, seed=1), views.viewpoints(5, seed=1))
    assert not np.array_equal(views.viewpoints(5, seed=1), views.viewpoints(5, seed=2))
    assert views.viewpoints(0, seed=1).shape == (0, 3)


def test_command_writes_the_scan_its_truth_and_their_story(tmp_path):
    listed = read_shapes(ROOT / "checkpoints" / "chairs")[0]
    shape = tmp_path / f"{listed.id}.ply"
    trimesh.creation.box((0.5, 0.8, 0.5)).export(shape)
    words = [
        str(shape),
        str(tmp_path / "box"),
        "--at",
        "1",
        "0",
        "2",
        "--points",
        "500",
        "--noise",
        "0",
        "--list",
        str(ROOT / "checkpoints" / "chairs"),
    ]
    views.main(words)
    story = json.loads((tmp_path / "box.json").read_text())
    truth = trimesh.load_mesh(tmp_path / story["truth"])
    points = trimesh.load(tmp_path / story["scan"]).vertices
    assert truth.bounds == pytest.approx(np.array([[0.75, 0, 1.75], [1.25, 0.8, 2.25]]))
    assert len(points) == 500
    assert _distance(truth, points).max() < 1e-5
    assert (story["author"], story["licence"]) == (listed.author, listed.licence)
    assert shlex.split(story["command"])[3:] == words


def test_command_writes_a_depth_map_whose_mask_picks_the_shape_off_the_floor(tmp_path):
    chairs = ROOT / "checkpoints" / "chairs"
    shape = tmp_path / f"{read_shapes(chairs)[0].id}.ply"
    trimesh.creation.box((0.5, 0.8, 0.5)).export(shape)
    views.main([str(shape), str(tmp_path / "box"), "--depth-map", "--noise", "0", "--list", str(chairs)])
    story = json.loads((tmp_path / "box.json").read_text())
    depth = np.asarray(Image.open(tmp_path / story["scan"])) / story["depth_scale"]
    mask = np.asarray(Image.open(tmp_path / story["mask"])) > 0
    camera = views.Camera(views.Intrinsics(**story["intrinsics"]), np.array(story["camera_to_world"]))
    truth = trimesh.load_mesh(tmp_path / story["truth"])
    assert _distance(truth, camera.unproject(np.where(mask, depth, np.nan))).max() < 0.001
    floor = camera.unproject(np.where(~mask & (depth > 0), depth, np.nan))
    assert floor[:, 1] == pytest.approx(0, abs=0.001)


def test_command_refuses_a_shape_without_a_known_licence(tmp_path):
    with pytest.raises(SystemExit, match="licence"):
        views.main(
            [str(tmp_path / "stray.ply"), str(tmp_path / "out"), "--list", str(ROOT / "checkpoints/chairs")]
        )


@pytest.mark.parametrize("name", ["chair", "armchair"])
def test_examples_are_held_out_small_and_licensed(name):
    story = json.loads((EXAMPLES / f"{name}.json").read_text())
    listed = {shape.id: shape for shape in read_shapes(ROOT / "checkpoints" / "chairs")}[story["shape"]]
    assert listed.split == "test"
    assert (story["author"], story["licence"]) == (listed.author, listed.licence)
    readme = (EXAMPLES / "README.md").read_text()
    for word in (story["shape"], story["author"], story["licence"], story["command"]):
        assert word in readme
    for path in EXAMPLES.glob(f"{name}*"):
        assert path.stat().st_size < 300_000


def test_example_cloud_lies_on_the_true_chair():
    truth = trimesh.load_mesh(EXAMPLES / "chair_truth.ply")
    points = trimesh.load(EXAMPLES / "chair.ply").vertices
    assert 15_000 <= len(points) <= 20_000
    assert np.median(_distance(truth, points[::50])) < 0.002


def test_example_depth_map_unprojects_onto_the_true_armchair():
    story = json.loads((EXAMPLES / "armchair.json").read_text())
    depth = np.asarray(Image.open(EXAMPLES / story["scan"]))
    mask = np.asarray(Image.open(EXAMPLES / story["mask"])) > 0
    assert depth.dtype == np.uint16
    assert depth.shape == mask.shape
    metres = np.where(mask, depth / story["depth_scale"], np.nan)
    camera = views.Camera(views.Intrinsics(**story["intrinsics"]), np.array(story["camera_to_world"]))
    truth = trimesh.load_mesh(EXAMPLES / story["truth"])
    assert np.median(_distance(truth, camera.unproject(metres)[::50])) < 0.003


def _distance(mesh, points):
    """Distances (N,) of points to the mesh's surface, by libigl."""
    vertices, faces = np.array(mesh.vertices, float), np.array(mesh.faces, np.int64)
    return np.sqrt(igl.point_mesh_squared_distance(np.array(points, float), vertices, faces)[0])
