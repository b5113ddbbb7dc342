"""Steps of Levenberg-Marquardt on a GPU in a few launches of `model.kernels.step`, for `model.latent`.

What they compute is said there, in torch; here, how tensors go in and come out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model import kernels
from model.kernels import launch, power_of_two
from model.placement import Placements
from model.problems import CodedFields, Fits, FitSettings, Linearisation, Problems
from model.trees import mapped

ROWS, BLOCK, SETTLED = 64, 16, 1024
"""Rows, columns and rows of a Hessian, and numbers of one that a program works on."""

SCALE_UP = 32.0
"""What weighted rows of a Jacobian are multiplied by: half precision writes small numbers down badly."""


LONGEST_CODE = 256
"""Hessians of longer ones are too large for a program."""


def usable(codes: Tensor) -> bool:
    """Whether there are kernels for such codes (B, L), where they are."""
    alike = codes.dtype == torch.float32 and codes.shape[1] <= LONGEST_CODE
    return alike and kernels.usable(codes.device)


def linearised(fields: CodedFields, problems: Problems, settings: FitSettings) -> Linearisation:
    """E and its model where the problems stand."""
    from model.kernels import step

    rows, placements, expected = problems.rows, problems.placements, problems.expected
    count, each = rows.weights.shape
    length = problems.codes.shape[1]
    blocks, size = -(-each // ROWS), length + 7
    grid, columns = (count, blocks), _rounded(size + 1)
    points, offsets = rows.points.contiguous(), rows.offsets.contiguous()
    stand = _parts(placements)
    inside = torch.empty_like(points)
    launch(step.place, grid, points, offsets, *stand, inside, each, ROWS=ROWS)
    distances, by_code, by_point = fields.distance_and_gradients(problems.codes, inside)
    jacobian = points.new_empty((count, each, columns), dtype=torch.float16)
    sums = points.new_empty(count, 3, blocks)
    freedom, huber = problems.freedom.contiguous(), problems.huber.contiguous()
    launch(
        step.weigh, grid,
        points, offsets, rows.lower.contiguous(), rows.upper.contiguous(), rows.weights.contiguous(),
        rows.only_in_ball.contiguous(), *stand, freedom, huber, distances.contiguous(), by_code.contiguous(),
        by_point.contiguous(), jacobian, sums, each, SCALE_UP,
        LENGTH=length, CODE=power_of_two(length, BLOCK), COLUMNS=columns, ROWS=ROWS,
    )  # fmt: skip
    cost, residual = points.new_empty(count), points.new_empty(count)
    gradient, hessian = points.new_empty(count, size), points.new_empty(count, size, size)
    prior = problems.prior
    launch(
        step.assemble, (count, -(-size // BLOCK)),
        products(jacobian), sums, problems.codes.contiguous(), prior.mean.contiguous(),
        prior.precision.contiguous(), *stand, *_parts(expected.placements), expected.deviation.contiguous(),
        freedom, cost, gradient, hessian, residual, blocks, SCALE_UP**-2, settings.prior_weight / length,
        settings.placement_weight, settings.placement_tail, settings.prior_weight / settings.rotation_std**2,
        LENGTH=length, COLUMNS=columns, WIDTH=power_of_two(size, BLOCK),
    )  # fmt: skip
    return Linearisation(cost, gradient, hessian, residual)


def products(jacobian: Tensor) -> Tensor:
    """JᵀJ (B, C, C) in single precision of Jacobians (B, K, C) in half precision."""
    return torch.bmm(jacobian.mT, jacobian, out_dtype=torch.float32)


def solved(
    model: Linearisation, damping: Tensor, problems: Problems
) -> tuple[Tensor, Tensor, Tensor, Placements]:
    """Whether there is a damped step (B,), what it promises (B,), and to what codes and placements."""
    from model.kernels import step

    codes, placements = problems.codes.contiguous(), problems.placements
    count, length = codes.shape
    edge = _rounded(length + 7) + BLOCK
    there = Placements(*(torch.empty_like(part) for part in _parts(placements)))
    moved, works = torch.empty_like(codes), codes.new_empty(count, dtype=torch.int8)
    promised, move = codes.new_empty(count), torch.empty_like(model.gradient)
    launch(
        step.solve, (count,),
        model.hessian, model.gradient, damping, codes, *_parts(placements), problems.freedom.contiguous(),
        codes.new_empty(count, edge, edge), codes.new_empty(count, edge, BLOCK), move, works, promised, moved,
        *_parts(there), LENGTH=length, EDGE=edge, ROWS=power_of_two(edge, BLOCK),
    )  # fmt: skip
    return works, promised, moved, there


def settled(now: Fits, new: Fits, works: Tensor, promised: Tensor, steps: Tensor, tolerance: float) -> Fits:
    """The fits after a step that led to `new`, where it lowered E."""
    from model.kernels import step

    after = mapped(torch.empty_like, now)
    count, size = now.model.gradient.shape
    old, then, made = now.model, new.model, after.model
    pairs = [(now.codes.contiguous(), new.codes), (old.gradient, then.gradient), (old.hessian, then.hessian)]
    pairs += list(zip(_parts(now.placements), _parts(new.placements), strict=True))
    launch(
        step.settle, (count, -(-size * size // SETTLED)),
        old.cost, then.cost, promised, works, now.damping, now.raised, now.converged, now.steps_taken, steps,
        old.residual, then.residual, *(part for pair in pairs for part in pair),
        made.cost, after.damping, after.raised, after.converged, after.steps_taken, made.residual,
        after.codes, made.gradient, made.hessian, *_parts(after.placements), tolerance,
        LENGTH=size - 7, SHARE=SETTLED,
    )  # fmt: skip
    return after


def _parts(placements: Placements) -> tuple[Tensor, Tensor, Tensor]:
    parts = placements.log_scale, placements.rotation, placements.translation
    return parts[0].contiguous(), parts[1].contiguous(), parts[2].contiguous()


def _rounded(size: int) -> int:
    """The least multiple of `BLOCK` that is not below."""
    return -(-size // BLOCK) * BLOCK
