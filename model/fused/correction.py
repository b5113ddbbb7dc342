"""Sums over the centres of a correction on a GPU in one launch of `model.kernels.correction`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.kernels import launch

ROWS, COLUMNS = 64, 32
"""Points that a program works on, and centres that it takes at a time."""


def summed(
    points: Tensor, centres: Tensor, weights: Tensor, kernels: Sequence[tuple[float, float]], sloped: bool
) -> tuple[Tensor, Tensor]:
    """Weighted sums (N,) at (N, 3) points of two kernels, each of a reach and a share, at (M, 3) centres.

    And their gradients (N, 3), if they are to be `sloped`.
    """
    from model.kernels import correction

    points, count = points.contiguous(), len(points)
    values = points.new_empty(count)
    gradients = torch.empty_like(points) if sloped else values
    (wide, much), (narrow, little) = kernels
    if count:
        launch(
            correction.summed, (-(-count // ROWS),),
            points, centres.contiguous(), weights.contiguous(), values, gradients, count, len(centres),
            wide, much, narrow, little, SLOPED=sloped, ROWS=ROWS, COLUMNS=COLUMNS,
        )  # fmt: skip
    return values, gradients
