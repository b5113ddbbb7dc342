"""Fitting codes: the second-order solver against Adam, autograd, and differences of its own objective."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from shapes import SignedDistance, ball_points, box, sphere, surface_points
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from model import latent
from model.checkpoint import Checkpoint
from model.decoder import Decoder, DecoderSpec
from model.latent import (
    REPLAYED_STEPS,
    Adam,
    LevenbergMarquardt,
    objective,
    placed,
    placement_prior,
    residuals,
)
from model.placement import FREEDOM, MOVE_SIZE, SCALE_STD, ExpectedPlacements, Placements, rotation_of
from model.problems import SURFACE, CodePrior, FitSettings, Problems, Rows, rows_of_samples
from model.trees import leaves, mapped

SOLIDS = {"sphere": sphere(0.72), "box": box(0.42, 0.55, 0.5)}
SETTINGS = FitSettings()
POSES = list(FREEDOM)


def samples(solid: SignedDistance, count: int = 600, seed: int = 0, dtype: torch.dtype = torch.float) -> Rows:
    """Rows of one problem: a solid's exact signed distances, most of them near its surface."""
    rng = np.random.default_rng(seed)
    near = surface_points(solid, count, rng) + 0.05 * rng.normal(size=(count, 3))
    points = np.concatenate([near, ball_points(count // 4, rng)])
    as_tensor = [torch.from_numpy(part).to(dtype)[None] for part in (points, solid(points))]
    return rows_of_samples(*as_tensor, clamping_distance=0.1)


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
        kind=kind.to(torch.int8),
    )


def problems_of(
    rows: Rows,
    codes: Tensor,
    prior: CodePrior,
    pose: str = "known",
    settings: FitSettings = SETTINGS,
    placements: Placements | None = None,
) -> Problems:
    return Problems.start(rows, codes, prior, placements, pose, settings)


def begun(
    checkpoint: Checkpoint,
    rows: Rows,
    codes: Tensor,
    pose: str = "known",
    settings: FitSettings = SETTINGS,
    placements: Placements | None = None,
) -> LevenbergMarquardt:
    problems = problems_of(rows, codes, checkpoint.prior, pose, settings, placements)
    return LevenbergMarquardt(checkpoint.decoder, problems, settings)


def finished(fit: LevenbergMarquardt) -> LevenbergMarquardt:
    while not fit.finished:
        fit.step()
    return fit


def fixed_cost(checkpoint: Checkpoint, rows: Rows, codes: Tensor) -> Tensor:
    return objective(checkpoint.decoder, problems_of(rows, codes, checkpoint.prior), SETTINGS)


def adam_on_the_same_objective(checkpoint: Checkpoint, rows: Rows, codes: Tensor, steps: int = 300) -> Tensor:
    """E after many steps of Adam from the same start: the trusted, slow way."""
    codes = codes.clone().requires_grad_()
    optimizer = torch.optim.Adam([codes], lr=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = _huber(residuals(checkpoint.decoder(codes, rows.points), rows), SETTINGS.huber)
        cost = (rows.weights * loss).sum() + SETTINGS.prior_weight * checkpoint.prior.distance(codes).sum()
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
    fit = finished(begun(tiny, rows, start))
    assert fit.steps_taken <= 30
    # One per cent for where the tolerance stops.
    assert fit.cost[0] <= 1.01 * adam_on_the_same_objective(tiny, rows, start)[0]


@pytest.mark.parametrize("name", SOLIDS)
def test_the_published_recipe_ends_no_lower_than_levenberg_marquardt(name: str, tiny: Checkpoint) -> None:
    rows = samples(SOLIDS[name])
    nowhere = Placements.identity(1)
    adam = Adam(tiny.decoder, rows, tiny.codes.shape[1], nowhere, clamping_distance=0.1)
    while not adam.finished:
        adam.step()
    assert adam.steps_taken == 800
    assert adam.residual[0] < 0.02
    fit = finished(begun(tiny, rows, tiny.prior.mean[None]))
    assert fit.cost[0] <= 1.01 * fixed_cost(tiny, rows, adam.codes.detach())[0]


def test_adam_repeats_with_its_seed_and_starts_near_zero(tiny: Checkpoint) -> None:
    rows, nowhere = samples(SOLIDS["box"]), Placements.identity(2)
    runs = [Adam(tiny.decoder, rows, 4, nowhere, 0.1, seed=seed) for seed in (3, 3, 4)]
    assert runs[0].codes.abs().max() < 0.05
    for _ in range(5):
        for run in runs:
            run.step()
    assert torch.equal(runs[0].codes, runs[1].codes)
    assert not torch.equal(runs[0].codes, runs[2].codes)


def test_adam_leaves_the_placement_that_it_is_given(tiny: Checkpoint) -> None:
    """A box turned, shrunk and shifted is fitted like the box itself where its placement is told."""
    rows, way = samples(SOLIDS["box"], 200), a_placement(2)
    away = replace(rows, points=way.back(rows.points))
    fits = [
        Adam(tiny.decoder, rows, 4, Placements.identity(1), 0.1),
        Adam(tiny.decoder, away, 4, way.placements, 0.1),
    ]
    for _ in range(20):
        for fit in fits:
            fit.step()
    assert torch.allclose(fits[0].codes, fits[1].codes, atol=1e-4)
    assert torch.allclose(fits[0].residual, fits[1].residual * way.placements.scale, rtol=1e-3)


@pytest.mark.parametrize("pose", POSES)
def test_no_step_raises_the_objective_whatever_the_start(pose: str, tiny: Checkpoint) -> None:
    starts = torch.randn(6, tiny.codes.shape[1], generator=torch.Generator().manual_seed(0))
    fit = begun(tiny, samples(SOLIDS["box"]), starts, pose)
    before, first = fit.cost, fit.cost
    while not fit.finished:
        fit.step()
        assert (fit.cost <= before).all()
        before = fit.cost
    assert (before < first).all()


def test_the_cost_is_the_objective_that_screening_computes(tiny: Checkpoint) -> None:
    rows, codes, placements = interval_rows(), tiny.codes[:5], some_placements(5)
    fit = begun(tiny, rows, codes, "free", placements=placements)
    screened = objective(tiny.decoder, fit.problems, SETTINGS)
    assert torch.allclose(fit.cost, screened, rtol=1e-4)


def some_placements(count: int, seed: int = 1) -> Placements:
    """Somewhat off the identity in every respect."""
    moves = 0.1 * torch.randn(count, MOVE_SIZE, generator=torch.Generator().manual_seed(seed))
    moves[:, 4:] *= 3
    return Placements.identity(count).moved(moves)


def differentiable_objective(
    checkpoint: Checkpoint, problems: Problems, change: Tensor, settings: FitSettings
) -> Tensor:
    """E written plainly from the formula of the module, after a change (B, L + 7) of code and placement."""
    length, rows = problems.codes.shape[1], problems.rows
    codes = problems.codes + change[:, :length]
    log_scale = problems.placements.log_scale + change[:, length]
    translation = problems.placements.translation + change[:, length + 1 : length + 4]
    rotation = rotation_of(change[:, length + 4 :]) @ problems.placements.rotation
    scale = log_scale.exp()[:, None]
    turned = torch.einsum("bij,bkj->bki", rotation, rows.points)
    points = scale[..., None] * turned + translation[:, None]
    points = points + torch.einsum("bij,bkj->bki", rotation, rows.offsets)
    radius = points.norm(dim=-1)
    nearest = points / radius.clamp(min=1)[..., None]
    distances = checkpoint.decoder(codes, nearest) + torch.relu(radius - 1)
    residual = torch.relu(distances - rows.upper) - torch.relu(rows.lower - distances)
    says = ~(rows.only_in_ball & (radius > 1))
    data = (rows.weights * says * _huber(residual / scale, settings.huber)).sum(dim=1)
    usual, deviation = problems.expected.placements, problems.expected.deviation
    scale_off = ((log_scale - usual.log_scale) / deviation[:, 0]).square()
    place_off = ((translation - usual.translation) / deviation[:, 1:]).square().sum(dim=1)
    tail = settings.placement_tail
    strayed = settings.placement_weight * tail * torch.log(1 + (scale_off + place_off) / tail)
    # ‖A − B‖ = √8 sin(angle / 2): unlike the arc cosine of the trace it has a slope where they are the same.
    angle = 2 * ((rotation - usual.rotation).flatten(1).norm(dim=1) / 8**0.5).asin()
    turned_away = (angle / settings.rotation_std).square()
    code = settings.prior_weight * (checkpoint.prior.distance(codes) + turned_away)
    return data + code + strayed


def a_state(checkpoint: Checkpoint, pose: str) -> Problems:
    """Three problems, none of them where it is expected."""
    generator = torch.Generator().manual_seed(2)
    codes = checkpoint.codes[:3] + 0.05 * torch.randn(3, 4, generator=generator)
    start = some_placements(3)
    moves = 0.15 * torch.randn(3, MOVE_SIZE, generator=generator) * torch.tensor(FREEDOM[pose])
    problems = problems_of(interval_rows(), codes, checkpoint.prior, pose, placements=start.moved(moves))
    deviation = 0.02 + 0.1 * torch.rand(3, 4, generator=generator)
    return replace(problems, expected=ExpectedPlacements(start, deviation))


@pytest.mark.parametrize("pose", POSES)
def test_the_gradient_is_that_of_the_formula_in_code_scale_place_and_turn(
    pose: str, tiny: Checkpoint
) -> None:
    settings = FitSettings(prior_weight=0.01, placement_weight=0.02)
    problems = a_state(tiny, pose)
    fit = LevenbergMarquardt(tiny.decoder, problems, settings)
    model = fit._linearise(problems)
    change = torch.zeros(3, 4 + MOVE_SIZE, requires_grad=True)
    cost = differentiable_objective(tiny, problems, change, settings)
    (expected,) = torch.autograd.grad(cost.sum(), change)
    expected[:, 4:] *= problems.freedom
    assert torch.allclose(model.cost, cost, rtol=1e-4)
    assert torch.allclose(model.gradient, expected, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("pose", POSES)
def test_the_jacobian_of_every_row_is_that_of_autograd(pose: str, tiny: Checkpoint) -> None:
    """One backward pass beside one for each row, by code and by all seven numbers of a move."""
    problems = a_state(tiny, pose)
    fit = LevenbergMarquardt(tiny.decoder, problems)

    def distances(change: Tensor) -> Tensor:
        moved = problems.placements.moved(change[:, 4:])
        points = placed(problems.rows, moved)
        radius = points.norm(dim=-1, keepdim=True)
        field = tiny.decoder(problems.codes + change[:, :4], points / radius.clamp(min=1))
        return (field + torch.relu(radius - 1)[..., 0]).sum(dim=0)

    expected = torch.autograd.functional.jacobian(distances, torch.zeros(3, 4 + MOVE_SIZE))
    _, jacobian, _ = fit._jacobian(problems)
    assert torch.allclose(jacobian, expected.transpose(0, 1), rtol=1e-3, atol=1e-4)


def test_the_gradient_is_the_slope_of_the_cost(tiny: Checkpoint) -> None:
    """Central differences of the solver's own cost; a ReLU's kink within a step is averaged over."""
    problems = a_state(tiny, "free")
    problems = replace(problems, rows=samples(SOLIDS["box"]).expanded(3))
    fit = LevenbergMarquardt(tiny.decoder, problems)
    step, columns = 2e-3, []
    for move in step * torch.eye(4 + MOVE_SIZE):
        sides = [fit._linearise(changed(problems, sign * move)).cost for sign in (1, -1)]
        columns.append((sides[0] - sides[1]) / (2 * step))
    measured, exact = torch.stack(columns, dim=1), fit._linearise(problems).gradient
    assert ((measured - exact).norm(dim=1) < 0.02 * exact.norm(dim=1)).all()


def changed(problems: Problems, change: Tensor) -> Problems:
    moves = change[4:].expand(len(problems), -1)
    return replace(problems, codes=problems.codes + change[:4], placements=problems.placements.moved(moves))


def test_a_step_of_all_problems_moves_the_unfinished_ones_alone_and_as_leaving_the_others_out_does() -> None:
    """What a GPU replays beside what a CPU does."""
    fit = ellipsoid_fit(Problems.joined(three_problems()))
    while fit.standing.unfinished == 3:
        fit.step()
    before, of_all = fit._state, fit._stepped(fit._state)
    assert 0 < fit.standing.unfinished < 3
    fit.step()
    for part, other, old in zip(leaves(of_all), leaves(fit._state.fits), leaves(before.fits), strict=True):
        assert torch.allclose(part.double(), other.double(), rtol=1e-9)
        assert torch.equal(part[~before.unfinished], old[~before.unfinished])


@pytest.mark.parametrize("on_grids", [False, True])
def test_a_step_looks_at_no_value_so_that_it_can_be_recorded(on_grids: bool, tiny: Checkpoint) -> None:
    """Fake tensors have shapes and no values: what would look at one raises."""
    solver = begun(tiny, interval_rows(), tiny.codes[:3], "free")
    if on_grids:
        flat = CodePrior(torch.zeros(1), torch.zeros(1, 1))
        problems = problems_of(interval_rows(), torch.arange(3.0)[:, None], flat, "free")
        solver = LevenbergMarquardt(tiny.starts, problems)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        after = solver._stepped_and_told(mapped(mode.from_tensor, solver._state))
        with pytest.raises(DataDependentOutputException):
            bool(after.fits.converged.any())
    assert after.told.shape == (REPLAYED_STEPS, 3, 3)
    assert [part.shape for part in leaves(after.fits)] == [part.shape for part in leaves(solver._state.fits)]


def test_steps_that_a_gpu_replays_in_one_go_are_the_same_and_each_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the CPU, where what would be replayed is called plainly."""
    one_by_one = ellipsoid_fit(Problems.joined(three_problems()))
    told = []
    while not one_by_one.finished:
        one_by_one.step()
        told.append(one_by_one.standing)
    monkeypatch.setattr(latent, "_waits_for_launches", lambda fields, rows: True)
    monkeypatch.setattr(latent, "REPLAYED_STEPS", 3)
    at_once, told_at_once = ellipsoid_fit(Problems.joined(three_problems())), []
    while not at_once.finished:
        at_once.step()
        told_at_once += at_once.standings
    assert len(told) > 3 and told_at_once == told
    assert torch.equal(at_once.steps_taken, one_by_one.steps_taken)
    assert torch.allclose(at_once.codes, one_by_one.codes, rtol=1e-9)


def test_where_the_damping_is_too_little_for_the_precision_the_step_is_refused(tiny: Checkpoint) -> None:
    fit = begun(tiny, samples(SOLIDS["box"]), tiny.codes[:2])
    fits = fit._state.fits
    indefinite = replace(fits.model, hessian=fits.model.hessian - 10 * torch.eye(4 + MOVE_SIZE))
    fit._set(replace(fits, model=indefinite))
    cost, damping = fit.cost, fits.damping
    fit.step()
    assert torch.equal(fit.codes, fits.codes) and torch.equal(fit.cost, cost)
    assert (fit._state.fits.damping > damping).all() and not fit._state.fits.converged.any()


@pytest.mark.parametrize("pose", POSES)
def test_the_hessian_is_that_of_gauss_and_newton(pose: str, tiny: Checkpoint) -> None:
    """J from one row at a time; within the Huber bound JᵀWJ is exact."""
    settings = FitSettings(huber=100.0, prior_weight=1e-12, placement_weight=1e-12)
    problems = a_state(tiny, pose)
    rows = replace(interval_rows(12), only_in_ball=torch.zeros(1, 12, dtype=torch.bool)).expanded(3)
    problems = replace(problems, rows=rows, huber=torch.full((3,), 100.0))
    fit = LevenbergMarquardt(tiny.decoder, problems, settings)
    expected = torch.zeros_like(fit.hessian)
    for index in range(len(rows)):
        row = replace(rows.some(torch.tensor([index])), weights=torch.ones(3, 1))
        alone = fit._linearise(replace(problems, rows=row))
        active = alone.cost > 0
        slope = alone.gradient / (2 * alone.cost).clamp(min=1e-20).sqrt()[:, None]
        expected += rows.weights[0, index] * active[:, None, None] * slope[:, :, None] * slope[:, None, :]
    assert torch.allclose(fit.hessian, expected, rtol=1e-2, atol=1e-5)


def test_a_place_that_is_hardly_ever_seen_costs_more_but_pulls_less_and_less(tiny: Checkpoint) -> None:
    problems = problems_of(interval_rows(), tiny.codes[:1], tiny.prior, "canonical")
    far = torch.tensor([0.0, 0.5, 1.0, 4.0, 16.0]) * SCALE_STD
    priors = [
        placement_prior(replace(problems, placements=Placements.identity(1).moved(move)), SETTINGS)
        for move in far[:, None, None] * torch.eye(MOVE_SIZE)[0]
    ]
    costs, pulls = (torch.cat([getattr(one, name) for one in priors]) for name in ("cost", "gradient"))
    assert (costs.diff() > 0).all()
    assert costs[0] == 0 and not pulls[0].any()
    assert pulls[2, 0] > pulls[1, 0] and pulls[4, 0] < pulls[3, 0] < pulls[2, 0]
    assert not pulls[:, 1:].any()


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
    settings = FitSettings(prior_weight=0.0, placement_weight=0.0)
    quiet = begun(tiny, outside, codes, "free", settings)
    assert quiet.cost[0] == quiet.residual[0] == 0
    assert not quiet.model.gradient.any() and not quiet.hessian.any()
    loud = begun(tiny, inside, codes, "free", settings)
    assert loud.cost[0] > 0 and loud.model.gradient.any()


def test_a_row_that_is_only_valid_in_the_ball_is_silent_beyond_it(tiny: Checkpoint) -> None:
    far = torch.tensor([[[1.4, 0.0, 0.0], [0.0, 1.2, 0.0]]])
    rows = rows_of_samples(far, torch.zeros(1, 2), 0.1)
    codes, settings = tiny.codes[:1], FitSettings(prior_weight=0.0)
    heard = objective(tiny.decoder, problems_of(rows, codes, tiny.prior), settings)
    silent = replace(rows, only_in_ball=torch.ones(1, 2, dtype=torch.bool))
    assert heard[0] > 0
    assert objective(tiny.decoder, problems_of(silent, codes, tiny.prior), settings)[0] == 0


def test_beyond_the_ball_the_field_grows_with_the_distance_to_it(tiny: Checkpoint) -> None:
    """So that a scan placed outside is drawn in, though the decoder never saw those points."""
    edge = torch.tensor([[[0.0, 1.0, 0.0]]])
    rows = rows_of_samples(torch.cat([edge, 1.5 * edge], dim=1), torch.zeros(1, 2), 0.1)
    fit = begun(tiny, rows, tiny.codes[:1])
    distances, _, beyond = fit._jacobian(fit.problems)
    assert torch.isclose(distances[0, 1] - distances[0, 0], torch.tensor(0.5), atol=1e-5)
    assert torch.allclose(beyond, torch.tensor([[0.0, 0.5]]), atol=1e-6)


def test_samples_beyond_the_clamping_distance_are_one_sided() -> None:
    distances = torch.tensor([[0.3, 0.1, 0.04, -0.04, -0.1, -0.3]])
    rows = rows_of_samples(torch.zeros(1, 6, 3), distances, 0.1)
    far = torch.tensor([[0.5, 0.5, 0.04, -0.04, -0.5, -0.5]])
    assert not residuals(far, rows).any()
    assert torch.allclose(residuals(torch.zeros(1, 6), rows), -distances.clamp(-0.1, 0.1))
    assert (rows.kind == SURFACE).all()


def test_a_batch_of_problems_is_the_problems_one_at_a_time(tiny: Checkpoint) -> None:
    rows = [samples(SOLIDS["sphere"]), samples(SOLIDS["box"]), samples(sphere(0.55), seed=5)]
    starts = tiny.prior.mean.expand(3, -1)
    together = finished(begun(tiny, Rows.joined(rows), starts, "canonical"))
    for index, one in enumerate(rows):
        alone = finished(begun(tiny, one, starts[:1], "canonical"))
        assert torch.isclose(together.cost[index], alone.cost[0], rtol=0.02)
        assert torch.allclose(together.codes[index], alone.codes[0], atol=0.02)
        strayed = together.placements.of(torch.tensor([index])).since(alone.placements)
        assert torch.allclose(strayed, torch.zeros(1, MOVE_SIZE), atol=0.01)


class Ellipsoids:
    """Smooth fields in double precision, about the distance to an ellipsoid: the code is (L,) = (4,)."""

    prior = CodePrior(torch.zeros(4, dtype=torch.double), 4 * torch.eye(4, dtype=torch.double))

    def __call__(self, codes: Tensor, points: Tensor) -> Tensor:
        return self._distances(codes[:, None], points)

    def distance_and_gradients(self, codes: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            codes = codes.detach()[:, None].expand(-1, points.shape[1], -1).clone().requires_grad_()
            points = points.detach().requires_grad_()
            distances = self._distances(codes, points)
            by_code, by_point = torch.autograd.grad(distances.sum(), [codes, points])
        return distances.detach(), by_code, by_point

    def _distances(self, codes: Tensor, points: Tensor) -> Tensor:
        stretched = points * codes[..., :3].exp()
        return (stretched.square().sum(dim=-1) + 1e-4).sqrt() - codes[..., 3].exp()


def three_problems() -> list[Problems]:
    """With rows of other numbers and other parts of the placement free."""
    code = torch.tensor([[0.1, -0.2, 0.0, -0.5]], dtype=torch.double)
    identity = Placements.identity(1)
    still = Placements(*(part.double() for part in vars(identity).values()))
    rows = [
        samples(SOLIDS["sphere"], dtype=torch.double),
        samples(SOLIDS["box"], 300, dtype=torch.double),
        samples(sphere(0.55), 450, seed=5, dtype=torch.double),
    ]
    poses = ["upright", "free", "known"]
    prior = Ellipsoids.prior
    return [
        problems_of(one, code, prior, pose, placements=still) for one, pose in zip(rows, poses, strict=True)
    ]


def ellipsoid_fit(problems: Problems) -> LevenbergMarquardt:
    return LevenbergMarquardt(Ellipsoids(), problems)


def assert_ends_as_alone(fit: LevenbergMarquardt, index: int, alone: LevenbergMarquardt) -> None:
    assert fit.steps_taken[index] == alone.steps_taken[0]
    assert torch.allclose(fit.codes[index], alone.codes[0], atol=1e-9)
    assert torch.isclose(fit.cost[index], alone.cost[0], rtol=1e-9)
    assert torch.isclose(fit.residual[index], alone.residual[0], rtol=1e-9)
    assert torch.allclose(fit.hessian[index], alone.hessian[0], atol=1e-9)
    for part, own in zip(vars(fit.placements).values(), vars(alone.placements).values(), strict=True):
        assert torch.allclose(part[index], own[0], atol=1e-9)


def test_problems_in_one_batch_do_not_feel_each_other() -> None:
    problems = three_problems()
    together = finished(ellipsoid_fit(Problems.joined(problems)))
    for index, one in enumerate(problems):
        assert_ends_as_alone(together, index, finished(ellipsoid_fit(one)))


def step_as_one(*fits: LevenbergMarquardt) -> None:
    together = LevenbergMarquardt.joined(fits)
    together.step()
    together.part_into(fits)


def test_fits_that_are_joined_and_parted_end_as_alone_whenever_they_come_and_go() -> None:
    problems = three_problems()
    first, second, third = fits = [ellipsoid_fit(one) for one in problems]
    step_as_one(first)
    step_as_one(first, second)
    assert [int(fit.steps_taken) for fit in fits] == [2, 1, 0]
    step_as_one(third, first, second)
    step_as_one(third, second)
    for fit, one in zip(fits, problems, strict=True):
        assert_ends_as_alone(finished(fit), 0, finished(ellipsoid_fit(one)))


def test_fits_of_several_problems_keep_their_own_rows_when_they_part() -> None:
    one, two, three = three_problems()
    fits = ellipsoid_fit(Problems.joined([one, two])), ellipsoid_fit(three)
    rows = [fit.problems.rows for fit in fits]
    step_as_one(*fits)
    for fit, own in zip(fits, rows, strict=True):
        assert fit.problems.rows is own
    finished(fits[0])
    for index, alone in enumerate((one, two)):
        assert_ends_as_alone(fits[0], index, finished(ellipsoid_fit(alone)))


def test_a_finished_fit_stays_as_it_is_in_a_batch() -> None:
    first, second, _ = three_problems()
    done, fit = finished(ellipsoid_fit(first)), ellipsoid_fit(second)
    codes, taken = done.codes, done.steps_taken
    while not fit.finished:
        step_as_one(done, fit)
    assert torch.equal(done.codes, codes) and torch.equal(done.steps_taken, taken)
    assert_ends_as_alone(fit, 0, finished(ellipsoid_fit(second)))


def test_a_step_of_finished_problems_changes_nothing() -> None:
    fit = finished(ellipsoid_fit(Problems.joined(three_problems())))
    codes, cost, taken = fit.codes.clone(), fit.cost.clone(), fit.steps_taken.clone()
    fit.step()
    assert (
        torch.equal(fit.codes, codes) and torch.equal(fit.cost, cost) and torch.equal(fit.steps_taken, taken)
    )


def test_each_problem_takes_as_many_steps_as_it_may() -> None:
    """And what it has then is what any other that stopped there has."""
    first, second, _ = three_problems()
    steps = torch.tensor([1, 4])
    fit = finished(ellipsoid_fit(replace(Problems.joined([first, second]), steps=steps)))
    assert fit.steps_taken.tolist() == [1, 4]
    for index, one in enumerate((first, second)):
        stopped = ellipsoid_fit(one)
        for _ in range(int(steps[index])):
            stopped.step()
        assert torch.allclose(fit.codes[index], stopped.codes[0], atol=1e-9)


def test_each_problem_has_its_own_huber_bound() -> None:
    first, _, third = three_problems()
    bounds = torch.tensor([0.002, 0.3], dtype=torch.double)
    fit = finished(ellipsoid_fit(replace(Problems.joined([first, third]), huber=bounds)))
    for index, one in enumerate((first, third)):
        own = replace(one, huber=bounds[index : index + 1])
        assert_ends_as_alone(fit, index, finished(ellipsoid_fit(own)))


@pytest.mark.parametrize("pose", POSES)
def test_what_is_not_free_of_a_placement_stays_where_it_is(pose: str) -> None:
    """The rows are turned, shrunk and shifted, so that everything would have a reason to move."""
    way = a_placement(1)
    rows = samples(SOLIDS["box"], dtype=torch.double)
    away = replace(rows, points=way.back(rows.points.float()).double())
    code, start = torch.zeros(1, 4, dtype=torch.double), three_problems()[0].placements
    fit = finished(ellipsoid_fit(problems_of(away, code, Ellipsoids.prior, pose, placements=start)))
    moves, freedom = fit.placements.since(start)[0], torch.tensor(FREEDOM[pose], dtype=torch.bool)
    assert (moves[freedom].abs() > 1e-4).all()
    assert (moves[~freedom].abs() < 1e-9).all()
    idle = torch.cat([torch.zeros(4, dtype=torch.bool), ~freedom])
    assert not fit.hessian[0][idle].any() and not fit.hessian[0][:, idle].any()


@pytest.mark.parametrize("broken", [math.nan, 1e6], ids=["not a number", "far away"])
def test_a_problem_that_cannot_be_solved_leaves_the_others_alone(broken: float, tiny: Checkpoint) -> None:
    good = samples(SOLIDS["box"])
    bad = replace(good, points=torch.full_like(good.points, broken))
    starts = tiny.prior.mean.expand(3, -1)
    fit = finished(begun(tiny, Rows.joined([good, bad, good]), starts))
    alone = finished(begun(tiny, good, starts[:1]))
    for index in (0, 2):
        assert torch.allclose(fit.codes[index], alone.codes[0], atol=0.01)
    assert fit.codes.isfinite().all()


def test_rows_shared_by_all_problems_are_rows_given_to_each(tiny: Checkpoint) -> None:
    rows, starts = samples(SOLIDS["box"]), tiny.codes[:3]
    shared, each = (finished(begun(tiny, some, starts)) for some in (rows, Rows.joined([rows] * 3)))
    assert torch.allclose(shared.cost, each.cost, rtol=0.02)


class AWay:
    """A placement, and the way back from where it leads."""

    def __init__(self, placements: Placements) -> None:
        self.placements = placements

    def back(self, points: Tensor) -> Tensor:
        """Where (1, K, 3) canonical points lie in the observation."""
        inverse = self.placements.similarity(0).inverse()
        return torch.from_numpy(inverse.apply(points[0].double().numpy())).float()[None]


def a_placement(seed: int) -> AWay:
    return AWay(some_placements(1, seed))


def true_box_misfit(fit: LevenbergMarquardt, way: AWay) -> Tensor:
    """How far off the fitted placement puts the corners of the box, whose rows came by the way back."""
    corners = torch.cartesian_prod(*3 * [torch.tensor([-1.0, 1.0])]) * torch.tensor([0.42, 0.55, 0.5])
    found = fit.placements.apply(way.back(corners[None]))
    return (found - corners).norm(dim=-1).max()


@pytest.mark.parametrize("pose", ["canonical", "upright", "free"])
def test_a_wrong_place_is_found_back(pose: str, tiny: Checkpoint) -> None:
    """The rows of a box that is seen too small, shifted and turned, as far as the pose mode allows."""
    move = torch.tensor([[0.08, 0.05, -0.04, 0.03, 0.12, -0.25, 0.1]]) * torch.tensor(FREEDOM[pose])
    way = AWay(Placements.identity(1).moved(move))
    rows = samples(SOLIDS["box"])
    away = replace(rows, points=way.back(rows.points))
    settings = FitSettings(placement_weight=2e-7)
    fit = begun(tiny, away, tiny.prior.mean[None], pose, settings)
    before = fit.cost
    finished(fit)
    assert fit.cost[0] < 0.1 * before[0]
    assert true_box_misfit(fit, way) < 0.06


def test_the_starts_are_not_written_to(tiny: Checkpoint) -> None:
    codes, placements = tiny.prior.mean[None].clone(), Placements.identity(1)
    fit = begun(tiny, samples(SOLIDS["box"]), codes, "free", placements=placements)
    fit.step()
    assert torch.equal(codes[0], tiny.prior.mean)
    assert not placements.since(Placements.identity(1)).any()
    assert not torch.equal(fit.codes, codes)


def test_rows_of_some_problems_and_some_rows() -> None:
    one, two = samples(SOLIDS["box"]), samples(SOLIDS["sphere"])
    both = Rows.joined([one, two])
    assert len(both) == len(one) == 750
    picked = both.of(torch.tensor([1]))
    assert all(torch.equal(a, b) for a, b in zip(picked.parts(), two.parts(), strict=True))
    assert one.expanded(3).points.shape == (3, 750, 3)
    some = both.some(torch.tensor([5, 0]))
    assert len(some) == 2
    assert torch.equal(some.points, both.points[:, [5, 0]])
    assert torch.equal(some.weights, both.weights[:, [5, 0]])


def test_padding_says_nothing(tiny: Checkpoint) -> None:
    problems = a_state(tiny, "free")
    padded = replace(problems, rows=problems.rows.padded(70))
    assert len(padded.rows) == 70
    fits = [LevenbergMarquardt(tiny.decoder, one) for one in (problems, padded)]
    for name in ("cost", "residual", "hessian"):
        assert torch.allclose(*(getattr(fit, name) for fit in fits), rtol=1e-4, atol=1e-6), name


def test_chosen_problems_are_the_ones_asked_for() -> None:
    problems = three_problems()
    joined = Problems.joined(problems)
    assert len(joined) == 3
    third = joined.of(torch.tensor([2]))
    assert torch.equal(third.freedom, problems[2].freedom)
    assert torch.equal(third.rows.points[:, : len(problems[2].rows)], problems[2].rows.points)
    assert not third.rows.weights[:, len(problems[2].rows) :].any()


def test_the_points_of_the_rows_are_placed_and_offset() -> None:
    rows, placements = interval_rows(), some_placements(1)
    similarity = placements.similarity(0)
    expected = similarity.apply(rows.points[0]) + similarity.turn(rows.offsets[0])
    assert np.allclose(placed(rows, placements)[0], expected, atol=1e-6)


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
    problems = problems_of(_silent_rows(), torch.ones(1, 3), prior, "free")
    fit = finished(LevenbergMarquardt(decoder, problems))
    assert torch.allclose(fit.codes[0], prior.mean, atol=0.05)
    assert torch.allclose(fit.placements.since(problems.placements), torch.zeros(1, MOVE_SIZE), atol=1e-6)


def _silent_rows() -> Rows:
    return replace(
        rows_of_samples(torch.zeros(1, 1, 3), torch.zeros(1, 1), 0.1),
        lower=torch.full((1, 1), -math.inf),
        upper=torch.full((1, 1), math.inf),
    )
