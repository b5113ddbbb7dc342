"""What a scan says, on half-seen spheres and boxes whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from seen import about_y
from shapes import SignedDistance, box, gradient, sphere, surface_points

from model.frame import UP_AXES, Similarity, upright
from model.observation import (
    FINEST_CELL,
    GRAZING_COSINE,
    MAX_POINTS,
    MIN_POINTS,
    PASSING_REACH,
    Observation,
    RowWeights,
    UnusableScan,
    View,
    observe,
    rows_of,
)
from model.problems import BACKGROUND, FREE, KINDS, OUTSIDE, SURFACE

EYE = np.array([0.5, 0.4, 4.0])
CENTRE = np.array([0.1, -0.2, 0.3])
CPU = torch.device("cpu")


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def ball(count: int = 3000, seed: int = 0) -> np.ndarray:
    """(count, 3) points of the unit sphere about CENTRE."""
    return CENTRE + unit(np.random.default_rng(seed).normal(size=(count, 3)))


def seen_ball(count: int = 6000, seed: int = 0) -> np.ndarray:
    """Those that EYE sees."""
    points = ball(count, seed)
    return points[np.einsum("ij,ij->i", points - CENTRE, EYE - points) > 0]


def missing_rays(count: int = 500, seed: int = 1) -> np.ndarray:
    """Directions from EYE that pass the ball."""
    aims = CENTRE + 2.5 * np.random.default_rng(seed).uniform(-1, 1, size=(count, 3))
    rays = unit(aims - EYE)
    to_centre = CENTRE - EYE
    nearest = to_centre - (rays @ to_centre)[:, None] * rays
    return rays[np.linalg.norm(nearest, axis=1) > 1.02]


def view_of_ball(count: int = 6000, *, rays: bool = False) -> View:
    return View(seen_ball(count), viewpoint=EYE, background=missing_rays() if rays else None)


def in_ball_units(observation: Observation, points: np.ndarray) -> np.ndarray:
    """Distance to the true centre, of points of the observation's frame."""
    return np.linalg.norm(observation.from_scan.inverse().apply(points) - CENTRE, axis=1)


def test_the_observation_is_centred_and_has_radius_one() -> None:
    surface = observe(View(ball() * [3, 1, 2] + 1000)).surface
    low, high = surface.min(axis=0), surface.max(axis=0)
    assert np.allclose(low, -high, atol=0.05)
    assert np.isclose(np.linalg.norm(high - low) / 2, 1, atol=0.05)


def test_from_scan_is_the_way_that_the_points_went() -> None:
    """Each point of the surface is one of the scan, and all parts of the scan are still there."""
    points = 300 * ball() + [5, 6, 7]
    observation = observe(View(points), up="+z")
    back = observation.from_scan.inverse().apply(observation.surface)
    assert cKDTree(points).query(back)[0].max() < 1e-9 * 300
    reach = 1.01 * 3**0.5 * FINEST_CELL / observation.from_scan.scale
    assert cKDTree(back).query(points)[0].max() < reach


def test_a_few_stray_points_do_not_set_the_scale() -> None:
    stray = np.concatenate([ball(5000), 100 * np.eye(3)])
    assert observe(View(stray)).removed == {"stray": 3}
    scales = [observe(View(points)).from_scan.scale for points in (stray, ball(5000))]
    assert np.isclose(*scales, rtol=0.02)


@pytest.mark.parametrize("eye", [EYE, np.array([-3.0, 2.0, 0.5]), np.array([0.0, 30.0, 0.0])])
def test_estimated_normals_of_a_sphere_point_outward(eye: np.ndarray) -> None:
    points = ball(6000)
    points = points[np.einsum("ij,ij->i", points - CENTRE, eye - points) > 0]
    observation = observe(View(points, viewpoint=eye))
    outward = unit(observation.from_scan.inverse().apply(observation.surface) - CENTRE)
    cosine = np.einsum("ij,ij->i", observation.normals, outward)
    assert np.allclose(np.linalg.norm(observation.normals, axis=1), 1)
    assert cosine.min() > 0.9 and np.median(cosine) > 0.99


def test_points_seen_at_a_grazing_angle_are_left_out() -> None:
    observation = observe(view_of_ball())
    eye = observation.from_scan.apply(EYE[None])[0]
    cosine = np.einsum("ij,ij->i", observation.normals, unit(eye - observation.surface))
    assert cosine.min() > GRAZING_COSINE
    assert 0.75 * len(seen_ball()) < len(observation.surface) < len(seen_ball())


def test_points_of_a_depth_edge_are_left_out() -> None:
    """Flying pixels fill the volume between a plate and what is behind it: no plane fits them."""
    rng = np.random.default_rng(0)
    plate = np.column_stack([rng.uniform(-1, 1, (3000, 2)), np.zeros(3000)])
    flying = rng.uniform([-0.2, -0.2, -1.0], [0.2, 0.2, -0.6], (300, 3))
    observation = observe(View(np.concatenate([plate, flying]), viewpoint=np.array([0.0, 0, 5])))
    depth = observation.from_scan.inverse().apply(observation.surface)[:, 2]
    assert (depth < -0.1).sum() < 30
    assert (depth > -0.1).sum() > 2700


def test_given_normals_are_kept_turned_and_made_unit() -> None:
    points = ball()
    observation = observe(View(points, normals=7 * (points - CENTRE)), up="-z")
    assert len(observation.surface) > 0.9 * len(points)
    back = observation.from_scan.inverse().apply(observation.surface) - CENTRE
    assert np.allclose(observation.normals @ observation.from_scan.rotation, back, atol=1e-6)


def test_without_viewpoint_and_normals_no_side_is_claimed() -> None:
    observation = observe(View(ball()))
    assert np.isnan(observation.normals).all()
    assert len(observation.free) == len(observation.background) == 0


def test_a_line_of_sight_is_free_up_to_the_surface() -> None:
    observation = observe(view_of_ball())
    assert len(observation.free) == 2 * len(observation.surface)
    assert in_ball_units(observation, observation.free).min() > 1 - 1e-6
    eye = observation.from_scan.apply(EYE[None])[0]
    ends = np.linalg.norm(observation.surface - eye, axis=1).max()
    assert np.linalg.norm(observation.free - eye, axis=1).max() <= ends + 1e-6


def test_rays_that_met_nothing_are_free_where_they_pass_the_scan() -> None:
    observation = observe(view_of_ball(rays=True))
    assert len(observation.background) > 500
    assert in_ball_units(observation, observation.background).min() > 1.0
    assert np.linalg.norm(observation.background, axis=1).max() <= PASSING_REACH
    eye = observation.from_scan.apply(EYE[None])[0]
    towards = observation.from_scan.turn(missing_rays())
    aligned = (unit(observation.background - eye) @ towards.T).max(axis=1)
    assert np.allclose(aligned, 1, atol=1e-6)


def test_rays_that_passed_are_guessed_around_the_outline_and_miss_the_object() -> None:
    observation = observe(view_of_ball())
    assert len(observation.background) > 500
    assert in_ball_units(observation, observation.background).min() > 0.99


def test_a_sensor_inside_the_scan_sees_no_outline() -> None:
    assert len(observe(View(ball(), viewpoint=CENTRE)).background) == 0


def test_rays_away_from_the_scan_say_nothing() -> None:
    observation = observe(replace(view_of_ball(), background=-missing_rays()))
    assert len(observation.background) == 0


@pytest.mark.parametrize("up", UP_AXES)
def test_the_up_axis_is_a_turn_of_the_scan(up: str) -> None:
    turn = upright(up).T
    points, rays = seen_ball(), missing_rays()
    straight = observe(View(points, viewpoint=EYE, background=rays))
    turned = observe(View(points @ turn.T, viewpoint=turn @ EYE, background=rays @ turn.T), up=up)
    assert_same(straight, turned)


@pytest.mark.parametrize(("unit_scale", "shift"), [(1000.0, 0.0), (1e-3, 0.0), (1.0, 1e5), (25.4, -300.0)])
def test_neither_unit_nor_place_of_the_scan_matter(unit_scale: float, shift: float) -> None:
    points, rays = seen_ball(), missing_rays()
    metres = observe(View(points, viewpoint=EYE, background=rays))
    other = observe(View(unit_scale * points + shift, viewpoint=unit_scale * EYE + shift, background=rays))
    assert_same(metres, other)


@pytest.mark.parametrize("up", UP_AXES)
def test_up_as_a_vector_is_up_as_a_word(up: str) -> None:
    view, vector = view_of_ball(rays=True), upright(up)[1]
    assert_same(observe(view, up=up), observe(view, up=vector))
    assert_same(observe(view, up=up), observe(view, up=(250 * vector).tolist()))


def test_what_is_no_direction_is_refused() -> None:
    for up in ("upwards", [0, 0, 0], [0, 1]):
        with pytest.raises(ValueError, match="up must be"):
            observe(view_of_ball(), up=up)


def assert_same(one: Observation, other: Observation) -> None:
    for name in ("surface", "normals", "free", "background"):
        assert np.allclose(getattr(one, name), getattr(other, name), atol=1e-6), name


def test_the_same_seed_gives_the_same_observation() -> None:
    view = view_of_ball(rays=True)
    one, same, other = (observe(view, seed=seed) for seed in (4, 4, 5))
    assert_same(one, same)
    assert not np.array_equal(one.free, other.free)


def test_a_huge_scan_is_thinned() -> None:
    count = len(observe(View(ball(3 * MAX_POINTS))).surface)
    assert 0.95 * MAX_POINTS < count < 1.05 * MAX_POINTS


def test_what_is_near_the_sensor_weighs_no_more_than_the_rest() -> None:
    """Four times as many points on one half leave less than twice as many of it."""
    points = ball(100_000)
    points = points[(points[:, 2] > CENTRE[2]) | (np.arange(len(points)) % 4 == 0)]
    observation = observe(View(points))
    back = observation.from_scan.inverse().apply(observation.surface)
    assert (points[:, 2] > CENTRE[2]).mean() > 0.79
    assert (back[:, 2] > CENTRE[2]).mean() < 0.65


@pytest.mark.parametrize(
    ("points", "says"),
    [
        (ball(MIN_POINTS - 1), "at least"),
        (np.full((1000, 3), np.nan), "at least"),
        (np.zeros((1000, 3)), "coincide"),
        (np.full((1000, 3), 1e6), "coincide"),
        (np.zeros((0, 3)), "at least"),
    ],
    ids=["too few", "not a number", "at the origin", "far from the origin", "none"],
)
def test_a_scan_without_a_shape_is_refused(points: np.ndarray, says: str) -> None:
    with pytest.raises(UnusableScan, match=says):
        observe(View(points))


def test_points_that_are_no_numbers_are_dropped_with_their_normals() -> None:
    points = ball()
    normals = points - CENTRE
    points[::10, 1], points[5::10, 0] = np.nan, np.inf
    observation = observe(View(points, normals))
    assert observation.removed["not finite"] == 600
    back = observation.from_scan.inverse().apply(observation.surface) - CENTRE
    assert np.allclose(observation.normals, back, atol=1e-6)


def test_normals_that_are_no_numbers_do_not_spoil_the_rows() -> None:
    points = ball()
    normals = points - CENTRE
    normals[::10] = np.nan
    observation = observe(View(points, normals))
    known = np.isfinite(observation.normals).all(axis=1)
    assert 0.85 < known.mean() < 0.95
    assert np.allclose(np.linalg.norm(observation.normals[known], axis=1), 1)
    rows = rows_of(observation, (600, 0), 0.0, RowWeights(), CPU)
    assert rows.points.isfinite().all() and rows.offsets.isfinite().all()
    assert (rows.kind == SURFACE).sum() == 300 > (rows.kind == OUTSIDE).sum() > 0


def test_normals_that_are_missing_are_estimated_where_the_sensor_is_known() -> None:
    points = seen_ball()
    normals = points - CENTRE
    normals[::2] = np.nan
    observation = observe(View(points, normals, EYE))
    outward = unit(observation.from_scan.inverse().apply(observation.surface) - CENTRE)
    assert np.einsum("ij,ij->i", observation.normals, outward).min() > 0.9


@pytest.mark.parametrize("flat", [[1, 1, 0], [1, 0, 0]], ids=["plane", "line"])
def test_flat_and_straight_scans_are_usable(flat: list[float]) -> None:
    observation = observe(View((ball() - CENTRE) * flat, viewpoint=EYE))
    for part in (observation.surface, observation.normals, observation.free):
        assert np.isfinite(part).all()


def true_field(observation: Observation, skin: float) -> SignedDistance:
    """Signed distance of the true ball less the skin, in the observation's frame."""
    centre, radius = observation.from_scan.apply(CENTRE[None])[0], observation.from_scan.scale
    return lambda points: sphere(radius)(points - centre) - skin


@pytest.mark.parametrize("skin", [0.0, 0.006])
def test_the_true_field_satisfies_every_row(skin: float) -> None:
    observation = observe(view_of_ball(20_000, rays=True))
    rows = rows_of(observation, (600, 400), skin, RowWeights(eta=0.02), CPU)
    points = (rows.points + rows.offsets)[0].double().numpy()
    distance = torch.from_numpy(true_field(observation, skin)(points))
    below, above = rows.lower[0] - distance, distance - rows.upper[0]
    # A line of sight ends on the surface, where a field with a skin is already inside by it.
    short = skin * (rows.only_in_ball[0] & (below > 0))
    assert (below - short).max() < 2e-3
    assert above.max() < 2e-3


def test_each_part_has_its_weight_however_many_rows_it_has() -> None:
    observation = observe(view_of_ball(rays=True))
    weights = RowWeights(surface=1.0, free=0.3, background=0.2)
    for counts in ((60, 40), (600, 400)):
        rows = rows_of(observation, counts, 0.0, weights, CPU)
        free = rows.only_in_ball[0]
        assert len(rows) == sum(counts)
        assert torch.isclose(rows.weights[0][~free].sum(), torch.tensor(1.0), atol=1e-4)
        assert torch.isclose(rows.weights[0][free].sum(), torch.tensor(0.5), atol=1e-4)


def test_rows_say_outside_above_the_surface_and_nothing_below_it() -> None:
    observation, eta, skin = observe(view_of_ball()), 0.02, 0.006
    rows = rows_of(observation, (300, 200), skin, RowWeights(eta=eta), CPU)
    lower, upper = rows.lower[0, :300].reshape(2, 150), rows.upper[0, :300].reshape(2, 150)
    assert torch.equal(lower, upper)
    for part, value in enumerate([-skin, eta - skin]):
        assert torch.allclose(lower[part], torch.tensor(value))
    offsets = rows.offsets[0, :300].reshape(2, 150, 3)
    assert not offsets[0].any()
    assert torch.allclose(offsets[1].norm(dim=-1), torch.tensor(eta))
    places = observation.from_scan.inverse().apply(rows.points[0, 150:300].numpy()) - CENTRE
    outward = torch.from_numpy(unit(places)).float()
    assert (offsets[1] * outward).sum(dim=-1).min() > 0.9 * eta


def test_without_sides_there_are_rows_on_the_surface_only() -> None:
    rows = rows_of(observe(View(ball())), (300, 200), 0.01, RowWeights(), CPU)
    assert len(rows) == 300
    assert not rows.offsets.any() and not rows.only_in_ball.any()
    assert torch.equal(rows.lower, rows.upper)


def test_rows_tell_what_kind_they_are() -> None:
    rows = rows_of(observe(view_of_ball(rays=True)), (300, 200), 0.0, RowWeights(eta=0.02), CPU)
    assert [int((rows.kind == kind).sum()) for kind in range(len(KINDS))] == [150, 150, 100, 100]
    assert torch.equal(rows.only_in_ball, (rows.kind == FREE) | (rows.kind == BACKGROUND))
    free = rows.some(rows.only_in_ball[0].nonzero()[:, 0])
    assert not free.lower.any() and free.upper.isposinf().all()


@pytest.mark.parametrize("noise", [0.0, 0.005, 0.02])
def test_the_noise_is_measured_and_widens_eta(noise: float) -> None:
    """Noise of a known deviation along the normals; in radii of the scan as everything else."""
    points = seen_ball(20_000)
    points = points + noise * np.random.default_rng(1).normal(size=(len(points), 1)) * (points - CENTRE)
    observation = observe(View(points, normals=points - CENTRE))
    assert np.isclose(observation.noise / observation.from_scan.scale, noise, rtol=0.25, atol=2e-4)
    weights = RowWeights(eta=0.02)
    assert weights.eta_for(observation) == max(0.02, weights.eta_in_noise * observation.noise)
    rows = rows_of(observation, (300, 200), 0.0, weights, CPU)
    lengths = rows.offsets[0][rows.kind[0] == OUTSIDE].norm(dim=-1)
    assert torch.allclose(lengths, torch.tensor(weights.eta_for(observation)).float(), rtol=1e-4)


def test_noise_along_known_lines_of_sight_is_smoothed() -> None:
    pixels = np.random.default_rng(0).uniform(-0.3, 0.3, (8000, 2))
    rays = unit(CENTRE - EYE + np.linalg.norm(CENTRE - EYE) * np.column_stack([pixels, 0 * pixels[:, 0]]))
    along = rays @ (CENTRE - EYE)
    gap = along**2 - (CENTRE - EYE) @ (CENTRE - EYE) + 1
    rays, ranges = rays[gap > 0], (along - np.sqrt(np.maximum(gap, 0)))[gap > 0]
    clean = EYE + ranges[:, None] * rays
    points = clean + 0.05 * np.random.default_rng(1).normal(size=(len(clean), 1)) * rays

    def off(observation: Observation) -> float:
        """Usual distance to the ball of radius 1, scan's unit."""
        back = observation.from_scan.inverse().apply(observation.surface)
        return float(np.median(np.abs(np.linalg.norm(back - CENTRE, axis=1) - 1)) / 0.6745)

    seen, unknown = observe(View(points, viewpoint=EYE)), observe(View(points))
    assert off(seen) < 0.5 * off(unknown)
    assert seen.noise < 0.5 * unknown.noise
    assert off(seen) < 2 * seen.noise / seen.from_scan.scale


# Several views


def view_from(eye: np.ndarray, *, seed: int = 0, colored: bool = False) -> View:
    """The part of the ball that a sensor at `eye` sees; each point's colour is its place."""
    points = ball(6000, seed)
    points = points[np.einsum("ij,ij->i", points - CENTRE, eye - points) > 0]
    return View(points, viewpoint=eye, colors=color_of(points) if colored else None)


def color_of(points: np.ndarray) -> np.ndarray:
    return np.round(127 + 100 * (points - CENTRE)).astype(np.uint8)


BACK_EYE = np.array([0.5, -0.4, -4.0])


def test_two_views_are_the_object_from_both_sides() -> None:
    both = observe([view_from(EYE), view_from(BACK_EYE, seed=1)])
    on_ball = in_ball_units(both, both.surface)
    assert np.allclose(on_ball, 1, atol=1e-9)
    whole = observe(View(ball())).from_scan
    assert np.isclose(both.from_scan.scale, whole.scale, rtol=0.05)
    outward = unit(both.from_scan.inverse().apply(both.surface) - CENTRE)
    assert np.einsum("ij,ij->i", both.normals, outward).min() > 0.9
    assert outward[:, 2].min() < -0.9 and outward[:, 2].max() > 0.9


def test_each_view_keeps_its_own_lines_of_sight_and_rays() -> None:
    """What the front sensor saw through is no evidence of the back one."""
    both = observe([view_from(EYE), view_from(BACK_EYE, seed=1)])
    assert len(both.free) == 2 * len(both.surface)
    assert in_ball_units(both, both.free).min() > 1 - 1e-6
    assert in_ball_units(both, both.background).min() > 0.97
    places = both.from_scan.inverse().apply(both.free)[:, 2] - CENTRE[2]
    assert (places > 1).any() and (places < -1).any()


def by_place(observation: Observation) -> np.ndarray:
    """Indices of the surface's points in an order that no input order changes."""
    return np.lexsort(np.round(observation.surface, 6).T)


def test_the_order_of_views_does_not_matter() -> None:
    views = [view_from(EYE), view_from(BACK_EYE, seed=1), view_from(np.array([5.0, 1.0, 0.0]), seed=2)]
    one, other = observe(views), observe(views[::-1])
    assert np.isclose(one.from_scan.scale, other.from_scan.scale)
    assert np.isclose(one.noise, other.noise, rtol=0.2, atol=1e-5)
    assert len(one.surface) == len(other.surface)
    assert np.allclose(one.surface[by_place(one)], other.surface[by_place(other)])
    assert np.allclose(one.normals[by_place(one)], other.normals[by_place(other)], atol=1e-6)
    assert len(one.free) == len(other.free)


def test_one_view_in_two_parts_is_that_view() -> None:
    view = view_from(EYE)
    parts = [View(view.points[start::2], viewpoint=EYE) for start in (0, 1)]
    one, other = observe(view), observe(parts)
    assert np.allclose(one.surface[by_place(one)], other.surface[by_place(other)])
    assert len(one.free) == len(other.free)


def test_a_view_whose_sensor_is_unknown_is_used_as_far_as_it_goes() -> None:
    """Its points lie on the surface, on sides that nobody knows; the other view keeps all it says."""
    known, unknown = view_from(EYE), replace(view_from(BACK_EYE, seed=1), viewpoint=None)
    observation = observe([known, unknown])
    sided = np.isfinite(observation.normals).all(axis=1)
    places = observation.from_scan.inverse().apply(observation.surface) - CENTRE
    front = np.einsum("ij,j->i", places, unit(EYE[None] - CENTRE)[0])
    back = np.einsum("ij,j->i", places, unit(BACK_EYE[None] - CENTRE)[0])
    assert sided[front > 0.5].mean() > 0.9 and not sided[(back > 0.5) & (front < 0)].any()
    assert len(observation.free) == 2 * sided.sum()
    rows = rows_of(observation, (600, 200), 0.0, RowWeights(), CPU)
    assert rows.points.isfinite().all() and rows.offsets.isfinite().all()
    assert 0 < (rows.kind == OUTSIDE).sum() < (rows.kind == SURFACE).sum()


def test_views_may_bring_normals_of_their_own() -> None:
    given = view_from(BACK_EYE, seed=1)
    given = View(given.points, given.points - CENTRE)
    observation = observe([view_from(EYE), given])
    outward = unit(observation.from_scan.inverse().apply(observation.surface) - CENTRE)
    assert np.einsum("ij,ij->i", observation.normals, outward).min() > 0.9


def test_colours_stay_with_their_points() -> None:
    views = [view_from(EYE, colored=True), view_from(BACK_EYE, seed=1, colored=True)]
    stray = View(np.array([[90.0, 0, 0]]), colors=np.array([[1, 2, 3]], np.uint8))
    observation = observe([*views, stray], up="+z")
    back = observation.from_scan.inverse().apply(observation.surface)
    assert observation.colors is not None and observation.removed["stray"] == 1
    assert np.abs(observation.colors.astype(int) - color_of(back).astype(int)).max() <= 1


def test_a_view_without_colours_beside_one_with_them_is_grey() -> None:
    observation = observe([view_from(EYE, colored=True), view_from(BACK_EYE, seed=1)])
    back = observation.from_scan.inverse().apply(observation.surface)
    same = np.abs(observation.colors.astype(int) - color_of(back).astype(int)).max(axis=1) <= 1
    assert 0.3 < same.mean() < 0.8
    assert (np.ptp(observation.colors[~same], axis=1) == 0).all()
    assert observe(view_from(EYE)).colors is None


# The floor

BOX = box(0.3, 0.4, 0.25)


def on_a_floor(to_scan: Similarity, *, seed: int = 0) -> tuple[View, int]:
    """A box on a floor that is five times as wide, seen from above; and how many points are the box's."""
    rng = np.random.default_rng(seed)
    eye = np.array([1.0, 2.5, 2.5])
    body = surface_points(BOX, 6000, rng)
    body = body[np.einsum("ij,ij->i", gradient(BOX, body), eye - body) > 0]
    body = body[body[:, 1] > -0.38]
    floor = np.column_stack([rng.uniform(-1.5, 1.5, 8000), np.full(8000, -0.4), rng.uniform(-1.5, 1.5, 8000)])
    floor = floor[(np.abs(floor[:, [0, 2]]) > [0.3, 0.25]).any(axis=1)]
    points = np.concatenate([body, floor]) + 0.001 * rng.normal(size=(len(body) + len(floor), 3))
    return View(to_scan.apply(points), viewpoint=to_scan.apply(eye[None])[0]), len(body)


@pytest.mark.parametrize("scale", [1.0, 800.0])
def test_the_floor_under_an_object_is_cut_off_when_asked(scale: float) -> None:
    to_scan = Similarity(scale, about_y(40), np.array([3.0, 1.0, -2.0]))
    view, count = on_a_floor(to_scan)
    observation = observe(view, remove_plane=True)
    back = to_scan.inverse().apply(observation.from_scan.inverse().apply(observation.surface))
    assert np.abs(BOX(back)).max() < 0.01
    removed = observation.removed["plane and surroundings"]
    assert len(view.points) - count <= removed < len(view.points) - 0.9 * count
    # What is left says where the floor's part of the view was empty of the object.
    free = to_scan.inverse().apply(observation.from_scan.inverse().apply(observation.free))
    assert BOX(free).min() > -0.01


def test_the_floor_stays_unless_it_is_asked_for() -> None:
    view, _ = on_a_floor(Similarity(1.0, np.eye(3), np.zeros(3)))
    observation = observe(view)
    back = observation.from_scan.inverse().apply(observation.surface)
    assert (np.abs(back[:, 1] + 0.4) < 0.01).mean() > 0.5
    assert "plane and surroundings" not in observation.removed


@pytest.mark.parametrize("up", ["-y", "+z", "-x"])
def test_the_floor_is_looked_for_where_up_says(up: str) -> None:
    turn = upright(up).T
    view, _ = on_a_floor(Similarity(1.0, turn, np.zeros(3)))
    observation = observe(view, up=up, remove_plane=True)
    back = observation.from_scan.inverse().apply(observation.surface) @ turn
    assert np.abs(BOX(back)).max() < 0.01


def test_without_a_floor_cutting_it_off_is_refused_with_what_to_do() -> None:
    with pytest.raises(UnusableScan, match="leave out `remove_plane`"):
        observe(view_of_ball(), remove_plane=True)
