"""Fitting codes: the second-order solver against Adam, autograd, and differences of its own objective."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from shapes import SignedDistance, ball_points, box, sphere, surface_points
from torch import Tensor

from model.checkpoint import Checkpoint, load_checkpoint
from model.decoder import Decoder, DecoderSpec
from model.latent import (
    PLACEMENT_SIZE,
    Adam,
    CodePrior,
    FitSettings,
    LevenbergMarquardt,
    Rows,
    objective,
    residuals,
    rows_of_samples,
)

SOLIDS = {"sphere": sphere(0.72), "box": box(0.42, 0.55, 0.5)}
FIXED = FitSettings(solve_placement=False)


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> Checkpoint:
    """The tiny model."""
    return load_checkpoint(tiny_checkpoint, "cpu")


def samples(solid: SignedDistance, count: int = 600, seed: int = 0) -> Rows:
    """Rows of one problem: a solid's exact signed distances, most of them near its surface."""
    rng = np.random.default_rng(seed)
    near = surface_points(solid, count, rng) + 0.05 * rng.normal(size=(count, 3))
    points = np.concatenate([near, ball_points(count // 4, rng)])
    as_tensor = [torch.from_numpy(part.astype(np.float32))[None] for part in (points, solid(points))]
    return rows_of_samples(*as_tensor, clamping_distance=0.1)


def batched(problems: list[Rows]) -> Rows:
    return Rows(
        *(torch.cat(parts) for parts in zip(*(problem._parts() for problem in problems), strict=True))
    )


def interval_rows(count: int = 40, seed: int = 0) -> Rows:
    """Equalities, one-sided rows and intervals, with offsets, some of them only valid in the ball."""
    rng = np.random.default_rng(seed)
    points = torch.from_numpy(1.1 * ball_points(count, rng)).float()[None]
    kind = torch.arange(count)[None] % 3
    target = 0.2 * torch.from_numpy(rng.normal(size=(1, count))).float()
    return Rows(
        points=points,
        offsets=0.02 * torch.from_numpy(rng.normal(size=(1, count, 3))).float(),
        lower=torch.where(kind == 1, torch.tensor(0.0), target),
        upper=torch.where(kind == 1, math.inf, target + 0.05 * (kind == 2)),
        weights=torch.from_numpy(rng.random((1, count))).float() / count,
        only_in_ball=torch.from_numpy(rng.random((1, count)) < 0.3),
    )


def solve(checkpoint: Checkpoint, rows: Rows, codes: Tensor, settings: FitSettings) -> LevenbergMarquardt:
    fit = LevenbergMarquardt(checkpoint.decoder, checkpoint.prior, rows, codes, settings=settings)
    while not fit.finished:
        fit.step()
    return fit


def fixed_cost(checkpoint: Checkpoint, rows: Rows, codes: Tensor) -> Tensor:
    nowhere = torch.zeros(len(codes), PLACEMENT_SIZE)
    return objective(checkpoint.decoder, checkpoint.prior, rows, codes, nowhere, FIXED)


def adam_on_the_same_objective(checkpoint: Checkpoint, rows: Rows, codes: Tensor, steps: int = 300) -> Tensor:
    """E after many steps of Adam from the same start: the trusted, slow way."""
    codes = codes.clone().requires_grad_()
    optimizer = torch.optim.Adam([codes], lr=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = _huber(residuals(checkpoint.decoder(codes, rows.points), rows), FIXED.huber)
        cost = (rows.weights * loss).sum() + FIXED.prior_weight * checkpoint.prior.distance(codes).sum()
        cost.backward()
        optimizer.step()
        schedule.step()
    return fixed_cost(checkpoint, rows, codes.detach())


def _huber(residual: Tensor, bound: float) -> Tensor:
    return torch.nn.functional.huber_loss(residual, torch.zeros_like(residual), reduction="none", delta=bound)


@pytest.mark.parametrize("name", SOLIDS)
def test_levenberg_marquardt_reaches_what_adam_reaches_in_a_tenth_of_the_steps(
    name: str, tiny: Checkpoint
) -> None:
    rows, start = samples(SOLIDS[name]), tiny.prior.mean[None]
    fit = solve(tiny, rows, start, FIXED)
    assert fit.steps_taken <= 30
    # One per cent for where the tolerance stops.
    assert fit.cost[0] <= 1.01 * adam_on_the_same_objective(tiny, rows, start)[0]


@pytest.mark.parametrize("name", SOLIDS)
def test_the_published_recipe_ends_no_lower_than_levenberg_marquardt(name: str, tiny: Checkpoint) -> None:
    rows = samples(SOLIDS[name])
    nowhere = torch.zeros(1, PLACEMENT_SIZE)
    adam = Adam(tiny.decoder, rows, tiny.codes.shape[1], nowhere, clamping_distance=0.1)
    while not adam.finished:
        adam.step()
    assert adam.steps_taken == 800
    assert adam.residual[0] < 0.02
    fit = solve(tiny, rows, tiny.prior.mean[None], FIXED)
    assert fit.cost[0] <= 1.01 * fixed_cost(tiny, rows, adam.codes.detach())[0]


def test_adam_repeats_with_its_seed_and_starts_near_zero(tiny: Checkpoint) -> None:
    rows, nowhere = samples(SOLIDS["box"]), torch.zeros(2, PLACEMENT_SIZE)
    runs = [Adam(tiny.decoder, rows, 4, nowhere, 0.1, seed=seed) for seed in (3, 3, 4)]
    assert runs[0].codes.abs().max() < 0.05
    for _ in range(5):
        for run in runs:
            run.step()
    assert torch.equal(runs[0].codes, runs[1].codes)
    assert not torch.equal(runs[0].codes, runs[2].codes)


@pytest.mark.parametrize("settings", [FIXED, FitSettings()], ids=["placement fixed", "placement solved"])
def test_no_step_raises_the_objective_whatever_the_start(settings: FitSettings, tiny: Checkpoint) -> None:
    starts = torch.randn(6, tiny.codes.shape[1], generator=torch.Generator().manual_seed(0))
    fit = LevenbergMarquardt(tiny.decoder, tiny.prior, samples(SOLIDS["box"]), starts, settings=settings)
    before, first = fit.cost, fit.cost
    while not fit.finished:
        fit.step()
        assert (fit.cost <= before).all()
        before = fit.cost
    assert (before < first).all()


def test_the_cost_is_the_objective_that_screening_computes(tiny: Checkpoint) -> None:
    rows, codes = interval_rows(), tiny.codes[:5]
    placements = 0.1 * torch.randn(5, PLACEMENT_SIZE, generator=torch.Generator().manual_seed(1))
    fit = LevenbergMarquardt(tiny.decoder, tiny.prior, rows, codes, placements)
    screened = objective(tiny.decoder, tiny.prior, rows, codes, placements, FitSettings())
    assert torch.allclose(fit.cost, screened, rtol=1e-4)


def differentiable_objective(
    checkpoint: Checkpoint, rows: Rows, state: Tensor, start: Tensor, settings: FitSettings
) -> Tensor:
    """E written plainly from the formula of the module, for autograd: state is (B, L + 4)."""
    codes, placements = state.split([state.shape[1] - PLACEMENT_SIZE, PLACEMENT_SIZE], dim=1)
    scale = placements[:, :1].exp()
    points = scale[..., None] * rows.points + placements[:, None, 1:] + rows.offsets
    radius = points.norm(dim=-1)
    nearest = points / radius.clamp(min=1)[..., None]
    distances = checkpoint.decoder(codes, nearest) + torch.relu(radius - 1)
    residual = torch.relu(distances - rows.upper) - torch.relu(rows.lower - distances)
    says = ~(rows.only_in_ball & (radius > 1))
    data = (rows.weights * says * _huber(residual / scale, settings.huber)).sum(dim=1)
    strayed = ((placements - start) / settings.placement_std).square().sum(dim=1)
    return data + settings.prior_weight * (checkpoint.prior.distance(codes) + strayed)


def a_state(checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """Codes and placements of three problems, none of them at its start."""
    generator = torch.Generator().manual_seed(2)
    placements = 0.1 * torch.randn(3, PLACEMENT_SIZE, generator=generator)
    return checkpoint.codes[:3] + 0.05 * torch.randn(3, 4, generator=generator), placements


def test_the_gradient_is_that_of_the_formula_in_code_scale_and_translation(tiny: Checkpoint) -> None:
    rows, settings = interval_rows(), FitSettings(prior_weight=0.01)
    codes, placements = a_state(tiny)
    start = placements + 0.05
    fit = LevenbergMarquardt(tiny.decoder, tiny.prior, rows, codes, placements, settings)
    model = fit._linearise(rows, codes, placements, start)
    state = torch.cat([codes, placements], dim=1).requires_grad_()
    cost = differentiable_objective(tiny, rows, state, start, settings)
    (expected,) = torch.autograd.grad(cost.sum(), state)
    assert torch.allclose(model.cost, cost, rtol=1e-4)
    assert torch.allclose(model.gradient, expected, rtol=1e-3, atol=1e-6)


def test_the_gradient_is_the_slope_of_the_cost(tiny: Checkpoint) -> None:
    """Central differences of the solver's own cost; a ReLU's kink within a step is averaged over."""
    rows, (codes, placements) = samples(SOLIDS["box"]), a_state(tiny)
    fit = LevenbergMarquardt(tiny.decoder, tiny.prior, rows, codes, placements)
    step, columns = 2e-3, []
    for move in step * torch.eye(4 + PLACEMENT_SIZE):
        sides = [
            fit._linearise(rows, codes + sign * move[:4], placements + sign * move[4:], placements).cost
            for sign in (1, -1)
        ]
        columns.append((sides[0] - sides[1]) / (2 * step))
    measured, exact = torch.stack(columns, dim=1), fit._model.gradient
    assert ((measured - exact).norm(dim=1) < 0.02 * exact.norm(dim=1)).all()


def test_the_hessian_is_that_of_gauss_and_newton(tiny: Checkpoint) -> None:
    """J from one row at a time; within the Huber bound JᵀWJ is exact."""
    rows = replace(interval_rows(12), only_in_ball=torch.zeros(1, 12, dtype=torch.bool))
    settings = FitSettings(huber=100.0, prior_weight=1e-12)
    codes, placements = a_state(tiny)
    fit = LevenbergMarquardt(tiny.decoder, tiny.prior, rows, codes, placements, settings)
    expected = torch.zeros_like(fit._model.hessian)
    for index in range(len(rows)):
        row = replace(rows.some(torch.tensor([index])), weights=torch.ones(1, 1))
        alone = fit._linearise(row, codes, placements, placements)
        active = alone.cost > 0
        slope = alone.gradient / (2 * alone.cost).clamp(min=1e-20).sqrt()[:, None]
        expected += rows.weights[0, index] * active[:, None, None] * slope[:, :, None] * slope[:, None, :]
    assert torch.allclose(fit._model.hessian, expected, rtol=1e-2, atol=1e-5)


def test_a_residual_is_the_signed_way_out_of_the_interval() -> None:
    rows = replace(
        samples(SOLIDS["sphere"], 4).some(torch.arange(5)),
        lower=torch.tensor([[0.1, -0.1, 0.0, 0.0, -0.2]]),
        upper=torch.tensor([[0.1, 0.1, math.inf, math.inf, -0.1]]),
    )
    distances = torch.tensor([[0.3, 0.05, 0.5, -0.2, -0.3]])
    assert torch.allclose(residuals(distances, rows), torch.tensor([[0.2, 0, 0, -0.2, -0.1]]))


def test_free_space_neither_pulls_nor_stiffens_where_the_field_is_positive(tiny: Checkpoint) -> None:
    points = torch.from_numpy(ball_points(400, np.random.default_rng(0))).float()[None]
    codes = tiny.codes[:1]
    positive = tiny.decoder(codes, points) > 0
    free = replace(
        rows_of_samples(points, torch.zeros(1, 400), 0.1),
        lower=torch.zeros(1, 400),
        upper=torch.full((1, 400), math.inf),
    )
    outside, inside = free.some(positive[0].nonzero()[:, 0]), free.some((~positive)[0].nonzero()[:, 0])
    settings = FitSettings(prior_weight=0.0)
    quiet = LevenbergMarquardt(tiny.decoder, tiny.prior, outside, codes, settings=settings)
    assert quiet.cost[0] == quiet.residual[0] == 0
    assert not quiet._model.gradient.any() and not quiet._model.hessian.any()
    loud = LevenbergMarquardt(tiny.decoder, tiny.prior, inside, codes, settings=settings)
    assert loud.cost[0] > 0 and loud._model.gradient.any()


def test_a_row_that_is_only_valid_in_the_ball_is_silent_beyond_it(tiny: Checkpoint) -> None:
    far = torch.tensor([[[1.4, 0.0, 0.0], [0.0, 1.2, 0.0]]])
    rows = rows_of_samples(far, torch.zeros(1, 2), 0.1)
    codes, nowhere, settings = tiny.codes[:1], torch.zeros(1, PLACEMENT_SIZE), FitSettings(prior_weight=0.0)
    heard = objective(tiny.decoder, tiny.prior, rows, codes, nowhere, settings)
    silent = replace(rows, only_in_ball=torch.ones(1, 2, dtype=torch.bool))
    assert heard[0] > 0
    assert objective(tiny.decoder, tiny.prior, silent, codes, nowhere, settings)[0] == 0


def test_beyond_the_ball_the_field_grows_with_the_distance_to_it(tiny: Checkpoint) -> None:
    """So that a scan placed outside is drawn in, though the decoder never saw those points."""
    edge = torch.tensor([[[0.0, 1.0, 0.0]]])
    rows = rows_of_samples(torch.cat([edge, 1.5 * edge], dim=1), torch.zeros(1, 2), 0.1)
    fit = LevenbergMarquardt(tiny.decoder, tiny.prior, rows, tiny.codes[:1])
    distances, _ = fit._jacobian(rows, fit.codes, fit.placements)
    assert torch.isclose(distances[0, 1] - distances[0, 0], torch.tensor(0.5), atol=1e-5)


def test_samples_beyond_the_clamping_distance_are_one_sided() -> None:
    distances = torch.tensor([[0.3, 0.1, 0.04, -0.04, -0.1, -0.3]])
    rows = rows_of_samples(torch.zeros(1, 6, 3), distances, 0.1)
    far = torch.tensor([[0.5, 0.5, 0.04, -0.04, -0.5, -0.5]])
    assert not residuals(far, rows).any()
    assert torch.allclose(residuals(torch.zeros(1, 6), rows), -distances.clamp(-0.1, 0.1))


def test_a_batch_of_problems_is_the_problems_one_at_a_time(tiny: Checkpoint) -> None:
    problems = [samples(SOLIDS["sphere"]), samples(SOLIDS["box"]), samples(sphere(0.55), seed=5)]
    starts = tiny.prior.mean.expand(3, -1)
    together = solve(tiny, batched(problems), starts, FitSettings())
    for index, rows in enumerate(problems):
        alone = solve(tiny, rows, starts[:1], FitSettings())
        assert torch.isclose(together.cost[index], alone.cost[0], rtol=0.02)
        assert torch.allclose(together.codes[index], alone.codes[0], atol=0.02)
        assert torch.allclose(together.placements[index], alone.placements[0], atol=0.01)


@pytest.mark.parametrize("broken", [math.nan, 1e6], ids=["not a number", "far away"])
def test_a_problem_that_cannot_be_solved_leaves_the_others_alone(broken: float, tiny: Checkpoint) -> None:
    good = samples(SOLIDS["box"])
    bad = replace(good, points=torch.full_like(good.points, broken))
    starts = tiny.prior.mean.expand(3, -1)
    fit = solve(tiny, batched([good, bad, good]), starts, FIXED)
    alone = solve(tiny, good, starts[:1], FIXED)
    for index in (0, 2):
        assert torch.allclose(fit.codes[index], alone.codes[0], atol=0.01)
    assert fit.codes.isfinite().all()


def test_rows_shared_by_all_problems_are_rows_given_to_each(tiny: Checkpoint) -> None:
    rows, starts = samples(SOLIDS["box"]), tiny.codes[:3]
    shared, each = solve(tiny, rows, starts, FIXED), solve(tiny, batched([rows] * 3), starts, FIXED)
    assert torch.allclose(shared.cost, each.cost, rtol=0.02)


def test_a_placement_that_is_not_solved_stays(tiny: Checkpoint) -> None:
    fit = solve(tiny, samples(SOLIDS["box"]), tiny.prior.mean[None], FIXED)
    assert not fit.placements.any()


def test_a_wrong_scale_and_place_are_found_back(tiny: Checkpoint) -> None:
    """The rows of a box seen 8 % too small and shifted; the true placement is the way back."""
    scale, shift = 0.92, torch.tensor([0.05, -0.04, 0.03])
    rows = samples(SOLIDS["box"])
    moved = replace(rows, points=rows.points * scale + shift)
    before = LevenbergMarquardt(tiny.decoder, tiny.prior, moved, tiny.prior.mean[None])
    fit = solve(tiny, moved, tiny.prior.mean[None], FitSettings(placement_std=1.0))
    assert fit.cost[0] < 0.1 * before.cost[0]
    found = fit.placements[0]
    assert torch.allclose(found[0].exp() * shift + found[1:], torch.zeros(3), atol=0.03)
    assert torch.isclose(found[0].exp() * scale, torch.tensor(1.0), atol=0.04)


def test_the_starts_are_not_written_to(tiny: Checkpoint) -> None:
    codes, placements = tiny.prior.mean[None].clone(), torch.zeros(1, PLACEMENT_SIZE)
    fit = LevenbergMarquardt(tiny.decoder, tiny.prior, samples(SOLIDS["box"]), codes, placements)
    fit.step()
    assert torch.equal(codes[0], tiny.prior.mean) and not placements.any()
    assert not torch.equal(fit.codes, codes)


def test_rows_of_some_problems_and_some_rows() -> None:
    one, two = samples(SOLIDS["box"]), samples(SOLIDS["sphere"])
    both = batched([one, two])
    assert len(both) == len(one) == 750
    picked = both.of(torch.tensor([1]))
    assert all(torch.equal(a, b) for a, b in zip(picked._parts(), two._parts(), strict=True))
    assert one.of(torch.tensor([0, 0, 0])) is one
    some = both.some(torch.tensor([5, 0]))
    assert len(some) == 2
    assert torch.equal(some.points, both.points[:, [5, 0]])
    assert torch.equal(some.weights, both.weights[:, [5, 0]])


def test_a_training_code_is_about_one_away_from_the_prior(tiny: Checkpoint) -> None:
    assert 0.6 < tiny.prior.distance(tiny.codes).mean() < 1.2
    assert tiny.prior.distance(tiny.prior.mean[None])[0] == 0


def test_without_shrinkage_the_prior_is_the_mahalanobis_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(500, 3, generator=generator) @ torch.randn(3, 3, generator=generator) + 2
    prior = CodePrior.from_codes(codes, shrinkage=0.0)
    centred = (codes - codes.mean(dim=0)).double().numpy()
    precision = np.linalg.inv(np.cov(codes.double().numpy().T))
    expected = np.einsum("ni,ij,nj->n", centred, precision, centred) / 3
    assert np.allclose(prior.distance(codes), expected, rtol=1e-3)


def test_a_prior_of_fewer_codes_than_dimensions_is_still_proper() -> None:
    for count in (1, 2, 10):
        prior = CodePrior.from_codes(torch.randn(count, 32, generator=torch.Generator().manual_seed(0)))
        assert (torch.linalg.eigvalsh(prior.precision) > 0).all()


def test_a_problem_whose_rows_say_nothing_ends_at_the_prior_mean() -> None:
    torch.manual_seed(0)
    decoder = Decoder(DecoderSpec(3, 16, 3, 2, weight_norm=False, dropout=0.0, tanh=False)).requires_grad_(
        False
    )
    prior = CodePrior.from_codes(torch.randn(30, 3))
    fit = LevenbergMarquardt(decoder, prior, _silent_rows(), torch.ones(1, 3), settings=FIXED)
    while not fit.finished:
        fit.step()
    assert torch.allclose(fit.codes[0], prior.mean, atol=0.05)


def _silent_rows() -> Rows:
    return replace(
        rows_of_samples(torch.zeros(1, 1, 3), torch.zeros(1, 1), 0.1),
        lower=torch.full((1, 1), -math.inf),
        upper=torch.full((1, 1), math.inf),
    )
