"""Grids of signed distances on a GPU in one launch of `model.kernels.grids`, for `model.starts`."""

from __future__ import annotations

import torch
from torch import Tensor

from model.kernels import launch
from model.placement import ExpectedPlacements, Placements
from model.problems import FitSettings, Rows
from model.trees import leaves

ROWS = 128
"""Points that a program works on."""


def looked_up(
    grids: Tensor, numbers: Tensor, points: Tensor, half_width: float, unit: float
) -> tuple[Tensor, Tensor]:
    """Signed distances (B, K) and gradients (B, K, 3) at (B, K, 3) points, in the grids numbered (B,)."""
    from model.kernels.grids import look_up

    count, each = points.shape[:2]
    points = points.contiguous()
    distances, by_point = points.new_empty(count, each), torch.empty_like(points)
    launch(
        look_up, (count, -(-each // ROWS)),
        grids, numbers.contiguous(), points, distances, by_point, each, half_width, unit,
        SIDE=grids.shape[1], ROWS=ROWS,
    )  # fmt: skip
    return distances, by_point


def judged(
    grids: Tensor,
    rows: Rows,
    origin: Tensor,
    turn: Tensor,
    placements: Placements,
    expected: ExpectedPlacements,
    settings: FitSettings,
    half_width: float,
    unit: float,
) -> Tensor:
    """E (H,) of hypotheses on rows of one problem: of which shape (H,), in which turn (H,), standing where.

    Each of the T turns has its `expected` placement.
    """
    from model.kernels.grids import judge

    cost = torch.empty_like(placements.log_scale)
    numbers = (
        *(origin, turn, rows.points, rows.offsets, rows.lower, rows.upper, rows.weights),
        *(rows.only_in_ball, *leaves(placements), *leaves(expected)),
    )
    launch(
        judge, (len(cost),),
        grids, *(part.contiguous() for part in numbers), cost, len(rows), half_width, unit, settings.huber,
        settings.placement_weight, settings.placement_tail, settings.prior_weight / settings.rotation_std**2,
        SIDE=grids.shape[1], ROWS=ROWS,
    )  # fmt: skip
    return cost
