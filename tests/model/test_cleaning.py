"""Stray points, noise and floors of scans that are put together from known parts."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from shapes import box, gradient, sphere, surface_points

from model.cleaning import (
    clusters,
    find_plane,
    local_noise,
    outliers,
    standing_on_plane,
    thinned,
    thinning_cell,
    without_plane,
)
from model.training.views import Camera, Intrinsics, Rays, look_at

Array = NDArray[np.float64]
UP = np.array([0.0, 1.0, 0.0])

SEAT = ((0.5, 0.05, 0.5), (0.0, 0.0, 0.0))
BACK = ((0.5, 0.5, 0.04), (0.0, 0.27, -0.23))
LEGS = [((0.02, 0.45, 0.02), (x, -0.25, z)) for x in (-0.23, 0.23) for z in (-0.23, 0.23)]
ARMREST = ((0.05, 0.03, 0.35), (0.40, 0.2, 0.0))  # hangs in the air beside the seat
FLOOR = ((4.0, 0.02, 4.0), (0.0, -0.485, 0.0))
BUCKET = ((0.25, 0.3, 0.25), (0.9, -0.325, -0.3))


def solid(*parts: tuple[tuple[float, ...], tuple[float, ...]]) -> trimesh.Trimesh:
    boxes = [trimesh.creation.box(size) for size, _ in parts]
    for one, (_, place) in zip(boxes, parts, strict=True):
        one.apply_translation(place)
    return trimesh.util.concatenate(boxes)


CHAIR = solid(SEAT, BACK, *LEGS, ARMREST)


def seen(
    mesh: trimesh.Trimesh, noise: float, eye: tuple[float, float, float] = (1.2, 0.7, 1.4), width: int = 200
) -> tuple[Array, NDArray[np.int64]]:
    """Points (N, 3) that a depth camera sees, with noise along its rays, and the face each lies on."""
    camera = Camera(Intrinsics(width, width, width / 2, width / 2, width, width), look_at(eye, (0, -0.1, 0)))
    hits = Rays(mesh).first_hits(eye, camera.rays())
    hit = np.isfinite(hits.distance)
    points = camera.unproject(np.where(hit, hits.distance, np.nan))
    rays = (points - eye) / np.linalg.norm(points - eye, axis=1, keepdims=True)
    return points + noise * np.random.default_rng(0).normal(size=(len(points), 1)) * rays, hits.face[hit]


def turned(points: Array) -> Array:
    """In another frame and unit."""
    axis = trimesh.transformations.rotation_matrix(2.0, (0.3, 0.9, -0.2))[:3, :3]
    return 40 * points @ axis.T + (7.0, -300.0, 11.0)


@pytest.mark.parametrize("noise", [0.0, 0.003, 0.01])
def test_strays_go_and_the_thin_parts_of_a_chair_stay(noise: float) -> None:
    points, face = seen(CHAIR, noise)
    rng = np.random.default_rng(1)
    alone = rng.uniform(-1.5, 1.5, (60, 3))
    lump = (2.0, 1.0, -1.0) + 0.02 * rng.normal(size=(40, 3))
    found = outliers(turned(np.concatenate([points, alone, lump])))
    assert found[len(points) : -40].mean() > 0.9  # some of them are on the chair by chance
    assert found[-40:].all()
    of_part = face // 12
    assert found[: len(points)].mean() < 0.002
    for part in range(2, 7):  # four legs and the armrest that touches nothing
        assert found[: len(points)][of_part == part].mean() < 0.03


def test_density_that_falls_with_the_square_of_the_distance_is_no_reason_to_go() -> None:
    distance = np.random.default_rng(0).uniform(1 / 4, 1, 12_000) ** -1.0  # spread evenly over the image
    points = np.column_stack([distance * np.random.default_rng(1).uniform(-0.3, 0.3, 12_000), distance])
    wall = np.insert(points, 1, 0.3 * np.sin(points[:, 0]), axis=1)
    assert outliers(wall).mean() < 0.001


def test_a_foot_below_its_hidden_leg_stays() -> None:
    rng = np.random.default_rng(0)
    seat = rng.uniform((-0.25, 0.45, -0.25), (0.25, 0.46, 0.25), (4000, 3))
    foot = rng.uniform((0.22, 0.0, 0.22), (0.25, 0.2, 0.25), (30, 3))
    assert not outliers(np.concatenate([seat, foot]))[-30:].any()


def test_few_points_and_coinciding_points_are_left_alone() -> None:
    rng = np.random.default_rng(0)
    assert not outliers(rng.normal(size=(5, 3))).any()
    doubled = np.repeat(surface_points(sphere(0.5), 500, rng), 12, axis=0)
    assert outliers(np.concatenate([doubled, surface_points(sphere(0.5), 500, rng)])).mean() < 0.01


def test_thinning_keeps_one_point_of_each_voxel_the_one_nearest_to_its_mean() -> None:
    points = np.random.default_rng(0).uniform(0, 1, (3000, 3))
    points[0] = 0  # the voxels begin at the lowest corner
    kept = thinned(points, 0.25).numpy()
    voxel = np.floor(points / 0.25).astype(int)
    assert len(np.unique(voxel[kept], axis=0)) == len(kept) == len(np.unique(voxel, axis=0)) == 64
    for index in kept:
        mine = points[(voxel == voxel[index]).all(axis=1)]
        distances = np.linalg.norm(mine - mine.mean(axis=0), axis=1)
        assert np.linalg.norm(points[index] - mine.mean(axis=0)) == pytest.approx(distances.min())


def test_near_and_far_parts_weigh_alike_after_thinning() -> None:
    rng = np.random.default_rng(0)
    near, far = rng.uniform(0, 1, (40_000, 3)), rng.uniform((5, 0, 0), (6, 1, 1), (4000, 3))
    points = np.concatenate([near, far]) * (1, 1, 0)
    kept = thinned(points, thinning_cell(points, 400)).numpy()
    assert len(kept) == pytest.approx(400, rel=0.1)
    assert (kept < 40_000).mean() == pytest.approx(0.5, abs=0.05)


def test_nothing_is_thinned_where_there_are_not_more_points_than_asked_for() -> None:
    points = np.random.default_rng(0).normal(size=(50, 3))
    assert thinning_cell(points, 50) == 0
    assert np.array_equal(thinned(points, thinning_cell(points, 50)), np.arange(50))


@pytest.mark.parametrize("name", ["sphere", "box"])
@pytest.mark.parametrize("noise", [0.001, 0.003, 0.01, 0.03])
@pytest.mark.parametrize("count", [5000, 20_000])
def test_noise_is_found_within_15_percent(name: str, noise: float, count: int) -> None:
    surface = {"sphere": sphere(0.9), "box": box(0.5, 0.5, 0.5)}[name]
    rng = np.random.default_rng(0)
    points = surface_points(surface, count, rng)
    points = points + noise * rng.normal(size=(count, 1)) * gradient(surface, points)
    assert local_noise(turned(points)) == pytest.approx(40 * noise, rel=0.15)
    half = thinned(points, thinning_cell(points, count // 2))
    assert local_noise(points[half]) == pytest.approx(noise, rel=0.35)


def test_curvature_edges_and_thin_parts_are_no_noise() -> None:
    rng = np.random.default_rng(0)
    assert local_noise(surface_points(sphere(0.1), 3000, rng)) < 1e-5
    assert local_noise(surface_points(box(0.3, 0.05, 0.2), 4000, rng)) < 1e-4
    assert local_noise(seen(CHAIR, 0.0)[0]) < 2e-3
    noisy, _ = seen(CHAIR, 0.01)
    assert 0.005 < local_noise(noisy) < 0.0115  # less than along the rays, which are oblique


@pytest.mark.parametrize("noise", [0.0, 0.005])
@pytest.mark.parametrize("up_is_known", [True, False])
def test_the_floor_under_a_chair_is_found_and_the_chair_remains(noise: float, up_is_known: bool) -> None:
    points, face = seen(solid(SEAT, BACK, *LEGS, FLOOR, BUCKET), noise)
    part = face // 12
    found = standing_on_plane(points, UP if up_is_known else None)
    assert found is not None
    assert found.plane.normal @ UP > np.cos(np.radians(0.5))
    assert found.plane.offset == pytest.approx(-0.475, abs=0.005)
    assert found.kept.sum() + found.on_plane + found.elsewhere == len(points)
    chair = part < 6
    assert not found.kept[~chair].any()
    assert found.kept[chair].mean() > 0.93  # the ends of the legs are in the floor's margin
    assert found.elsewhere > 0.8 * (part == 7).sum()  # but for what the margin took


def test_the_floor_is_found_in_any_frame_and_unit() -> None:
    points, _ = seen(solid(SEAT, BACK, *LEGS, FLOOR), 0.002)
    here, there = find_plane(points), find_plane(turned(points))
    assert here is not None and there is not None
    assert there.height(turned(points)) == pytest.approx(40 * here.height(points), abs=40 * 0.005)
    assert np.array_equal(without_plane(points, here, 0.1), here.height(points) > 0.1)


def test_a_chair_without_a_floor_has_none() -> None:
    for eye in ((1.2, 0.7, 1.4), (-1.0, 0.4, 1.5), (0.4, 1.3, 1.2)):
        points, _ = seen(solid(SEAT, BACK, *LEGS), 0.002, eye)
        assert find_plane(points, UP) is None


def test_a_plane_must_be_level_where_up_is_known() -> None:
    rng = np.random.default_rng(0)
    wall = rng.uniform((-2, -2, 0), (2, 2, 0), (5000, 3))
    thing = surface_points(sphere(0.3), 1000, rng) + 0.4 * np.eye(3)[2]
    points = np.concatenate([wall, thing])
    assert find_plane(points, UP) is None
    free = find_plane(points)
    assert free is not None and free.normal == pytest.approx((0, 0, 1), abs=0.02)


def test_clusters_hold_together_where_the_scan_is_sparse() -> None:
    rng = np.random.default_rng(0)
    dense, sparse = rng.uniform(0, 1, (20_000, 2)), rng.uniform(0, 1, (200, 2)) * 4
    points = np.concatenate([np.insert(dense, 2, 0, axis=1), np.insert(sparse, 2, 3.0, axis=1)])
    labels = clusters(points)
    parts = np.unique(labels[:20_000]), np.unique(labels[20_000:])
    assert [len(part) for part in parts] == [1, 1] and parts[0] != parts[1]


def test_a_scan_of_100_000_points_takes_about_a_second() -> None:
    points, _ = seen(solid(SEAT, BACK, *LEGS, FLOOR, BUCKET), 0.003, width=400)
    points = points[:100_000]
    assert len(points) == 100_000
    start = perf_counter()
    outliers(points)
    local_noise(points)
    thinned(points, thinning_cell(points, 20_000))
    assert perf_counter() - start < 4  # a second where nothing else runs
