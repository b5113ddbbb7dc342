"""A grid of half the spacing, bounded by the one before: what `model.surface` says in torch."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["planes", "edge"])
def halve(
    values,  # (planes + 1, edge + 1, edge + 1) float32: f, or a bound of it
    exact,  # the same size, int8: whether it is f
    finer,  # found: (2 planes, 2 edge, 2 edge) float32
    sure,  # found, the same size, int8: 1 where it is f, or will be
    wanted,  # found, the same size, int8: 1 where f is to be evaluated
    planes,
    edge,
    bend,  # how far f may be from the mean of a cell's two corners half-way between them,
    steep,  # and how much nearer to zero than the larger one
    least,  # what is bounded by no more is to be evaluated
    ROWS: tl.constexpr,
):
    """The first corner of each cell of the coarse grid, and the seven new ones next to it."""
    cell = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = cell < planes * edge * edge
    plane, line, number = cell // (edge * edge), cell % (edge * edge) // edge, cell % edge
    x, y = (edge + 1) * (edge + 1), edge + 1
    first = plane * x + line * y + number
    a = tl.load(values + first, mask=exists, other=1.0)
    b = tl.load(values + first + 1, mask=exists, other=1.0)
    c = tl.load(values + first + y, mask=exists, other=1.0)
    d = tl.load(values + first + y + 1, mask=exists, other=1.0)
    e = tl.load(values + first + x, mask=exists, other=1.0)
    f = tl.load(values + first + x + 1, mask=exists, other=1.0)
    g = tl.load(values + first + x + y, mask=exists, other=1.0)
    h = tl.load(values + first + x + y + 1, mask=exists, other=1.0)
    to_y, to_x = 2 * edge, 4 * edge * edge
    at = 2 * (plane * to_x + line * to_y + number)
    tl.store(finer + at, a, mask=exists)
    tl.store(sure + at, tl.load(exact + first, mask=exists, other=0), mask=exists)
    tl.store(wanted + at, tl.zeros([ROWS], tl.int8), mask=exists)
    _put(finer, sure, wanted, at + 1, _middle(a, b, bend, steep), least, exists)
    _put(finer, sure, wanted, at + to_y, _middle(a, c, bend, steep), least, exists)
    _put(finer, sure, wanted, at + to_x, _middle(a, e, bend, steep), least, exists)
    bend_2, steep_2 = bend * 1.4142135623730951, steep * 1.4142135623730951
    near = _either(_middle(a, d, bend_2, steep_2), _middle(b, c, bend_2, steep_2))
    _put(finer, sure, wanted, at + to_y + 1, near, least, exists)
    near = _either(_middle(a, f, bend_2, steep_2), _middle(b, e, bend_2, steep_2))
    _put(finer, sure, wanted, at + to_x + 1, near, least, exists)
    near = _either(_middle(a, g, bend_2, steep_2), _middle(c, e, bend_2, steep_2))
    _put(finer, sure, wanted, at + to_x + to_y, near, least, exists)
    bend_3, steep_3 = bend * 1.7320508075688772, steep * 1.7320508075688772
    near = _either(_middle(a, h, bend_3, steep_3), _middle(b, g, bend_3, steep_3))
    other = _either(_middle(c, f, bend_3, steep_3), _middle(d, e, bend_3, steep_3))
    _put(finer, sure, wanted, at + to_x + to_y + 1, _either(near, other), least, exists)


@triton.jit
def _middle(a, b, bend, steep):
    """Least |f| in the middle of two corners, with f's sign; 0 where that is unsure."""
    size = tl.maximum(tl.abs(a + b) / 2 - bend, tl.maximum(tl.abs(a), tl.abs(b)) - steep)
    signed = tl.where(a < 0, -size, size)
    return tl.where((a * b > 0) & (size > 0), signed, 0.0)


@triton.jit
def _either(one, other):
    """The larger of two bounds, with its sign."""
    return tl.maximum(tl.maximum(one, other), 0.0) + tl.minimum(tl.minimum(one, other), 0.0)


@triton.jit
def _put(finer, sure, wanted, at, value, least, exists):
    asked = (tl.abs(value) <= least).to(tl.int8)
    tl.store(finer + at, value, mask=exists)
    tl.store(sure + at, asked, mask=exists)
    tl.store(wanted + at, asked, mask=exists)
