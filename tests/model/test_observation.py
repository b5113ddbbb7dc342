"""What a scan says, on half-seen spheres and boxes whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from shapes import SignedDistance, sphere

from model.frame import UP_AXES, upright
from model.observation import (
    GRAZING_COSINE,
    MAX_POINTS,
    MIN_POINTS,
    PASSING_REACH,
    Observation,
    RowWeights,
    UnusableScan,
    observe,
    rows_of,
)

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


def in_ball_units(observation: Observation, points: np.ndarray) -> np.ndarray:
    """Distance to the true centre, of points of the observation's frame."""
    return np.linalg.norm(observation.from_scan.inverse().apply(points) - CENTRE, axis=1)


def test_the_observation_is_centred_and_has_radius_one() -> None:
    surface = observe(ball() * [3, 1, 2] + 1000).surface
    low, high = surface.min(axis=0), surface.max(axis=0)
    assert np.allclose(low, -high, atol=0.05)
    assert np.isclose(np.linalg.norm(high - low) / 2, 1, atol=0.05)


def test_from_scan_is_the_way_that_the_points_went() -> None:
    points = 300 * ball() + [5, 6, 7]
    observation = observe(points, up="+z")
    back = observation.from_scan.inverse().apply(observation.surface)
    assert np.allclose(np.sort(back, axis=0), np.sort(points, axis=0))


def test_a_few_stray_points_do_not_set_the_scale() -> None:
    stray = np.concatenate([ball(5000), 100 * np.eye(3)])
    assert np.isclose(observe(stray).from_scan.scale, observe(ball(5000)).from_scan.scale, rtol=0.02)


@pytest.mark.parametrize("eye", [EYE, np.array([-3.0, 2.0, 0.5]), np.array([0.0, 30.0, 0.0])])
def test_estimated_normals_of_a_sphere_point_outward(eye: np.ndarray) -> None:
    points = ball(6000)
    points = points[np.einsum("ij,ij->i", points - CENTRE, eye - points) > 0]
    observation = observe(points, viewpoint=eye)
    outward = unit(observation.from_scan.inverse().apply(observation.surface) - CENTRE)
    cosine = np.einsum("ij,ij->i", observation.normals, outward)
    assert np.allclose(np.linalg.norm(observation.normals, axis=1), 1)
    assert cosine.min() > 0.9 and np.median(cosine) > 0.99


def test_points_seen_at_a_grazing_angle_are_left_out() -> None:
    observation = observe(seen_ball(), viewpoint=EYE)
    eye = observation.from_scan.apply(EYE[None])[0]
    cosine = np.einsum("ij,ij->i", observation.normals, unit(eye - observation.surface))
    assert cosine.min() > GRAZING_COSINE
    assert 0.75 * len(seen_ball()) < len(observation.surface) < len(seen_ball())


def test_points_of_a_depth_edge_are_left_out() -> None:
    """Flying pixels fill the volume between a plate and what is behind it: no plane fits them."""
    rng = np.random.default_rng(0)
    plate = np.column_stack([rng.uniform(-1, 1, (3000, 2)), np.zeros(3000)])
    flying = rng.uniform([-0.2, -0.2, -1.0], [0.2, 0.2, -0.6], (300, 3))
    observation = observe(np.concatenate([plate, flying]), viewpoint=np.array([0.0, 0, 5]))
    depth = observation.from_scan.inverse().apply(observation.surface)[:, 2]
    assert (depth < -0.1).sum() < 30
    assert (depth > -0.1).sum() > 2700


def test_given_normals_are_kept_turned_and_made_unit() -> None:
    points = ball()
    observation = observe(points, normals=7 * (points - CENTRE), up="-z")
    assert len(observation.surface) == len(points)
    back = observation.from_scan.inverse().apply(observation.surface) - CENTRE
    assert np.allclose(observation.normals @ observation.from_scan.rotation, back, atol=1e-6)


def test_without_viewpoint_and_normals_no_side_is_claimed() -> None:
    observation = observe(ball())
    assert observation.normals is None
    assert len(observation.free) == len(observation.background) == 0


def test_a_line_of_sight_is_free_up_to_the_surface() -> None:
    observation = observe(seen_ball(), viewpoint=EYE)
    assert len(observation.free) == 2 * len(observation.surface)
    assert in_ball_units(observation, observation.free).min() > 1 - 1e-6
    eye = observation.from_scan.apply(EYE[None])[0]
    ends = np.linalg.norm(observation.surface - eye, axis=1).max()
    assert np.linalg.norm(observation.free - eye, axis=1).max() <= ends + 1e-6


def test_rays_that_met_nothing_are_free_where_they_pass_the_scan() -> None:
    observation = observe(seen_ball(), viewpoint=EYE, background=missing_rays())
    assert len(observation.background) > 500
    assert in_ball_units(observation, observation.background).min() > 1.0
    assert np.linalg.norm(observation.background, axis=1).max() <= PASSING_REACH
    eye = observation.from_scan.apply(EYE[None])[0]
    towards = observation.from_scan.turn(missing_rays())
    aligned = (unit(observation.background - eye) @ towards.T).max(axis=1)
    assert np.allclose(aligned, 1, atol=1e-6)


def test_rays_that_passed_are_guessed_around_the_outline_and_miss_the_object() -> None:
    observation = observe(seen_ball(), viewpoint=EYE)
    assert len(observation.background) > 500
    assert in_ball_units(observation, observation.background).min() > 0.99


def test_a_sensor_inside_the_scan_sees_no_outline() -> None:
    assert len(observe(ball(), viewpoint=CENTRE).background) == 0


def test_rays_away_from_the_scan_say_nothing() -> None:
    observation = observe(seen_ball(), viewpoint=EYE, background=-missing_rays())
    assert len(observation.background) == 0


@pytest.mark.parametrize("up", UP_AXES)
def test_the_up_axis_is_a_turn_of_the_scan(up: str) -> None:
    turn = upright(up).T
    points, rays = seen_ball(), missing_rays()
    straight = observe(points, viewpoint=EYE, background=rays)
    turned = observe(points @ turn.T, viewpoint=turn @ EYE, background=rays @ turn.T, up=up)
    assert_same(straight, turned)


@pytest.mark.parametrize(("unit_scale", "shift"), [(1000.0, 0.0), (1e-3, 0.0), (1.0, 1e5), (25.4, -300.0)])
def test_neither_unit_nor_place_of_the_scan_matter(unit_scale: float, shift: float) -> None:
    points, rays = seen_ball(), missing_rays()
    metres = observe(points, viewpoint=EYE, background=rays)
    other = observe(unit_scale * points + shift, viewpoint=unit_scale * EYE + shift, background=rays)
    assert_same(metres, other)


def assert_same(one: Observation, other: Observation) -> None:
    for name in ("surface", "normals", "free", "background"):
        assert np.allclose(getattr(one, name), getattr(other, name), atol=1e-6), name


def test_the_same_seed_gives_the_same_observation() -> None:
    points, rays = seen_ball(), missing_rays()
    one, same, other = (observe(points, None, EYE, rays, seed=seed) for seed in (4, 4, 5))
    assert_same(one, same)
    assert not np.array_equal(one.free, other.free)


def test_a_huge_scan_is_thinned() -> None:
    assert len(observe(ball(MAX_POINTS + 5000)).surface) == MAX_POINTS


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
        observe(points)


def test_points_that_are_no_numbers_are_dropped_with_their_normals() -> None:
    points = ball()
    normals = points - CENTRE
    points[::10, 1], points[5::10, 0] = np.nan, np.inf
    observation = observe(points, normals)
    assert len(observation.surface) == 2400
    back = observation.from_scan.inverse().apply(observation.surface) - CENTRE
    assert np.allclose(observation.normals, back, atol=1e-6)


def test_normals_that_are_no_numbers_do_not_spoil_the_rows() -> None:
    points = ball()
    normals = points - CENTRE
    normals[::10] = np.nan
    observation = observe(points, normals)
    assert len(observation.surface) == 2700
    assert np.allclose(np.linalg.norm(observation.normals, axis=1), 1)


@pytest.mark.parametrize("flat", [[1, 1, 0], [1, 0, 0]], ids=["plane", "line"])
def test_flat_and_straight_scans_are_usable(flat: list[float]) -> None:
    observation = observe((ball() - CENTRE) * flat, viewpoint=EYE)
    for part in (observation.surface, observation.normals, observation.free):
        assert np.isfinite(part).all()


def true_field(observation: Observation, skin: float) -> SignedDistance:
    """Signed distance of the true ball less the skin, in the observation's frame."""
    centre, radius = observation.from_scan.apply(CENTRE[None])[0], observation.from_scan.scale
    return lambda points: sphere(radius)(points - centre) - skin


@pytest.mark.parametrize("skin", [0.0, 0.006])
def test_the_true_field_satisfies_every_row(skin: float) -> None:
    observation = observe(seen_ball(20_000), viewpoint=EYE, background=missing_rays())
    rows = rows_of(observation, (600, 400), skin, RowWeights(eta=0.02), CPU)
    points = (rows.points + rows.offsets)[0].double().numpy()
    distance = torch.from_numpy(true_field(observation, skin)(points))
    below, above = rows.lower[0] - distance, distance - rows.upper[0]
    # A line of sight ends on the surface, where a field with a skin is already inside by it.
    short = skin * (rows.only_in_ball[0] & (below > 0))
    assert (below - short).max() < 2e-3
    assert above.max() < 2e-3


def test_each_part_has_its_weight_however_many_rows_it_has() -> None:
    observation = observe(seen_ball(), viewpoint=EYE, background=missing_rays())
    weights = RowWeights(surface=1.0, free=0.3, background=0.2)
    for counts in ((60, 40), (600, 400)):
        rows = rows_of(observation, counts, 0.0, weights, CPU)
        free = rows.only_in_ball[0]
        assert len(rows) == sum(counts)
        assert torch.isclose(rows.weights[0][~free].sum(), torch.tensor(1.0), atol=1e-4)
        assert torch.isclose(rows.weights[0][free].sum(), torch.tensor(0.5), atol=1e-4)


def test_rows_say_inside_below_the_surface_and_outside_above_it() -> None:
    observation, eta, skin = observe(seen_ball(), viewpoint=EYE), 0.02, 0.006
    rows = rows_of(observation, (300, 200), skin, RowWeights(eta=eta), CPU)
    lower, upper = rows.lower[0, :300].reshape(3, 100), rows.upper[0, :300].reshape(3, 100)
    # A part may be thinner than η: below the surface only an interval is certain.
    for part, (low, high) in enumerate([(-skin, -skin), (eta - skin, eta - skin), (-eta - skin, -skin)]):
        assert torch.allclose(lower[part], torch.tensor(low))
        assert torch.allclose(upper[part], torch.tensor(high))
    offsets = rows.offsets[0, :300].reshape(3, 100, 3)
    assert not offsets[0].any() and torch.equal(offsets[1], -offsets[2])
    assert torch.allclose(offsets[1].norm(dim=-1), torch.tensor(eta))


def test_without_sides_there_are_rows_on_the_surface_only() -> None:
    rows = rows_of(observe(ball()), (300, 200), 0.01, RowWeights(), CPU)
    assert len(rows) == 300
    assert not rows.offsets.any() and not rows.only_in_ball.any()
    assert torch.equal(rows.lower, rows.upper)
