"""Sums of a Gaussian process's kernels over its centres: what `model.correction` says in torch."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count", "many"])
def summed(
    points,  # (N, 3) float32
    centres,  # (M, 3) float32
    weights,  # (M) float32
    values,  # found: (N)
    gradients,  # found: (N, 3)
    count,
    many,
    wide,  # reach of one kernel, and its share; of the other:
    much,
    narrow,
    little,
    SLOPED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Σ w k(x, c), and if SLOPED its gradient Σ w k'(r)/r (x − c). A program works on ROWS points."""
    number = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    exists = number < count
    x = tl.load(points + number * 3, mask=exists, other=0.0)
    y = tl.load(points + number * 3 + 1, mask=exists, other=0.0)
    z = tl.load(points + number * 3 + 2, mask=exists, other=0.0)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    by_x = tl.zeros([ROWS, COLUMNS], tl.float32)
    by_y, by_z = tl.zeros([ROWS, COLUMNS], tl.float32), tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, many, COLUMNS):
        centre = first + tl.arange(0, COLUMNS)[None, :]
        known = centre < many
        off_x = x - tl.load(centres + centre * 3, mask=known, other=0.0)
        off_y = y - tl.load(centres + centre * 3 + 1, mask=known, other=0.0)
        off_z = z - tl.load(centres + centre * 3 + 2, mask=known, other=0.0)
        weight = tl.load(weights + centre, mask=known, other=0.0)
        distance = tl.sqrt(off_x * off_x + off_y * off_y + off_z * off_z)
        far, near = tl.maximum(1 - distance / wide, 0.0), tl.maximum(1 - distance / narrow, 0.0)
        cube, small_cube = far * far * far, near * near * near
        whole = much * cube * far * (5 - 4 * far) + little * small_cube * near * (5 - 4 * near)
        total += weight * whole
        if SLOPED:
            slope = much / (wide * wide) * cube + little / (narrow * narrow) * small_cube
            steep = -20 * weight * slope
            by_x += steep * off_x
            by_y += steep * off_y
            by_z += steep * off_z
    tl.store(values + number, tl.sum(total, axis=1, keep_dims=True), mask=exists)
    if SLOPED:
        tl.store(gradients + number * 3, tl.sum(by_x, axis=1, keep_dims=True), mask=exists)
        tl.store(gradients + number * 3 + 1, tl.sum(by_y, axis=1, keep_dims=True), mask=exists)
        tl.store(gradients + number * 3 + 2, tl.sum(by_z, axis=1, keep_dims=True), mask=exists)
