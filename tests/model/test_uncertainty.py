"""The posterior on a decoder that is linear in its code, where Bayes' rule has a closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from seen import half_seen
from shapes import TINY_SOLIDS, ball_points, gradient, surface_points
from torch import Tensor

from model.checkpoint import Checkpoint
from model.correction import Correction, correction_of, kernel
from model.field import DecodedField
from model.fitting import Candidate, Effort, Ends, Fit, Fitter
from model.latent import LevenbergMarquardt, placed, residuals
from model.observation import RowWeights, observe
from model.placement import FREEDOM, MOVE_SIZE, SCALE_STD, TRANSLATION_STD, Placements, rotation_of
from model.problems import BACKGROUND, FREE, CodePrior, FitSettings, Problems, Rows, rows_of_samples
from model.uncertainty import LOOKED_AT, RIPPLE, Calibration, Posterior, laplace, vertex_deviation

LENGTH = 3
SETTINGS = FitSettings(
    prior_weight=1e-3, placement_weight=7e-5, placement_tail=1e6, huber=100.0, tolerance=1e-9, steps=60
)
UNTEMPERED = Calibration(temperature=1.0, inadequacy=0.0)


class Affine:
    """f(z, x) = n · x + (A x + b) · z: linear in the code, and in the point."""

    def __init__(self, curved: bool = True) -> None:
        generator = torch.Generator().manual_seed(0)
        self.normal = torch.tensor([0.3, 0.9, -0.2])
        self.mix = 0.5 * torch.randn(LENGTH, 3, generator=generator) * curved
        self.offset = torch.randn(LENGTH, generator=generator)

    def features(self, points: Tensor) -> Tensor:
        """A x + b (…, L)."""
        return points @ self.mix.T + self.offset

    def __call__(self, codes: Tensor, points: Tensor) -> Tensor:
        return points @ self.normal + (self.features(points) * codes[:, None]).sum(dim=-1)

    def distance_and_gradients(self, codes: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        by_point = (self.normal + codes @ self.mix)[:, None].expand_as(points)
        return self(codes, points), self.features(points), by_point


def a_prior() -> CodePrior:
    spread = torch.tensor([[1.0, 0.3, 0.0], [0.3, 0.5, -0.2], [0.0, -0.2, 0.8]])
    return CodePrior(torch.tensor([0.2, -0.1, 0.4]), torch.linalg.inv(spread))


def measured(decoder: Affine, count: int = 60, seed: int = 1) -> Rows:
    """Distances of some code's field at points in the ball, with noise."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.from_numpy(0.8 * ball_points(count, np.random.default_rng(seed))).float()[None]
    distances = decoder(torch.tensor([[0.5, 0.1, -0.3]]), points)
    return rows_of_samples(points, distances + 0.05 * torch.randn(1, count, generator=generator), 100.0)


def fitted(
    decoder: Affine, rows: Rows, pose: str, prior: CodePrior, placements: Placements | None = None
) -> Fit:
    problems = Problems.start(rows, prior.mean[None], prior, placements, pose, SETTINGS)
    solver = LevenbergMarquardt(decoder, problems, SETTINGS)
    while not solver.finished:
        solver.step()
    best = Candidate(
        solver.codes[0], solver.placements.similarity(0), float(solver.cost[0]), float(solver.residual[0])
    )
    ends = Ends(solver.codes, solver.placements, solver.cost)
    return Fit(best, [], ends, solver.problems, solver.hessian[0], int(solver.steps_taken[0]))


@pytest.mark.parametrize("temperature", [1.0, 25.0])
def test_with_the_placement_known_it_is_that_of_a_linear_gaussian_model(temperature: float) -> None:
    """Bayesian linear regression: each row has the variance T / κw, the prior is that of the codes."""
    decoder, prior = Affine(), a_prior()
    rows = measured(decoder)
    fit = fitted(decoder, rows, "known", prior)
    posterior = laplace(fit, SETTINGS, Calibration(temperature=temperature))
    evidence = LENGTH / (2 * SETTINGS.prior_weight)
    features = decoder.features(rows.points[0]).double()
    weight = evidence * rows.weights[0].double()

    def precision(heat: float) -> Tensor:
        return prior.precision.double() + features.T @ (weight[:, None] * features) / heat

    exact = torch.linalg.inv(precision(temperature)).float()
    assert torch.allclose(posterior.covariance[:LENGTH, :LENGTH], exact, rtol=1e-3, atol=1e-7)
    assert not posterior.covariance[LENGTH:].any()
    assert not posterior.of_placement.any()
    # And the MAP that it is around is that of the regression.
    target = rows.lower[0].double() - rows.points[0].double() @ decoder.normal.double()
    pulled = features.T @ (weight * target) + prior.precision.double() @ prior.mean.double()
    assert torch.allclose(posterior.code, torch.linalg.solve(precision(1.0), pulled).float(), atol=1e-3)


def somewhere() -> Placements:
    vector = torch.tensor([[0.2, 0.8, -0.4]])
    return Placements(torch.tensor([0.3]), rotation_of(vector), torch.tensor([[0.1, -0.05, 0.2]]))


@pytest.mark.parametrize("pose", ["canonical", "upright", "free"])
def test_with_a_placement_it_is_the_inverse_of_data_and_prior(pose: str) -> None:
    """J by autograd of each residual, in code and move; what is not free has no variance."""
    decoder, prior = Affine(), a_prior()
    rows = replace(measured(decoder), points=0.6 * measured(decoder).points)
    fit = fitted(decoder, rows, pose, prior, somewhere())
    posterior = laplace(fit, SETTINGS, UNTEMPERED)
    freedom = torch.tensor(FREEDOM[pose], dtype=torch.bool)

    def misfit(change: Tensor) -> Tensor:
        there = fit.problem.placements.moved(change[None, LENGTH:])
        distances = decoder(fit.problem.codes + change[:LENGTH], placed(rows, there))
        return (residuals(distances, rows) / there.scale[:, None])[0]

    jacobian = torch.autograd.functional.jacobian(misfit, torch.zeros(LENGTH + MOVE_SIZE)).double()
    evidence = LENGTH / (2 * SETTINGS.prior_weight)
    precision = evidence * jacobian.T @ (rows.weights[0].double()[:, None] * jacobian)
    precision[:LENGTH, :LENGTH] += prior.precision
    std = torch.tensor([SCALE_STD, *TRANSLATION_STD, *3 * [SETTINGS.rotation_std]])
    precision.diagonal()[LENGTH:] += 1 / std**2
    free = torch.cat([torch.ones(LENGTH, dtype=torch.bool), freedom])
    exact = torch.linalg.inv(precision[free][:, free]).float()
    found = posterior.covariance[free][:, free]
    scale = exact.diagonal().sqrt()
    assert torch.allclose(found / scale / scale[:, None], exact / scale / scale[:, None], atol=0.01)
    assert not posterior.covariance[~free].any() and not posterior.covariance[:, ~free].any()


def a_posterior(size: float = 0.05) -> Posterior:
    """Of some covariance over code, scale, place and yaw, small enough for everything to be linear."""
    generator = torch.Generator().manual_seed(3)
    root = size * torch.randn(LENGTH + MOVE_SIZE, LENGTH + MOVE_SIZE, generator=generator) / 3
    held = torch.cat([torch.ones(LENGTH), torch.tensor(FREEDOM["upright"])])
    root = held[:, None] * root
    return Posterior(torch.tensor([0.3, -0.2, 0.1]), somewhere(), root @ root.T)


def changes(posterior: Posterior, count: int) -> Tensor:
    """Draws as changes (count, L + 7) of code and placement."""
    drawn = posterior.draws(count)
    moves = [placement.since(posterior.placement)[0] for _, placement in drawn]
    codes = [code - posterior.code for code, _ in drawn]
    return torch.cat([torch.stack(codes), torch.stack(moves)], dim=1)


def test_draws_have_the_covariance_of_the_posterior() -> None:
    posterior, count = a_posterior(), 4000
    drawn = changes(posterior, count).double()
    covariance = posterior.covariance.double()
    spread = covariance.diagonal().sqrt()
    assert (drawn.mean(dim=0).abs() <= 4 * spread / count**0.5 + 1e-6).all()
    off = (drawn.T @ drawn / count - covariance).abs()
    # The standard error of a covariance of n draws is at most √(2/n) of the two deviations' product.
    assert (off <= 4.5 * (2 / count) ** 0.5 * spread[:, None] * spread + 1e-7).all()


def test_draws_repeat_with_their_seed_and_leave_held_moves_alone() -> None:
    posterior = a_posterior()
    one, same, other = (posterior.draws(3, seed=seed) for seed in (5, 5, 6))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0][0], other[0][0])
    tilt = torch.stack([placement.since(posterior.placement)[0, [4, 6]] for _, placement in one])
    assert tilt.abs().max() < 1e-5
    assert posterior.draws(0) == []


def test_the_deviation_is_how_far_drawn_surfaces_lie_off_along_the_normal() -> None:
    """Each draw's plane is met exactly, along the normal at points of the MAP's plane."""
    decoder, posterior = Affine(curved=False), a_posterior(0.02)
    normal = decoder.normal / decoder.normal.norm()
    asked = torch.from_numpy(ball_points(40, np.random.default_rng(2))).float()
    level = decoder(posterior.code[None], asked[None])[0]
    on_plane = asked - (level / decoder.normal.norm())[:, None] * normal
    told = posterior.deviation(decoder, on_plane)

    place = posterior.placement
    seen = (on_plane - place.translation) @ place.rotation[0] / place.scale
    direction = normal @ place.rotation[0] / place.scale  # one canonical unit along the normal
    met = []
    for code, there in posterior.draws(3000):
        start, stop = (there.apply(points[None]) for points in (seen, seen + direction))
        low, high = decoder(code[None], start)[0], decoder(code[None], stop)[0]
        met.append(-low / (high - low))
    assert torch.allclose(told, torch.stack(met).std(dim=0), rtol=0.08)


def test_a_posterior_that_is_sure_has_no_deviation() -> None:
    sure = replace(a_posterior(), covariance=torch.zeros(LENGTH + MOVE_SIZE, LENGTH + MOVE_SIZE))
    points = torch.from_numpy(ball_points(40, np.random.default_rng(2))).float()
    assert not sure.deviation(Affine(), points).any()
    assert all(torch.equal(code, sure.code) for code, _ in sure.draws(3))


class Spheres:
    """A decoder whose code (1,) is a radius."""

    def __call__(self, codes: Tensor, points: Tensor) -> Tensor:
        return points.norm(dim=-1) - codes


def ended(radii: list[float], cost: list[float], scales: list[float]) -> Posterior:
    """Ends that are spheres, the first of them the winner, seen from frames of several scales."""
    codes, one = torch.tensor(radii)[:, None], Placements.identity(len(radii))
    placements = replace(one, log_scale=torch.tensor(scales).log())
    ends = Ends(codes, placements, torch.tensor(cost))
    return Posterior(codes[0], placements.of(slice(0, 1)), torch.zeros(8, 8), ends)


def test_ends_that_disagree_make_unsure_by_as_much() -> None:
    """Two spheres of half a weight each, one of them 0.06 larger: the root mean square of 0 and 0.06."""
    points = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(0))) / 2
    told = ended([0.5, 0.56], [1.0, 1.0], [1.0, 1.0]).disagreement(Spheres(), points)
    assert torch.allclose(told, torch.full((50,), 0.06 / 2**0.5), atol=1e-5)
    # The same sphere in a frame of twice the scale is no disagreement, and 0.03 there is half of that here.
    alike = ended([0.4, 0.8], [1.0, 1.0], [1.0, 2.0]).disagreement(Spheres(), 0.8 * points)
    assert torch.allclose(alike, torch.zeros(50), atol=1e-5)
    unlike = ended([0.4, 0.86], [1.0, 1.0], [1.0, 2.0]).disagreement(Spheres(), 0.8 * points)
    assert torch.allclose(unlike, torch.full((50,), 0.03 / 2**0.5), atol=1e-5)


def test_an_end_that_fits_badly_hardly_counts_and_a_single_one_is_at_one() -> None:
    points = torch.tensor([[0.5, 0.0, 0.0]])
    poor = ended([0.5, 0.56], [1.0, 6.0], [1.0, 1.0]).disagreement(Spheres(), points)
    assert 0 < poor < 0.06 / 10
    assert not ended([0.5], [1.0], [1.0]).disagreement(Spheres(), points).any()


def as_tensor(points: np.ndarray) -> Tensor:
    return torch.from_numpy(points.astype(np.float32))


def test_where_a_deviation_is_computed_it_is_of_parameters_inadequacy_noise_and_ripples() -> None:
    posterior, decoder = a_posterior(), Affine()
    vertices = as_tensor(ball_points(200, np.random.default_rng(4)))
    by_code = posterior.deviation(decoder, vertices)
    told = vertex_deviation(vertices, posterior, decoder, None, 0.01, Calibration(inadequacy=0.02))
    assert torch.allclose(told, (by_code**2 + 0.02**2 + 0.01**2 + RIPPLE**2).sqrt(), rtol=1e-3)


def test_of_many_vertices_the_others_are_told_by_their_neighbours() -> None:
    posterior, decoder = a_posterior(), Affine()
    solid = TINY_SOLIDS["sphere_0.8"]
    vertices = as_tensor(surface_points(solid, 3 * LOOKED_AT, np.random.default_rng(5)))
    told = vertex_deviation(vertices, posterior, decoder, None, 0.0, UNTEMPERED)
    exact = posterior.deviation(decoder, vertices)
    assert (told / exact - 1).abs().max() < 0.1
    assert told.dtype == torch.float32 and told.shape == (len(vertices),)


def test_a_correction_makes_sure_of_what_it_saw() -> None:
    """Near its data little but the noise remains, out of its reach everything that was unsure before."""
    posterior, decoder = a_posterior(), Affine()
    vertices = as_tensor(surface_points(TINY_SOLIDS["sphere_0.8"], 1500, np.random.default_rng(6)))
    seen = vertices[vertices[:, 2] > 0.3]
    factor = torch.linalg.cholesky(kernel(seen, seen) + 0.01 * torch.eye(len(seen)))
    correction = Correction(seen, torch.zeros(len(seen)), 0.04, factor)
    before, after = (
        vertex_deviation(vertices, posterior, decoder, one, 0.001, Calibration(inadequacy=0.03))
        for one in (None, correction)
    )
    assert (after <= before + 1e-6).all()
    assert torch.allclose(after[vertices[:, 2] < -0.1], before[vertices[:, 2] < -0.1], rtol=1e-3)
    assert (after[vertices[:, 2] > 0.35] < 0.4 * before[vertices[:, 2] > 0.35]).all()


BOX = TINY_SOLIDS["box_0.35_0.65"]


@pytest.fixture(scope="module")
def seen_box(tiny: Checkpoint) -> tuple[Fitter, Fit, Posterior]:
    """A half-seen box fitted with the tiny model, and how sure that is."""
    fitter = Fitter(tiny, FitSettings(), RowWeights(), Effort())
    fit = fitter.fit(observe(half_seen(BOX)), "canonical")
    return fitter, fit, laplace(fit, fitter.settings, Calibration())


def test_drawn_shapes_agree_with_the_scan_and_differ_where_nobody_looked(
    seen_box: tuple[Fitter, Fit, Posterior], tiny: Checkpoint
) -> None:
    _, fit, posterior = seen_box
    rows = fit.problem.rows
    on_surface = (rows.kind[0] != FREE) & (rows.kind[0] != BACKGROUND)
    seen = Rows(*(part[:, on_surface] for part in rows.parts()))

    def misfit(code: Tensor, placement: Placements) -> Tensor:
        return residuals(tiny.decoder(code[None], placed(seen, placement)), seen).abs().mean()

    best = misfit(fit.best.code, fit.problem.placements)
    drawn = torch.stack([misfit(*draw) for draw in posterior.draws(40)])
    assert best <= drawn.median() < best + 0.02


def test_the_side_that_was_not_seen_is_less_sure(
    seen_box: tuple[Fitter, Fit, Posterior], tiny: Checkpoint
) -> None:
    """By the code's posterior alone, and all the more once the seen side is corrected."""
    _, fit, posterior = seen_box
    vertices = surface_points(BOX, 2000, np.random.default_rng(7))
    facing = (gradient(BOX, vertices) * (np.array([0.6, 0.9, 2.6]) - vertices)).sum(axis=1) > 0
    field = DecodedField(tiny.decoder, fit.best.code, tiny.lipschitz)
    rows, points = fit.problem.rows, placed(fit.problem.rows, fit.problem.placements)[0]
    correction = correction_of(field, rows, points, 0.0)
    for one, share in ((None, 1.0), (correction, 0.5)):
        told = vertex_deviation(as_tensor(vertices), posterior, tiny.decoder, one, 0.0, Calibration()).numpy()
        assert np.median(told[facing]) < share * np.median(told[~facing])


def test_hot_data_say_less(seen_box: tuple[Fitter, Fit, Posterior], tiny: Checkpoint) -> None:
    fitter, fit, _ = seen_box
    spreads = [
        laplace(fit, fitter.settings, Calibration(temperature=heat)).covariance.diagonal()
        for heat in (1.0, 30.0, 1e12)
    ]
    free = torch.cat([torch.ones(4), fit.problem.freedom[0]]).bool()
    assert (spreads[0][free] < spreads[1][free]).all() and (spreads[1][free] < spreads[2][free]).all()
    # Data that say nothing leave the prior.
    assert torch.allclose(spreads[2][:4], torch.linalg.inv(tiny.prior.precision).diagonal(), rtol=0.01)
