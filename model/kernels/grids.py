"""Signed distances looked up in grids, and hypotheses judged by them: what `model.starts` says in torch."""

from __future__ import annotations

import triton
import triton.language as tl

from model.kernels.placement import misfit, placed, placement_cost, turn_since


@triton.jit(do_not_specialize=["each"])
def look_up(
    grids,  # (S, SIDE, SIDE, SIDE) int8
    numbers,  # (B) float32: which grid
    points,  # (B, K, 3)
    distances,  # found: (B, K)
    by_point,  # found: (B, K, 3)
    each,
    half_width,
    unit,  # of the values
    SIDE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Signed distances and their gradients."""
    problem, row = tl.program_id(0), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    exists, at = row < each, problem * each + row
    x = tl.load(points + at * 3, mask=exists, other=0.0)
    y = tl.load(points + at * 3 + 1, mask=exists, other=0.0)
    z = tl.load(points + at * 3 + 2, mask=exists, other=0.0)
    grid = grids + tl.load(numbers + problem).to(tl.int64) * SIDE * SIDE * SIDE
    value, by_x, by_y, by_z = _between(grid, x, y, z, half_width, SIDE)
    steep = unit * (SIDE - 1) / (2 * half_width)
    tl.store(distances + at, value * unit, mask=exists)
    tl.store(by_point + at * 3, by_x * steep, mask=exists)
    tl.store(by_point + at * 3 + 1, by_y * steep, mask=exists)
    tl.store(by_point + at * 3 + 2, by_z * steep, mask=exists)


@triton.jit(do_not_specialize=["each"])
def judge(
    grids,
    origin,  # (H) int64: which grid
    turn,  # (H) int64: which of the expected placements
    points,  # of K rows, the same for all hypotheses
    offsets,
    lower,
    upper,
    weights,
    only_in_ball,
    log_scale,  # (H) …
    rotation,
    translation,
    expected_log_scale,  # (T) …
    expected_rotation,
    expected_translation,
    deviation,
    cost,  # found: (H)
    each,
    half_width,
    unit,
    huber,
    placement_weight,
    placement_tail,
    turn_weight,
    SIDE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """E of hypotheses; see `model.latent.objective`."""
    one = tl.program_id(0)
    grid = grids + tl.load(origin + one) * SIDE * SIDE * SIDE
    scale = tl.exp(tl.load(log_scale + one))
    total = tl.zeros([ROWS], tl.float32)
    for first in range(0, each, ROWS):
        row = first + tl.arange(0, ROWS)
        exists = row < each
        _, _, _, _, _, _, x, y, z, radius = placed(
            points, offsets, log_scale, rotation, translation, one, row * 3, exists
        )
        nearer, beyond = 1 / tl.maximum(radius, 1.0), tl.maximum(radius - 1, 0.0)
        value, _, _, _ = _between(grid, x * nearer, y * nearer, z * nearer, half_width, SIDE)
        _, weight, loss = misfit(
            value * unit + beyond,
            tl.load(lower + row, mask=exists, other=0.0),
            tl.load(upper + row, mask=exists, other=0.0),
            tl.load(weights + row, mask=exists, other=0.0),
            tl.load(only_in_ball + row, mask=exists, other=0),
            beyond,
            1 / scale,
            huber,
        )
        total += weight * loss
    at = tl.load(turn + one)
    scale_off = (tl.load(log_scale + one) - tl.load(expected_log_scale + at)) / tl.load(deviation + at * 4)
    off = scale_off * scale_off
    for axis in tl.static_range(3):
        moved = tl.load(translation + one * 3 + axis) - tl.load(expected_translation + at * 3 + axis)
        moved /= tl.load(deviation + at * 4 + 1 + axis)
        off += moved * moved
    turn_x, turn_y, turn_z = turn_since(rotation + one * 9, expected_rotation + at * 9)
    of_place = placement_cost(
        off / placement_tail, placement_weight, placement_tail, turn_x, turn_y, turn_z, turn_weight
    )
    tl.store(cost + one, tl.sum(total) + of_place)


@triton.jit
def _between(grid, x, y, z, half_width, SIDE: tl.constexpr):
    """The value of a grid at points between its corners, and how it changes from corner to corner."""
    cell_x, share_x = _cell(x, half_width, SIDE)
    cell_y, share_y = _cell(y, half_width, SIDE)
    cell_z, share_z = _cell(z, half_width, SIDE)
    corner = grid + (cell_x * SIDE + cell_y) * SIDE + cell_z
    a, a_x = _along_x(corner, share_x, SIDE)
    b, b_x = _along_x(corner + 1, share_x, SIDE)
    c, c_x = _along_x(corner + SIDE, share_x, SIDE)
    d, d_x = _along_x(corner + SIDE + 1, share_x, SIDE)
    low, high = a + share_y * (c - a), b + share_y * (d - b)
    low_x, high_x = a_x + share_y * (c_x - a_x), b_x + share_y * (d_x - b_x)
    by_y = (c - a) + share_z * ((d - b) - (c - a))
    return low + share_z * (high - low), low_x + share_z * (high_x - low_x), by_y, high - low


@triton.jit
def _cell(x, half_width, SIDE: tl.constexpr):
    """The first corner of the cell that a coordinate is in, and where in the cell it is."""
    where = (x + half_width) * ((SIDE - 1) / (2 * half_width))
    where = tl.minimum(tl.maximum(where, 0.0), SIDE - 1.001)
    cell = where.to(tl.int32)
    return cell, where - cell


@triton.jit
def _along_x(corner, share, SIDE: tl.constexpr):
    low, high = tl.load(corner).to(tl.float32), tl.load(corner + SIDE * SIDE).to(tl.float32)
    return low + share * (high - low), high - low
