"""Grids of half the spacing on a GPU in one launch of `model.kernels.surface`, for `model.surface`."""

from __future__ import annotations

import torch
from torch import Tensor

from model.kernels import launch

ROWS = 256
"""Cells that a program works on."""


def halved(
    values: Tensor, exact: Tensor, bend: float, steep: float, least: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Values (2 X, 2 Y, 2 Y) on a grid of half the spacing, whether they are f, and whether to be evaluated.

    Of values (X + 1, Y + 1, Y + 1) on a coarse grid, and whether they are f. `bend` and `steep` are what the
    field's constants say of the middle of an edge. Corners that are bounded by no more than `least` are to be
    evaluated, and count as exact already.
    """
    from model.kernels.surface import halve

    planes, edge = values.shape[0] - 1, values.shape[1] - 1
    size, cells = (2 * planes, 2 * edge, 2 * edge), planes * edge * edge
    finer = values.new_empty(size)
    sure, wanted = (torch.empty(size, dtype=torch.bool, device=values.device) for _ in range(2))
    launch(
        halve, (-(-cells // ROWS),),
        values, exact.view(torch.int8), finer, sure.view(torch.int8), wanted.view(torch.int8), planes, edge,
        bend, steep, least, ROWS=ROWS,
    )  # fmt: skip
    return finer, sure, wanted
