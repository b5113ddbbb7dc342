"""Metrics of known pairs: concentric spheres, shifted boxes, flipped faces."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import trimesh

from model.metrics import (
    chamfer_distance,
    compare,
    distances_to_surface,
    earth_movers_distance,
    f_score,
    intersection_over_union,
    sample_surface,
)

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
    assert seen.accuracy < 1e-6
    assert seen.completeness == seen.strict_f_score == seen.loose_f_score == 1
    assert seen.cosine > 0.99


def test_half_a_sphere_is_accurate_but_half_complete() -> None:
    half = ball(0.3)
    half.update_faces(half.triangles_center[:, 1] > 0)
    seen = compare(half, ball(0.3), COUNT)
    assert seen.accuracy < 1e-6
    assert 0.48 < seen.completeness < 0.54  # a rim of 0.01 is as near as half of the sphere is
    # Harmonic mean of a precision of 1 and a recall of about a half.
    assert np.isclose(seen.strict_f_score, 2 * seen.completeness / (1 + seen.completeness))


def test_numbers_are_reported_with_the_chamfer_distance_in_thousandths() -> None:
    seen = compare(ball(0.5), ball(0.6), 500)
    shown = seen.to_dict()
    assert shown.pop("chamfer") == 1000 * seen.chamfer
    assert shown == {name: getattr(seen, name) for name in shown}


def test_distances_to_a_surface_are_exact() -> None:
    mesh = trimesh.creation.box((1, 1, 1))
    points = np.random.default_rng(0).uniform(-1.5, 1.5, (500, 3))
    beyond = np.abs(points) - 0.5
    true = np.abs(np.linalg.norm(np.maximum(beyond, 0), axis=1) + np.minimum(beyond.max(axis=1), 0))
    assert distances_to_surface(points, mesh) == pytest.approx(true, abs=1e-4)


def test_the_earth_movers_distance_is_that_of_the_best_of_all_assignments() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 6, 3))
    best = min(np.linalg.norm(a - b[list(order)], axis=1).mean() for order in permutations(range(6)))
    assert np.isclose(earth_movers_distance(a, b), best)


def test_earth_is_moved_as_far_as_a_shape_is_shifted_or_swollen() -> None:
    """No assignment moves less than the means are apart, nor less than the radii differ."""
    points, _ = sample_surface(ball(1), 300)
    shift = np.array([0.3, 0.0, 0.4])
    assert np.isclose(earth_movers_distance(points, points[::-1] + shift), 0.5)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    assert np.isclose(earth_movers_distance(0.5 * points, 0.8 * points[::-1]), 0.3)


def test_the_earth_movers_distance_of_meshes_is_the_gap_and_the_noise_of_the_draws() -> None:
    assert 0 < compare(ball(0.3), ball(0.3), 2000).emd < 0.06
    assert 0.5 <= compare(ball(0.3), ball(0.8), 2000).emd < 0.52


def test_the_f_score_is_the_harmonic_mean_of_precision_and_recall() -> None:
    to_true, to_generated = np.array([0.0, 0.0, 0.0, 1.0]), np.array([0.0, 1.0])
    assert np.isclose(f_score(to_true, to_generated, 0.5), 2 / (1 / 0.75 + 1 / 0.5))
    assert f_score(to_true, to_generated, 2.0) == 1
    assert f_score(to_true + 1, to_generated + 1, 0.5) == 0


@pytest.mark.parametrize(("gap", "strict", "loose"), [(0.005, 1, 1), (0.015, 0, 1), (0.03, 0, 0)])
def test_f_scores_say_whether_a_gap_is_below_one_or_two_hundredths(
    gap: float, strict: float, loose: float
) -> None:
    seen = compare(ball(0.6 + gap), ball(0.6), COUNT)
    assert (seen.strict_f_score, seen.loose_f_score) == (strict, loose)


@pytest.mark.parametrize("shift", [0.0, 0.25, 0.5, 2.0])
def test_the_iou_of_shifted_boxes_is_that_of_their_volumes(shift: float) -> None:
    points = np.random.default_rng(0).uniform(-1, 3, (60_000, 3)) * (1, 0.5, 0.5)
    first, second = ((np.abs(points - (centre, 0, 0)) < 0.5).all(axis=1) for centre in (0, shift))
    shared = max(1 - shift, 0)
    assert np.isclose(intersection_over_union(first, second), shared / (2 - shared), atol=0.02)


def test_nothing_has_no_iou() -> None:
    nothing = np.zeros(3, bool)
    assert np.isnan(intersection_over_union(nothing, nothing))
    assert intersection_over_union(nothing, ~nothing) == 0
