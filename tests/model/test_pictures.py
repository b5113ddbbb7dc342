"""Pictures: what must be bright, dark, in front, or of one scale."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("embreex")

from PIL import Image  # noqa: E402  (after importorskip: the extra `train` may be missing)

from model.training import pictures  # noqa: E402


@pytest.fixture(scope="module")
def sphere():
    return trimesh.creation.icosphere(subdivisions=4)


def drawn(picture):
    """Pixels (H, W) that are not background."""
    return np.abs(picture.astype(int) - pictures.BACKGROUND).max(axis=2) > 3


def test_sphere_is_a_disc_on_an_empty_background(sphere):
    picture = pictures.render(sphere, size=120)
    assert picture.shape == (120, 120, 3)
    assert picture.dtype == np.uint8
    inside = drawn(picture)
    radius = np.sqrt(inside.sum() / np.pi)
    centre = np.argwhere(inside).mean(axis=0)
    distance = np.linalg.norm(np.stack(np.mgrid[:120, :120], axis=-1) - centre, axis=-1)
    assert inside[distance < radius - 2].all()
    assert not inside[distance > radius + 2].any()
    assert picture[distance < radius - 3].min() > 20  # lit everywhere, if faintly


def test_light_comes_from_above(sphere):
    picture = pictures.render(sphere, size=120).astype(float).mean(axis=2)
    assert picture[35:50, 50:70].mean() > picture[75:90, 50:70].mean() + 15


def test_inverted_faces_are_lit_as_well(sphere):
    inverted = SimpleNamespace(vertices=sphere.vertices, faces=sphere.faces[:, ::-1])
    assert np.array_equal(pictures.render(inverted, size=60), pictures.render(sphere, size=60))


def test_vertex_normals_shade_smoothly():
    coarse = trimesh.creation.icosphere(subdivisions=2)
    smooth = SimpleNamespace(vertices=coarse.vertices, faces=coarse.faces, normals=coarse.vertices)
    fine = pictures.render(trimesh.creation.icosphere(subdivisions=6), size=120).astype(int)

    def error(mesh):
        difference = np.abs(pictures.render(mesh, size=120, bounds=[[-1] * 3, [1] * 3]).astype(int) - fine)
        return difference[30:90, 30:90].mean()

    assert error(smooth) < error(coarse) / 2


def test_nearer_points_hide_farther_ones():
    near, far = np.array([[0.0, 0.0, 1.0]]), np.array([[0.0, 0.0, -1.0]])
    box = [[-1] * 3, [1] * 3]
    look = {"eye_azimuth": 0.0, "elevation": 0.0, "size": 200, "bounds": box}
    alone = pictures.render(near, **look)
    for cloud in (np.vstack([near, far]), np.vstack([far, near])):
        assert np.array_equal(pictures.render(cloud, **look)[drawn(alone)], alone[drawn(alone)])


def test_points_are_drawn_where_the_mesh_is(sphere):
    box = pictures.bounds_of([sphere])
    points = pictures.render(np.asarray(sphere.vertices), size=120, bounds=box)
    mesh = pictures.render(sphere, size=120, bounds=box)
    assert drawn(points)[~drawn(mesh)].sum() < 0.05 * drawn(points).sum()  # discs reach a little over the rim


def test_front_faces_the_viewer_at_azimuth_zero():
    """A ball at +x stands on the right when seen from the front, on the left when seen from behind."""
    ball = trimesh.creation.icosphere(radius=0.2).apply_translation((0.7, 0, 0))
    box = [[-1] * 3, [1] * 3]
    front = drawn(pictures.render(ball, 0, 0, 100, bounds=box))
    behind = drawn(pictures.render(ball, 180, 0, 100, bounds=box))
    assert front[:, 50:].any()
    assert not front[:, :50].any()
    assert not behind[:, 50:].any()


def test_shared_bounds_keep_the_scale(sphere):
    small = sphere.copy().apply_scale(0.5)
    box = pictures.bounds_of([sphere, small])
    large_area, small_area = (drawn(pictures.render(m, size=160, bounds=box)).sum() for m in (sphere, small))
    assert small_area / large_area == pytest.approx(0.25, rel=0.08)


def test_nothing_to_draw_is_an_empty_picture():
    empty = SimpleNamespace(vertices=np.zeros((0, 3)), faces=np.zeros((0, 3), int))
    for item in (empty, np.zeros((0, 3))):
        assert not drawn(pictures.render(item, size=40)).any()


def test_scan_and_mesh_is_one_row(tmp_path, sphere):
    path = tmp_path / "new" / "row.png"
    pictures.scan_and_mesh(np.asarray(sphere.vertices), [("one", sphere), ("two", sphere)], path, size=80)
    assert Image.open(path).size == (240, 80)


def test_contact_sheet_has_a_row_for_every_shape(tmp_path, sphere):
    path = tmp_path / "sheet.png"
    rows = [[("scan", np.asarray(sphere.vertices)), ("mesh", sphere)], [("mesh", sphere)]]
    pictures.contact_sheet(rows, path, size=60)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (120, 120, 3)
    assert drawn(sheet[:60, 60:]).any()
    assert not drawn(sheet[60:, 60:]).any()
