"""Neighbours of points by trying all, and axes of patches: what `model.neighbours` says in torch.

Differences are of double precision, so that it does not matter where points are. Sizes change from scan to
scan: no kernel is compiled anew for one that happens to be a multiple of 16.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count", "size", "groups"])
def least_of_groups(
    points,  # (M, 3) float64; in group g are those numbered g, g + G, g + 2 G …
    others,  # (N, 3) float64
    least,  # found: (N, G) float32
    count,  # N
    size,  # M
    groups,  # G
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The square of the least distance from each of the others to a point of each group."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    exists = row < count
    x, y, z = _point(others, row, exists)
    nearest = tl.full([ROWS, COLUMNS], float("inf"), tl.float64)
    for first in range(0, size, groups):
        at = first + column
        there = (column < groups) & (at < size)
        to_x, to_y, to_z = _point(points, at, there)
        squares = _squares(x[:, None], y[:, None], z[:, None], to_x[None, :], to_y[None, :], to_z[None, :])
        nearest = tl.minimum(nearest, tl.where(there[None, :], squares, float("inf")))
    place = least + row[:, None] * groups + column[None, :]
    tl.store(place, nearest.to(tl.float32), mask=exists[:, None] & (column < groups)[None, :])


@triton.jit(do_not_specialize=["size", "groups", "chosen", "width"])
def within_groups(
    points,  # (M, 3) float64
    others,  # (N, 3) float64
    numbers,  # (N, C) int64: groups
    squares,  # found: (N, C * W) float32
    size,  # M
    groups,  # G
    chosen,  # C
    width,  # W: most points of a group
    PLACES: tl.constexpr,
):
    """The squares of the distances from each of the others to points of some groups, inf where none is."""
    row, place = tl.program_id(0), tl.program_id(1) * PLACES + tl.arange(0, PLACES)
    wanted = place < chosen * width
    group = tl.load(numbers + row * chosen + place // width, mask=wanted, other=0)
    at = group + groups * (place % width)
    there = wanted & (at < size)
    x, y, z = tl.load(others + row * 3), tl.load(others + row * 3 + 1), tl.load(others + row * 3 + 2)
    to_x, to_y, to_z = _point(points, at, there)
    found = tl.where(there, _squares(x, y, z, to_x, to_y, to_z), float("inf"))
    tl.store(squares + row * chosen * width + place, found.to(tl.float32), mask=wanted)


@triton.jit(do_not_specialize=["count", "each"])
def least_axes(
    points,  # (N, 3) float64
    numbers,  # (B, K) int64
    axes,  # found: (B, 3) float64
    least,  # found: (B) float64
    whole,  # found: (B) float64
    count,  # B
    each,  # K
    ROWS: tl.constexpr,
):
    """Along which axis points of a patch vary least, by Jacobi's rotations, how much, and along all three."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = row < count
    middle_x, middle_y, middle_z = _middle(points, numbers + row * each, exists, each, ROWS)
    xx, xy, xz = _zeros(ROWS), _zeros(ROWS), _zeros(ROWS)
    yy, yz, zz = _zeros(ROWS), _zeros(ROWS), _zeros(ROWS)
    for one in range(each):
        x, y, z = _point(points, tl.load(numbers + row * each + one, mask=exists, other=0), exists)
        x, y, z = x - middle_x, y - middle_y, z - middle_z
        xx, xy, xz = xx + x * x, xy + x * y, xz + x * z
        yy, yz, zz = yy + y * y, yz + y * z, zz + z * z
    tl.store(whole + row, (xx + yy + zz) / each, mask=exists)
    a, b, c = _zeros(ROWS) + 1, _zeros(ROWS), _zeros(ROWS)  # each axis of the frame, as it is turned
    d, e, f = _zeros(ROWS), _zeros(ROWS) + 1, _zeros(ROWS)
    g, h, i = _zeros(ROWS), _zeros(ROWS), _zeros(ROWS) + 1
    for _ in tl.static_range(6):
        cosine, sine, change = _turn(xx, yy, xy)
        xx, yy, xy = xx - change, yy + change, _zeros(ROWS)
        xz, yz = cosine * xz - sine * yz, sine * xz + cosine * yz
        a, d = cosine * a - sine * d, sine * a + cosine * d
        b, e = cosine * b - sine * e, sine * b + cosine * e
        c, f = cosine * c - sine * f, sine * c + cosine * f
        cosine, sine, change = _turn(xx, zz, xz)
        xx, zz, xz = xx - change, zz + change, _zeros(ROWS)
        xy, yz = cosine * xy - sine * yz, sine * xy + cosine * yz
        a, g = cosine * a - sine * g, sine * a + cosine * g
        b, h = cosine * b - sine * h, sine * b + cosine * h
        c, i = cosine * c - sine * i, sine * c + cosine * i
        cosine, sine, change = _turn(yy, zz, yz)
        yy, zz, yz = yy - change, zz + change, _zeros(ROWS)
        xy, xz = cosine * xy - sine * xz, sine * xy + cosine * xz
        d, g = cosine * d - sine * g, sine * d + cosine * g
        e, h = cosine * e - sine * h, sine * e + cosine * h
        f, i = cosine * f - sine * i, sine * f + cosine * i
    first, second = (xx <= yy) & (xx <= zz), yy <= zz
    tl.store(least + row, tl.where(first, xx, tl.where(second, yy, zz)) / each, mask=exists)
    tl.store(axes + row * 3, tl.where(first, a, tl.where(second, d, g)), mask=exists)
    tl.store(axes + row * 3 + 1, tl.where(first, b, tl.where(second, e, h)), mask=exists)
    tl.store(axes + row * 3 + 2, tl.where(first, c, tl.where(second, f, i)), mask=exists)


@triton.jit
def _turn(pp, qq, pq):
    """Cosine and sine of the turn that makes `pq` zero, and by how much it changes `pp` and `qq`."""
    none = pq == 0
    steep = (qq - pp) / tl.where(none, 1.0, 2 * pq)
    tangent = tl.where(steep < 0, -1.0, 1.0) / (tl.abs(steep) + tl.sqrt(steep * steep + 1))
    tangent = tl.where(none, 0.0, tangent)
    cosine = 1 / tl.sqrt(tangent * tangent + 1)
    return cosine, tangent * cosine, tangent * pq


@triton.jit
def _middle(points, numbers, exists, each, ROWS: tl.constexpr):
    x, y, z = _zeros(ROWS), _zeros(ROWS), _zeros(ROWS)
    for one in range(each):
        to_x, to_y, to_z = _point(points, tl.load(numbers + one, mask=exists, other=0), exists)
        x, y, z = x + to_x, y + to_y, z + to_z
    return x / each, y / each, z / each


@triton.jit
def _zeros(ROWS: tl.constexpr):
    return tl.zeros([ROWS], tl.float64)


@triton.jit
def _point(points, number, exists):
    x = tl.load(points + number * 3, mask=exists, other=0.0)
    y = tl.load(points + number * 3 + 1, mask=exists, other=0.0)
    z = tl.load(points + number * 3 + 2, mask=exists, other=0.0)
    return x, y, z


@triton.jit
def _squares(x, y, z, to_x, to_y, to_z):
    x, y, z = x - to_x, y - to_y, z - to_z
    return x * x + y * y + z * z
