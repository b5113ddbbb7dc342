"""Metrics of known pairs: concentric spheres, shifted grids, flipped faces."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from model.metrics import chamfer_distance, compare, sample_surface

COUNT = 8000


def ball(radius: float) -> trimesh.Trimesh:
    return trimesh.creation.icosphere(4, radius)


def flipped(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    faces = mesh.faces.copy()
    faces[::2] = faces[::2, ::-1]
    return trimesh.Trimesh(mesh.vertices, faces, process=False)


def test_chamfer_distance_is_the_sum_of_both_mean_squares() -> None:
    a, b = np.zeros((1, 3)), np.array([[1.0, 0, 0], [3.0, 0, 0]])
    assert np.isclose(chamfer_distance(a, b), 1 + (1 + 9) / 2)
    assert np.isclose(chamfer_distance(a, b), chamfer_distance(b, a))
    assert chamfer_distance(b, b) == 0


def test_chamfer_distance_equals_all_pairs_by_brute_force() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 40, 3))
    squares = ((a[:, None] - b[None]) ** 2).sum(axis=2)
    assert np.isclose(chamfer_distance(a, b), squares.min(axis=0).mean() + squares.min(axis=1).mean())


def test_samples_lie_on_the_surface_with_its_normals_and_repeat_with_the_seed() -> None:
    points, normals = sample_surface(ball(1), COUNT, seed=3)
    assert np.allclose(np.linalg.norm(points, axis=1), 1, atol=3e-3)
    assert (np.einsum("ij,ij->i", points, normals) > 0.99).all()
    assert np.array_equal(points, sample_surface(ball(1), COUNT, seed=3)[0])
    # As many in either half: samples are spread by area.
    assert abs((points[:, 1] > 0).mean() - 0.5) < 0.03


@pytest.mark.parametrize("gap", [0.1, 0.3])
def test_concentric_spheres_are_as_far_apart_as_their_radii(gap: float) -> None:
    seen = compare(ball(0.6 + gap), ball(0.6), COUNT)
    assert np.isclose(seen.chamfer, 2 * gap**2, rtol=0.05)
    assert np.isclose(seen.accuracy, gap, rtol=0.05)
    assert seen.completeness == 0
    assert seen.cosine > 0.99


def test_a_mesh_agrees_with_itself_whichever_way_its_faces_wind() -> None:
    seen = compare(ball(0.3), flipped(ball(0.3)), COUNT)
    assert seen.chamfer < 1e-3 * 0.3
    assert seen.accuracy < 0.02
    assert seen.completeness > 0.8
    assert seen.cosine > 0.99


def test_half_a_sphere_is_accurate_but_half_complete() -> None:
    half = ball(0.3)
    half.update_faces(half.triangles_center[:, 1] > 0)
    seen = compare(half, ball(0.3), COUNT)
    assert seen.accuracy < 0.02
    assert 0.4 < seen.completeness < 0.6


def test_numbers_are_reported_with_the_chamfer_distance_in_thousandths() -> None:
    seen = compare(ball(0.5), ball(0.6), 500)
    shown = seen.to_dict()
    assert shown.pop("chamfer") == 1000 * seen.chamfer
    assert shown == {"accuracy": seen.accuracy, "completeness": seen.completeness, "cosine": seen.cosine}
