"""The kernels for a GPU, run by Triton's interpreter on the CPU, beside what they stand for in torch.

What a GPU itself makes of them, `benchmarks.gpu` compares with float64.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model import kernels
from model.checkpoint import Checkpoint
from model.correction import REACHES, SHARES, Correction
from model.decoder import Decoder, DecoderSpec, without_weight_norm
from model.fused import correction as fused_correction
from model.fused import decoder as fused_decoder
from model.fused import grids as fused_grids
from model.fused import steps as fused_steps
from model.fused.decoder import FusedDecoder
from model.latent import LevenbergMarquardt, objective
from model.placement import FREEDOM, ExpectedPlacements, Placements
from model.problems import CodedFields, CodePrior, FitSettings, Problems, Rows
from model.starts import HALF_WIDTH, UNIT, Hypotheses, StartShapes
from model.trees import leaves, mapped

os.environ["TRITON_INTERPRET"] = "1"  # looked at when Triton is imported
pytest.importorskip("triton")

HALF = 1e-3
"""How far numbers of half precision may lead astray, as a share."""


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Small, since the interpreter is slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_decoder, "ROWS", 16)
        patch.setattr(fused_decoder, "COLUMNS", 32)
        patch.setattr(fused_steps, "ROWS", 32)
        patch.setattr(fused_correction, "ROWS", 16)
        patch.setattr(fused_steps, "products", lambda jacobian: jacobian.float().mT @ jacobian.float())
        yield


def share_off(found: Tensor, true: Tensor) -> float:
    return float((found.double() - true.double()).norm() / true.double().norm().clamp(min=1e-30))


# The decoder

SPECS = {
    "one skip, encoded": DecoderSpec(code_length=5, width=48, depth=4, skip_layer=2, octaves=3, tanh=0),
    "as published, small": DecoderSpec(code_length=16, width=32, depth=3, skip_layer=2),
    "no skip, squashed twice": DecoderSpec(
        code_length=3, width=24, depth=2, skip_layer=(), octaves=1, tanh=2
    ),
    "two skips, wider than a tile": DecoderSpec(code_length=8, width=80, depth=4, skip_layer=(1, 3)),
}


def frozen(spec: DecoderSpec) -> FusedDecoder:
    torch.manual_seed(0)
    served = FusedDecoder(spec)
    without_weight_norm(served)
    return served.eval().requires_grad_(False)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_the_decoder_in_one_launch_is_the_decoder(spec: DecoderSpec) -> None:
    decoder, generator = frozen(spec), torch.Generator().manual_seed(1)
    codes = torch.randn(3, spec.code_length, generator=generator)
    points = 2 * torch.rand(3, 21, 3, generator=generator) - 1  # blocks hold points of two shapes
    at_once = fused_decoder.Layers(decoder)
    true, by_code, by_point = decoder.double().distance_and_gradients(codes.double(), points.double())
    distances, slopes, slopes_of_code = at_once(codes, points, sloped=True, coded=True)
    assert float((distances - true).abs().max()) < 1e-6  # half precision alone would be off by 1e-4
    assert share_off(slopes, by_point) < HALF and share_off(slopes_of_code, by_code) < HALF
    alone, *nothing = at_once(codes, points)
    assert torch.equal(alone, distances) and not any(len(part) for part in nothing)
    assert torch.equal(at_once(codes, points, sloped=True)[1], slopes)


def test_no_points_have_no_distances() -> None:
    distances, by_point, _ = fused_decoder.Layers(frozen(SPECS["as published, small"]))(
        torch.zeros(1, 16), torch.zeros(1, 0, 3), sloped=True
    )
    assert distances.shape == (1, 0) and by_point.shape == (1, 0, 3)


@pytest.mark.parametrize(
    "change", [{"layer_norm": (0,)}, {"points_in_all": True, "octaves": 0}, {"skip_layer": (2, 4)}]
)
def test_networks_that_no_kernel_knows_are_left_to_torch(
    change: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_decoder, "usable", lambda device: True)
    usual = DecoderSpec(code_length=5, width=48, depth=4, skip_layer=2)
    assert frozen(usual)._layers(torch.zeros(1, 3)) is not None
    other = frozen(replace(usual, **change))
    assert other._layers(torch.zeros(1, 3)) is None
    assert other(torch.zeros(1, 5), torch.zeros(1, 2, 3)).shape == (1, 2)


def test_a_served_decoder_is_the_plain_one_where_gradients_are_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fused_decoder, "usable", lambda device: True)
    served, generator = frozen(SPECS["one skip, encoded"]), torch.Generator().manual_seed(1)
    plain = Decoder(replace(served.spec, weight_norm=False)).eval().requires_grad_(False)
    plain.load_state_dict(served.state_dict())
    codes = torch.randn(2, 5, generator=generator)
    points = 2 * torch.rand(2, 9, 3, generator=generator) - 1
    found = (*served.distance_and_gradients(codes, points), *served.distance_and_normals(codes, points))
    true = (*plain.distance_and_gradients(codes, points), *plain.distance_and_normals(codes, points))
    assert all(share_off(one, other) < HALF for one, other in zip(found, true, strict=True))
    assert torch.allclose(served(codes, points), plain(codes, points), atol=1e-6)
    codes.requires_grad_()
    (slope,) = torch.autograd.grad(served(codes, points).sum(), [codes])
    (exact,) = torch.autograd.grad(plain(codes, points).sum(), [codes])
    assert torch.equal(slope, exact)


# A step of the solver


def rows_of_all_kinds(count: int = 70, problems: int = 3) -> Rows:
    """Equalities, one-sided rows and intervals, some of them beyond the ball."""
    generator = torch.Generator().manual_seed(2)
    points = torch.randn(problems, count, 3, generator=generator) * 0.6
    kind = (torch.arange(count) % 3).expand(problems, -1)
    target = 0.2 * torch.randn(problems, count, generator=generator)
    return Rows(
        points=points,
        offsets=0.03 * torch.randn(problems, count, 3, generator=generator),
        lower=torch.where(kind == 1, torch.tensor(0.0), target),
        upper=torch.where(kind == 1, torch.inf, target + 0.05 * (kind == 2)),
        weights=torch.rand(problems, count, generator=generator) / count,
        only_in_ball=torch.rand(problems, count, generator=generator) < 0.3,
        kind=kind.to(torch.int8),
    )


def placements(seed: int, count: int = 3, size: float = 0.3) -> Placements:
    moves = size * torch.randn(count, 7, generator=torch.Generator().manual_seed(seed))
    return Placements.identity(count).moved(moves)


def a_fit(tiny: Checkpoint, fields: str, pose: str, settings: FitSettings) -> LevenbergMarquardt:
    """Of three problems, with the decoder or on grids."""
    stand = placements(3)
    codes, prior, field = tiny.codes[:3], tiny.prior, tiny.decoder
    if fields == "grids":
        codes, prior = torch.tensor([[2.0], [0.0], [1.0]]), CodePrior(torch.zeros(1), torch.zeros(1, 1))
    shapes: CodedFields = tiny.starts if fields == "grids" else field
    expected = ExpectedPlacements.around(placements(4))
    problems = Problems.start(rows_of_all_kinds(), codes, prior, stand, pose, settings, expected)
    return LevenbergMarquardt(shapes, problems, settings)


@pytest.mark.parametrize("pose", FREEDOM)
@pytest.mark.parametrize("fields", ["decoder", "grids"])
def test_a_step_in_a_few_launches_is_the_step(fields: str, pose: str, tiny: Checkpoint) -> None:
    settings = FitSettings(placement_weight=1e-2, prior_weight=1e-2)  # the priors must show
    fit = a_fit(tiny, fields, pose, settings)
    problems, model = fit.problems, fit.model
    found = fused_steps.linearised(fit.fields, problems, settings)
    assert share_off(found.cost, model.cost) < 1e-5 and share_off(found.residual, model.residual) < 1e-5
    assert share_off(found.gradient, model.gradient) < HALF
    assert share_off(found.hessian, model.hessian) < HALF
    damping = fit._state.fits.damping
    solved, promised, codes, moved = fused_steps.solved(model, damping, problems)
    move, works = fit._solve(model, damping)
    length = problems.codes.shape[1]
    there = problems.placements.moved(problems.freedom * move[:, length:])
    assert solved.bool().equal(works)
    assert torch.allclose(codes, problems.codes + move[:, :length], atol=1e-4)
    for one, other in zip(leaves(moved), leaves(there), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    curved = (move[:, None] @ model.hessian @ move[..., None]).reshape(-1)
    expects = -(move * model.gradient).sum(dim=1) - 0.5 * curved
    assert torch.allclose(promised, expects, rtol=1e-4, atol=1e-12)  # nothing of what is not free


def test_what_cannot_be_factorised_is_no_step(tiny: Checkpoint) -> None:
    fit = a_fit(tiny, "decoder", "free", FitSettings())
    indefinite = fit.model.hessian.clone()
    indefinite[1] -= 10 * torch.eye(indefinite.shape[1])
    model = replace(fit.model, hessian=indefinite)
    solved, promised, codes, stand = fused_steps.solved(model, fit._state.fits.damping, fit.problems)
    assert solved.tolist() == [1, 0, 1] and promised.isfinite().all()
    assert torch.equal(codes[1], fit.codes[1]) and torch.equal(stand.rotation[1], fit.placements.rotation[1])


@pytest.mark.parametrize("steps", [1, 30])
def test_steps_that_do_not_lower_the_objective_are_taken_back(steps: int, tiny: Checkpoint) -> None:
    fit = a_fit(tiny, "decoder", "free", FitSettings(steps=steps))
    now = fit._state.fits
    now = replace(now, converged=torch.tensor([False, False, True]))
    new = mapped(lambda part: part + 1 if part.is_floating_point() else part, now)
    new = replace(new, model=replace(new.model, cost=now.model.cost * torch.tensor([0.5, 2.0, 0.5])))
    works, promised = torch.ones(3, dtype=torch.int8), now.model.cost / 2
    after = fused_steps.settled(now, new, works, promised, fit.problems.steps, 1e-3)
    assert torch.equal(after.codes[0], new.codes[0]) and torch.equal(after.codes[1:], now.codes[1:])
    assert torch.equal(after.model.hessian[0], new.model.hessian[0])
    assert torch.equal(after.model.hessian[1:], now.model.hessian[1:])
    assert torch.equal(after.placements.rotation[1:], now.placements.rotation[1:])
    assert after.steps_taken.tolist() == [1, 1, 0] and after.converged.tolist() == [False, False, True]
    # As much as was promised: a fifth of the damping. Refused: twice, and then four times.
    assert torch.allclose(after.damping, now.damping * torch.tensor([0.2, 2.0, 1.0]))
    assert after.raised.tolist() == [2.0, 4.0, 2.0]


def test_a_fit_in_few_launches_ends_where_the_fit_ends(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = FitSettings(steps=6)
    true = a_fit(tiny, "grids", "upright", settings)
    while not true.finished:
        true.step()
    monkeypatch.setattr(fused_steps, "usable", lambda codes: True)
    found = a_fit(tiny, "grids", "upright", settings)
    while not found.finished:
        found.step()
    assert torch.allclose(found.cost, true.cost, rtol=1e-2)
    assert torch.equal(found.steps_taken, true.steps_taken)


# Grids


def a_grid(shapes: int = 3, side: int = 9) -> StartShapes:
    values = torch.randint(-127, 128, (shapes, side, side, side), generator=torch.Generator().manual_seed(5))
    return StartShapes(torch.zeros(shapes, 4), torch.zeros(shapes, 2, 3), values.to(torch.int8))


def test_grids_are_looked_up_as_in_torch() -> None:
    shapes, numbers = a_grid(), torch.tensor([[2.0], [0.0]])
    points = 2.4 * torch.rand(2, 150, 3, generator=torch.Generator().manual_seed(6)) - 1.2
    true, _, by_point = shapes.distance_and_gradients(numbers, points)
    found, slopes = fused_grids.looked_up(shapes.grids, numbers, points, HALF_WIDTH, UNIT)
    assert torch.allclose(found, true, atol=1e-5) and torch.allclose(slopes, by_point, atol=1e-4)


def test_hypotheses_are_judged_as_in_torch() -> None:
    shapes, settings = a_grid(), FitSettings(placement_weight=1e-2, prior_weight=1e-2)
    turn, rows = torch.tensor([0, 1, 1, 0, 1]), rows_of_all_kinds(problems=1)
    tried = Hypotheses(torch.tensor([0, 2, 1, 1, 0]), placements(7, 5), turn)
    expected = ExpectedPlacements.around(placements(8, 2))
    flat = CodePrior(torch.zeros(1), torch.zeros(1, 1))
    problems = Problems.start(
        rows, tried.origin[:, None].float(), flat, tried.placements, "known", settings, expected.of(turn)
    )
    found = fused_grids.judged(
        shapes.grids, rows, tried.origin, turn, tried.placements, expected, settings, HALF_WIDTH, UNIT
    )
    assert torch.allclose(found, objective(shapes, problems, settings), rtol=1e-4)


# The correction


def test_sums_over_centres_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(9)
    centres, weights, points = (torch.randn(*size, generator=generator) for size in ((70, 3), (70,), (37, 3)))
    exact = Correction(centres.double() / 2, weights.double(), 1.0, torch.eye(1))
    value, gradient = exact.distance_and_gradient(points.double() / 2)
    both = tuple(zip(REACHES, SHARES, strict=True))
    found, slopes = fused_correction.summed(points / 2, centres / 2, weights, both, sloped=True)
    assert torch.allclose(found.double(), value, atol=1e-5)
    assert torch.allclose(slopes.double(), gradient, atol=1e-4)
    assert torch.equal(fused_correction.summed(points / 2, centres / 2, weights, both, False)[0], found)


# Where they can be had


def test_there_are_no_kernels_on_a_cpu() -> None:
    assert not kernels.usable(torch.device("cpu"))
    assert not fused_steps.usable(torch.zeros(1, 4))


def test_where_no_kernel_can_be_compiled_there_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Here because there is no GPU; elsewhere because there is no C compiler."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with caplog.at_level(logging.WARNING):
        assert not kernels._compiles.__wrapped__(torch.device("cuda"))
    assert "no kernel can be compiled" in caplog.text


def test_after_one_that_failed_no_kernel_is_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "_compiles", lambda device: True)
    monkeypatch.setattr(kernels, "_given_up", [])
    assert kernels.usable(torch.device("cuda"))
    with caplog.at_level(logging.WARNING):
        kernels.give_up(RuntimeError("out of shared memory"))
    assert not kernels.usable(torch.device("cuda"))
    assert "out of shared memory" in caplog.text


def test_a_kernel_runs_where_its_first_argument_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton would take the current device, whatever the arguments are on."""
    there, entered = torch.device("cuda:1"), []

    class Guard:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            entered.append(self.device)

        def __exit__(self, *_: object) -> None: ...

    class Elsewhere:
        device = there

    monkeypatch.setattr(torch.cuda, "device", Guard)
    launched = []

    class Kernel:
        def __getitem__(self, blocks: tuple[int, ...]) -> Callable[..., None]:
            return lambda *arguments, **sizes: launched.append((blocks, sizes, [*entered]))

    kernels.launch(Kernel(), (3,), Elsewhere(), ROWS=4)
    assert launched == [((3,), {"ROWS": 4}, [there])]
