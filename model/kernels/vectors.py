"""Products of vectors given by their coordinates, for other kernels."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401 — Triton's interpreter looks for it in every module


@triton.jit
def dot(ax, ay, az, bx, by, bz):
    """The inner product of two vectors."""
    return ax * bx + ay * by + az * bz


@triton.jit
def squared(x, y, z):
    """The square of a vector's length."""
    return x * x + y * y + z * z
