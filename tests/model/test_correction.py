"""The correction on fields that are known: spheres and boxes that a plain field misses by a known amount."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from fields import TorchField
from shapes import SignedDistance, ball_points, box, gradient, sphere, surface_points
from torch import Tensor

from model.correction import (
    EMPTY_NOISE,
    LEAST_AMPLITUDE,
    NOISE_FLOOR,
    REACHES,
    CorrectedField,
    Correction,
    Shape,
    correction_of,
    kernel,
    wendland,
)
from model.placement import Placements
from model.problems import BACKGROUND, FREE, OUTSIDE, SURFACE, Rows
from model.surface import extract_surface

CPU = torch.device("cpu")
FAR = REACHES[0]
RADIUS = 0.6


BALL = TorchField(lambda points: points.norm(dim=1) - RADIUS)
"""What the code says, whatever was seen."""


def rows_at(
    points: Tensor, kind: int, lower: float, upper: float, weight: float = 1.0, offsets: Tensor | None = None
) -> Rows:
    count = len(points)
    return Rows(
        points[None],
        torch.zeros_like(points)[None] if offsets is None else offsets[None],
        torch.full((1, count), lower),
        torch.full((1, count), upper),
        torch.full((1, count), weight / count),
        torch.full((1, count), kind in (FREE, BACKGROUND)),
        torch.full((1, count), kind, dtype=torch.int8),
    )


def together(*parts: Rows) -> Rows:
    columns = zip(*(part.parts() for part in parts), strict=True)
    return Rows(*(torch.cat(column, dim=1) for column in columns))


def as_tensor(points: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(points, dtype=np.float32))


def corrected(rows: Rows, noise: float = 0.0, base: TorchField = BALL) -> Correction:
    return correction_of(base, rows, rows.points[0] + rows.offsets[0], noise)


def bump(points: Tensor) -> Tensor:
    """What the true shape is larger by than the ball: smooth, and 0 at the back."""
    return 0.05 * torch.exp(-((points - points.new_tensor([0, 0, RADIUS])).square().sum(dim=1)) / 0.1)


def seen_bump(count: int = 1200, noise: float = 0.0, seed: int = 0) -> Tensor:
    """(count, 3) points on the front of the true shape, whose distance is |x| − r − bump."""
    rng = np.random.default_rng(seed)
    points = as_tensor(surface_points(sphere(RADIUS), 2 * count, rng))
    points = points[points[:, 2] > 0.05][:count]
    for _ in range(30):
        off = points.norm(dim=1) - RADIUS - bump(points)
        points = points - off[:, None] * points / points.norm(dim=1, keepdim=True)
    normal = points / points.norm(dim=1, keepdim=True)
    return points + noise * as_tensor(rng.normal(size=(len(points), 1))) * normal


@pytest.mark.parametrize("noise", [0.0, 0.004, 0.01])
def test_the_corrected_field_is_zero_at_what_was_seen_within_its_noise(noise: float) -> None:
    """And at points of the same surface that were not looked at."""
    points = seen_bump(noise=noise)
    correction = corrected(rows_at(points, SURFACE, 0, 0), noise)
    assert BALL.distance(points).abs().max() > 0.045
    field = CorrectedField(BALL, correction)
    assert field.distance(points).square().mean().sqrt() < max(noise, NOISE_FLOOR)
    others = seen_bump(seed=1)
    # The mean of many noisy neighbours is nearer to the truth than any of them.
    assert field.distance(others).abs().mean() < 0.002 + 0.3 * noise
    assert field.distance(others).abs().max() < 0.006 + noise


def test_where_nothing_was_seen_the_field_is_exactly_the_codes() -> None:
    points = seen_bump()
    correction = corrected(rows_at(points, SURFACE, 0, 0))
    everywhere = as_tensor(ball_points(4000, np.random.default_rng(2)))
    away = torch.cdist(everywhere, points).amin(dim=1) > FAR
    assert away.sum() > 500
    assert not correction.distance(everywhere[away]).any()
    assert not correction.distance_and_gradient(everywhere[away])[1].any()
    assert correction.distance(everywhere[~away]).any()


def test_a_skin_is_what_the_rows_say_it_is() -> None:
    """Surface rows at −τ: the field there becomes −τ, not 0."""
    points = seen_bump()
    field = CorrectedField(BALL, corrected(rows_at(points, SURFACE, -0.006, -0.006)))
    assert torch.allclose(field.distance(points), torch.tensor(-0.006), atol=0.003)


def test_the_gradient_is_the_slope_of_the_values() -> None:
    correction = corrected(rows_at(seen_bump(600), SURFACE, 0, 0))
    correction = replace(correction, centres=correction.centres.double(), weights=correction.weights.double())
    points = torch.from_numpy(ball_points(500, np.random.default_rng(3)))
    values, exact = correction.distance_and_gradient(points)
    assert torch.allclose(values, correction.distance(points), atol=1e-9)
    steps = 1e-5 * torch.eye(3, dtype=torch.double)
    slopes = [(correction.distance(points + s) - correction.distance(points - s)) / 2e-5 for s in steps]
    assert torch.allclose(exact, torch.stack(slopes, dim=1), atol=1e-6)


def test_the_sum_of_both_fields_is_the_corrected_one() -> None:
    correction = corrected(rows_at(seen_bump(), SURFACE, 0, 0))
    field, points = CorrectedField(BALL, correction), as_tensor(ball_points(300, np.random.default_rng(4)))
    values, gradients = field.distance_and_gradient(points)
    more, slopes = correction.distance_and_gradient(points)
    assert torch.allclose(values, BALL.distance(points) + more, atol=1e-6)
    assert torch.allclose(values, field.distance(points), atol=1e-5)
    assert torch.allclose(gradients, BALL.distance_and_gradient(points)[1] + slopes, atol=1e-6)


def test_it_is_no_steeper_than_it_says() -> None:
    field = CorrectedField(BALL, corrected(rows_at(seen_bump(noise=0.01), SURFACE, 0, 0)))
    points = as_tensor(ball_points(20_000, np.random.default_rng(5)))
    steepest = field.distance_and_gradient(points)[1].norm(dim=1).max()
    assert steepest <= field.lipschitz


def test_values_do_not_depend_on_what_else_is_asked() -> None:
    """Centres out of reach of all points of a chunk are left out."""
    correction = corrected(rows_at(seen_bump(), SURFACE, 0, 0))
    points = as_tensor(ball_points(600, np.random.default_rng(6)))
    alone = torch.cat([correction.distance(part) for part in points.split(50)])
    assert torch.allclose(correction.distance(points), alone, atol=1e-6)


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_it_is_sure_where_it_looked_and_knows_nothing_elsewhere(noise: float) -> None:
    points = seen_bump(noise=noise)
    correction = corrected(rows_at(points, SURFACE, 0, 0), noise)
    everywhere = as_tensor(ball_points(4000, np.random.default_rng(7)))
    away = torch.cdist(everywhere, points).amin(dim=1) > FAR
    assert torch.allclose(correction.deviation(everywhere[away]), torch.tensor(correction.amplitude))
    seen = correction.deviation(points)
    assert seen.max() <= max(noise, NOISE_FLOOR)
    assert (correction.deviation(everywhere) <= correction.amplitude + 1e-6).all()


def test_its_deviation_is_that_of_the_process_given_the_data() -> None:
    """Against the textbook formula in double precision, and 0 in the limit of noise-free data."""
    points, asked = (as_tensor(ball_points(n, np.random.default_rng(n))).double() for n in (150, 90))
    noise, amplitude = 0.3, 0.07
    prior = kernel(points, points) + noise**2 * torch.eye(150)
    cross = kernel(asked, points)
    exact = amplitude * (1 - (cross * torch.linalg.solve(prior, cross.T).T).sum(dim=1)).sqrt()
    correction = Correction(points, torch.zeros(150).double(), amplitude, torch.linalg.cholesky(prior))
    assert torch.allclose(correction.deviation(asked), exact, atol=1e-9)
    sure = torch.linalg.cholesky(kernel(points, points) + 1e-10 * torch.eye(150))
    assert replace(correction, factor=sure).deviation(points).max() < 1e-4


def test_kernels_are_correlations() -> None:
    points = torch.from_numpy(ball_points(400, np.random.default_rng(8)))
    matrix = kernel(points, points)
    assert torch.allclose(matrix.diagonal(), torch.ones(400).double())
    assert torch.allclose(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix).min() > 0
    assert not kernel(points, points + 2 * points.norm(dim=1).max() + FAR).any()


def test_the_kernel_is_smooth_where_it_ends() -> None:
    """Twice differentiable, which normals need: value, slope and bend are 0 at its reach."""
    r = torch.tensor([1.0], dtype=torch.double, requires_grad=True)
    value = wendland(r)
    (slope,) = torch.autograd.grad(value, r, create_graph=True)
    (bend,) = torch.autograd.grad(slope, r)
    assert value == slope == bend == 0
    assert wendland(torch.zeros(1)) == 1


def violating_free_space(count: int = 300) -> Tensor:
    """(count, 3) points in a cap of the ball that lines of sight have crossed."""
    points = as_tensor(ball_points(20_000, np.random.default_rng(9)))
    cap = (points.norm(dim=1) < RADIUS) & (points[:, 2] > 0.52) & (points[:, :2].norm(dim=1) < 0.15)
    assert cap.sum() > 20
    return points[cap][:count]


@pytest.mark.parametrize("kind", [FREE, BACKGROUND])
def test_free_space_becomes_free(kind: int) -> None:
    empty, front = violating_free_space(), seen_bump()
    aside = front[front[:, 2] < 0.4]
    rows = together(rows_at(aside, SURFACE, 0, 0), rows_at(empty, kind, 0, math.inf))
    field = CorrectedField(BALL, corrected(rows))
    assert BALL.distance(empty).min() < -0.05
    assert field.distance(empty).min() > -2 * EMPTY_NOISE


def test_free_space_that_is_free_changes_nothing() -> None:
    """However many rows say so: only what is violated counts."""
    front = seen_bump()
    surface = rows_at(front, SURFACE, 0, 0)
    outside = as_tensor(0.95 * ball_points(5000, np.random.default_rng(10)))
    outside = outside[BALL.distance(outside) > 0.1]
    both = corrected(together(surface, rows_at(outside, FREE, 0, math.inf)))
    alone = corrected(surface)
    points = as_tensor(ball_points(1000, np.random.default_rng(11)))
    assert torch.allclose(both.distance(points), alone.distance(points), atol=2e-3)


def test_rows_out_of_the_ball_say_nothing() -> None:
    """Nothing is meshed there."""
    front = seen_bump()
    surface = rows_at(front, SURFACE, 0, 0)
    beyond = rows_at(1.2 * front / front.norm(dim=1, keepdim=True), FREE, 5.0, math.inf)
    points = as_tensor(ball_points(1000, np.random.default_rng(12)))
    alone, more = corrected(surface), corrected(together(surface, beyond))
    assert torch.equal(alone.distance(points), more.distance(points))


def test_a_point_off_the_surface_is_outside_at_least_half_as_far() -> None:
    """η off a measured point the field is positive, though not exactly η: the point may be noisy."""
    solid = box(0.3, 0.2, 0.4)
    points = surface_points(solid, 900, np.random.default_rng(13))
    normals, eta = as_tensor(gradient(solid, points)), 0.03
    rows = together(
        rows_at(as_tensor(points), SURFACE, 0, 0),
        rows_at(as_tensor(points), OUTSIDE, eta, eta, offsets=eta * normals),
    )
    inverted = TorchField(
        lambda points: 0.35 - points.norm(dim=1)
    )  # negative outside, where it should not be
    field = CorrectedField(inverted, corrected(rows, base=inverted))
    off = field.distance(as_tensor(points) + eta * normals)
    assert inverted.distance(as_tensor(points)).min() < -0.1
    assert (off > 0).float().mean() > 0.99
    assert off.quantile(0.1) > 0.5 * eta - EMPTY_NOISE


def test_the_amplitude_is_how_far_off_the_codes_shape_is() -> None:
    points = seen_bump()
    points = points[points[:, 2] > 0.5]
    exact = BALL.distance(points).square().mean().sqrt()
    assert exact > LEAST_AMPLITUDE
    assert np.isclose(corrected(rows_at(points, SURFACE, 0, 0)).amplitude, exact, rtol=1e-4)
    on_ball = as_tensor(surface_points(sphere(RADIUS), 500, np.random.default_rng(0)))
    assert corrected(rows_at(on_ball, SURFACE, 0, 0)).amplitude == LEAST_AMPLITUDE


def test_points_on_the_codes_surface_are_no_reason_for_a_correction() -> None:
    on_ball = as_tensor(surface_points(sphere(RADIUS), 500, np.random.default_rng(0)))
    correction = corrected(rows_at(on_ball, SURFACE, 0, 0))
    assert correction.distance(as_tensor(ball_points(500, np.random.default_rng(1)))).abs().max() < 1e-4


def test_the_same_point_measured_twice_is_solved_like_once() -> None:
    points = seen_bump(300)
    once, twice = (corrected(rows_at(p, SURFACE, 0, 0)) for p in (points, torch.cat([points, points])))
    assert torch.allclose(once.distance(points), twice.distance(points), atol=2e-3)
    assert twice.weights.isfinite().all()


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_the_corrected_surface_is_closed_and_passes_through_what_was_seen(noise: float) -> None:
    points = seen_bump(noise=noise)
    field = CorrectedField(BALL, corrected(rows_at(points, SURFACE, 0, 0), noise))
    mesh = extract_surface(field, 64).mesh
    body = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert body.is_watertight and body.is_winding_consistent and body.volume > 0
    assert body.body_count == 1
    truth = as_tensor(mesh.vertices)
    front = truth[:, 2] > 0.15
    assert (truth.norm(dim=1) - RADIUS - bump(truth))[front].abs().mean() < 0.003 + 0.3 * noise
    back = truth[:, 2] < -FAR
    assert BALL.distance(truth[back]).abs().max() < 1e-3


def test_a_shape_is_its_codes_alone_until_it_is_corrected() -> None:
    points = seen_bump(200)
    rows = rows_at(points, SURFACE, 0, 0)
    plain = Shape(BALL, None, Placements.identity(1), rows, points, 0.0)
    assert plain.field is BALL
    assert isinstance(replace(plain, correction=corrected(rows)).field, CorrectedField)


def seen_solid(solid: SignedDistance, count: int, seed: int) -> Tensor:
    return as_tensor(surface_points(solid, count, np.random.default_rng(seed)))


@pytest.mark.parametrize("count", [40, 300, 1500])
def test_more_points_bring_it_nearer_to_the_truth(count: int) -> None:
    """A box seen from all sides through a ball that is all the code knows."""
    solid = box(0.36, 0.33, 0.38)
    rough = TorchField(lambda points: points.norm(dim=1) - 0.45)
    field = CorrectedField(rough, corrected(rows_at(seen_solid(solid, count, 0), SURFACE, 0, 0), base=rough))
    asked = seen_solid(solid, 500, 1)
    before, after = (one.distance(asked).abs().mean() for one in (rough, field))
    assert after < before * {40: 0.8, 300: 0.25, 1500: 0.1}[count]
