"""What points tell of each other, on a GPU in few launches of `model.kernels.points`.

For `model.neighbours` and `model.cleaning`.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from model.kernels import launch

CELLS = 50_000_000
"""Pairs of a point and a group of points that are looked at at a time."""

ROWS, COLUMNS, PLACES, PATCHES = 16, 64, 512, 32
"""Points, groups, members of groups, and patches that a program works on."""

MEMBERS = 32
"""Points of a patch that a program works on at a time."""


def nearest(points: Tensor, others: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Distances and numbers (N, count) of those of (M, 3) points that are nearest to each of (N, 3) others.

    As in `neighbours.nearest_by_trying` points come in groups. Distances are compared in single precision: of
    two that differ by less than 1e-7 of themselves, either may be taken for the smaller one.
    """
    width = max(1, round(sqrt(len(points) / count)))
    groups = -(-len(points) // width)
    points, chunks = points.contiguous(), others.contiguous().split(max(1, CELLS // groups))
    found = [_numbers(points, chunk, count, groups, width) for chunk in chunks]
    numbers = found[0] if len(found) == 1 else torch.cat(found)
    return (points[numbers] - others[:, None]).norm(dim=2), numbers


def _numbers(points: Tensor, others: Tensor, count: int, groups: int, width: int) -> Tensor:
    from model.kernels.points import least_of_groups, within_groups

    rows, size, chosen = len(others), len(points), min(count, groups)
    least = others.new_empty((rows, groups), dtype=torch.float32)
    blocks = -(-rows // ROWS), -(-groups // COLUMNS)
    launch(least_of_groups, blocks, points, others, least, rows, size, groups, ROWS=ROWS, COLUMNS=COLUMNS)
    some = least.topk(chosen, largest=False, sorted=False).indices
    squares = others.new_empty((rows, chosen * width), dtype=torch.float32)
    blocks = rows, -(-squares.shape[1] // PLACES)
    launch(within_groups, blocks, points, others, some, squares, size, groups, chosen, width, PLACES=PLACES)
    place = squares.topk(count, largest=False).indices
    return some.gather(1, place // width) + groups * (place % width)


def axes(points: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `neighbours.least_axes` finds, in one launch."""
    from model.kernels.points import least_axes

    rows, each = numbers.shape
    points, numbers, found = points.contiguous(), numbers.contiguous(), points.new_empty(rows, 3)
    least, whole = points.new_empty(rows), points.new_empty(rows)  # each begins where a kernel likes it to
    blocks = (-(-rows // PATCHES),)
    launch(least_axes, blocks, points, numbers, found, least, whole, rows, each, ROWS=PATCHES, num_warps=1)
    return found, least, whole


def off_quadrics(points: Tensor, numbers: Tensor, ridge: float) -> Tensor:
    """What is left (B,) of patches of (N, 3) points, those that (B, K) numbers name, beside quadrics.

    The sum of squares along the normal of each patch's plane. `ridge` is the share of K that is added to the
    diagonals of the normal equations.
    """
    from model.kernels.points import off_quadrics as found

    (rows, each), left = numbers.shape, points.new_empty(len(numbers))
    launch(
        found,
        (rows,),
        points.contiguous(),
        numbers.contiguous(),
        left,
        each,
        ridge,
        COLUMNS=MEMBERS,
        num_warps=1,
    )
    return left


def voxels(points: Tensor, cell: float) -> Tensor:
    """The number (N,) of the voxel of edge `cell` that each of (N, 3) points lies in."""
    return _voxels(points.contiguous(), points.new_full((1,), cell))


def _voxels(points: Tensor, edge: Tensor) -> Tensor:
    from model.kernels.points import voxels as found

    numbers = points.new_empty(len(points), dtype=torch.long)
    box = torch.stack(points.aminmax(dim=0))
    launch(found, (-(-len(points) // PLACES),), points, box, numbers, len(points), edge, ROWS=PLACES)
    return numbers


def thinned(points: Tensor, cell: float) -> Tensor:
    """What `cleaning.thinned` finds."""
    from model.kernels.points import thin

    points, edge = points.contiguous(), points.new_full((1,), cell)
    numbers, order = _voxels(points, edge).sort(stable=True)
    chosen = points.new_zeros(len(points), dtype=torch.uint8)
    launch(
        thin,
        (-(-len(points) // PATCHES),),
        points,
        numbers,
        order,
        chosen,
        len(points),
        edge,
        ROWS=PATCHES,
        num_warps=1,
    )
    return chosen.nonzero().squeeze(1)
