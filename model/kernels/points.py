"""Neighbours by trying all, patches and voxels: what `model.neighbours` and `model.cleaning` say in torch.

Differences are of double precision, so that it does not matter where points are. Sizes change from scan to
scan: no kernel is compiled anew for one that happens to be a multiple of 16.
"""

from __future__ import annotations

import triton
import triton.language as tl

from model.kernels.vectors import dot, squared


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
        squares = squared(x[:, None] - to_x[None, :], y[:, None] - to_y[None, :], z[:, None] - to_z[None, :])
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
    found = tl.where(there, squared(x - to_x, y - to_y, z - to_z), float("inf"))
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
    along_x, along_y, along_z, variance = _least_axis(xx, xy, xz, yy, yz, zz)
    tl.store(least + row, variance / each, mask=exists)
    tl.store(axes + row * 3, along_x, mask=exists)
    tl.store(axes + row * 3 + 1, along_y, mask=exists)
    tl.store(axes + row * 3 + 2, along_z, mask=exists)


@triton.jit(do_not_specialize=["each"])
def off_quadrics(
    points,  # (N, 3) float64
    numbers,  # (B, K) int64
    left,  # found: (B) float64
    each,  # K
    ridge,  # share of K that is added to the normal equations' diagonal
    COLUMNS: tl.constexpr,
):
    """What quadrics over the plane of each patch leave of it: the sum of squares along the plane's normal."""
    patch, member = tl.program_id(0), tl.arange(0, COLUMNS)
    numbers += patch * each
    x, y, z = 0.0 * tl.load(points), 0.0 * tl.load(points), 0.0 * tl.load(points)
    for first in range(0, each, COLUMNS):
        px, py, pz, exists = _members(points, numbers, first + member, each, 0.0, 0.0, 0.0)
        x, y, z = x + tl.sum(px), y + tl.sum(py), z + tl.sum(pz)
    x, y, z = x / each, y / each, z / each
    xx, xy, xz, yy, yz, zz = 0.0 * x, 0.0 * x, 0.0 * x, 0.0 * x, 0.0 * x, 0.0 * x
    for first in range(0, each, COLUMNS):
        px, py, pz, exists = _members(points, numbers, first + member, each, x, y, z)
        xx, xy, xz = xx + tl.sum(px * px), xy + tl.sum(px * py), xz + tl.sum(px * pz)
        yy, yz, zz = yy + tl.sum(py * py), yz + tl.sum(py * pz), zz + tl.sum(pz * pz)
    nx, ny, nz, _variance = _least_axis(xx, xy, xz, yy, yz, zz)
    ax, ay, az, bx, by, bz = _aside(nx, ny, nz)
    reach = 0.0 * x + 1e-300
    for first in range(0, each, COLUMNS):
        px, py, pz, exists = _members(points, numbers, first + member, each, x, y, z)
        u, v = dot(px, py, pz, ax, ay, az), dot(px, py, pz, bx, by, bz)
        reach = tl.maximum(reach, tl.max(tl.maximum(tl.abs(u), tl.abs(v))))
    row, column = tl.arange(0, 8)[:, None], tl.arange(0, 8)[None, :]
    sums = tl.where((row == column) & (row < 6), ridge * each + 0.0 * x, 0.0 * x)
    for first in range(0, each, COLUMNS):
        px, py, pz, exists = _members(points, numbers, first + member, each, x, y, z)
        u, v = dot(px, py, pz, ax, ay, az) / reach, dot(px, py, pz, bx, by, bz) / reach
        w = dot(px, py, pz, nx, ny, nz)
        tall, wide = _terms(u, v, w, exists, row), _terms(u, v, w, exists, column)
        sums += tl.sum(tall * wide, 2)
    for term in tl.static_range(6):  # elimination of the quadric's terms leaves what they do not explain
        pivots = tl.sum(tl.where(row == term, sums, 0.0), 0)
        pivot = tl.sum(tl.where(tl.arange(0, 8) == term, pivots, 0.0))
        factors = tl.sum(tl.where(column == term, sums, 0.0), 1) / pivot
        sums -= tl.where(row > term, factors[:, None] * pivots[None, :], 0.0)
    rest = tl.sum(tl.where((row == 6) & (column == 6), sums, 0.0))
    tl.store(left + patch, tl.maximum(rest, 0.0))


@triton.jit(do_not_specialize=["count"])
def voxels(
    points,  # (N, 3) float64
    box,  # (2, 3) float64: their lower and upper corner
    numbers,  # found: (N) int64
    count,  # N
    cell,  # (1) float64: the edge of a voxel
    ROWS: tl.constexpr,
):
    """The number of the voxel that each point lies in."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists, edge = row < count, tl.load(cell)
    x, y, z = _point(points, row, exists)
    low_x, low_y, low_z = tl.load(box), tl.load(box + 1), tl.load(box + 2)
    many_y = ((tl.load(box + 4) - low_y) / edge).to(tl.int64) + 1
    many_z = ((tl.load(box + 5) - low_z) / edge).to(tl.int64) + 1
    x, y, z = ((x - low_x) / edge).to(tl.int64), ((y - low_y) / edge).to(tl.int64), (z - low_z) / edge
    tl.store(numbers + row, (x * many_y + y) * many_z + z.to(tl.int64), mask=exists)


@triton.jit(do_not_specialize=["count"])
def thin(
    points,  # (N, 3) float64
    numbers,  # (N) int64: voxels, ascending
    order,  # (N) int64: the point that is in each
    chosen,  # found: (N) uint8, 1 for the point of a voxel that is nearest to its points' mean
    count,  # N
    cell,  # (1) float64: the edge of a voxel
    ROWS: tl.constexpr,
):
    """One point of each voxel."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = row < count
    voxel = tl.load(numbers + row, mask=exists, other=-1)
    begins = exists & (voxel != tl.load(numbers + row - 1, mask=exists & (row > 0), other=-1))
    none = _zeros(ROWS)
    x, y, z, filled = none, none, none, none
    at, inside = row, begins
    while tl.max(inside.to(tl.int32), 0) > 0:
        px, py, pz = _point(points, tl.load(order + at, mask=inside, other=0), inside)
        x, y, z, filled = x + px, y + py, z + pz, filled + tl.where(inside, 1.0, 0.0)
        at += 1
        inside = inside & (tl.load(numbers + at, mask=inside & (at < count), other=-1) == voxel)
    filled = tl.maximum(filled, 1.0)
    x, y, z = x / filled, y / filled, z / filled
    best, least, first = row.to(tl.int64), none + float("inf"), none
    at, inside = row, begins
    while tl.max(inside.to(tl.int32), 0) > 0:
        number = tl.load(order + at, mask=inside, other=0)
        px, py, pz = _point(points, number, inside)
        off = tl.floor(1e6 * tl.sqrt(squared(px - x, py - y, pz - z)) / tl.load(cell) + 0.5)
        nearer = inside & ((off < least) | ((off == least) & (px < first)))
        best = tl.where(nearer, number, best)
        least, first = tl.where(nearer, off, least), tl.where(nearer, px, first)
        at += 1
        inside = inside & (tl.load(numbers + at, mask=inside & (at < count), other=-1) == voxel)
    tl.store(chosen + best, tl.full([ROWS], 1, tl.uint8), mask=begins)


@triton.jit
def _members(points, numbers, member, each, x, y, z):
    """Points of a patch from (x, y, z) on, 0 where there are no more, and where there are."""
    exists = member < each
    px, py, pz = _point(points, tl.load(numbers + member, mask=exists, other=0), exists)
    return tl.where(exists, px - x, 0.0), tl.where(exists, py - y, 0.0), tl.where(exists, pz - z, 0.0), exists


@triton.jit
def _terms(u, v, w, exists, which):
    """Of 1, u, v, u², uv, v² and w the ones that are asked for: (…, members)."""
    which, u, v, w = which[:, :, None], u[None, None, :], v[None, None, :], w[None, None, :]
    linear = tl.where(which == 0, 1.0, tl.where(which == 1, u, v))
    squares = tl.where(which == 3, u * u, tl.where(which == 4, u * v, v * v))
    terms = tl.where(which < 3, linear, tl.where(which < 6, squares, tl.where(which == 6, w, 0.0)))
    return tl.where(exists[None, None, :], terms, 0.0)


@triton.jit
def _aside(x, y, z):
    """Two vectors of the same length that are across a unit vector and across each other."""
    first = (tl.abs(x) <= tl.abs(y)) & (tl.abs(x) <= tl.abs(z))  # across the axis that it lies least along
    second = tl.abs(y) <= tl.abs(z)
    ax = tl.where(first, 0.0, tl.where(second, -z, y))
    ay = tl.where(first, z, tl.where(second, 0.0, -x))
    az = tl.where(first, -y, tl.where(second, x, 0.0))
    return ax, ay, az, y * az - z * ay, z * ax - x * az, x * ay - y * ax


@triton.jit
def _least_axis(xx, xy, xz, yy, yz, zz):
    """The unit eigenvector to the least eigenvalue of a symmetric matrix, and that, by Jacobi's rotations."""
    none, one = 0.0 * xx, 0.0 * xx + 1
    a, b, c = one, none, none  # each axis of the frame, as it is turned
    d, e, f = none, one, none
    g, h, i = none, none, one
    for _ in tl.static_range(6):
        cosine, sine, change = _turn(xx, yy, xy)
        xx, yy, xy = xx - change, yy + change, none
        xz, yz = _turned(xz, yz, cosine, sine)
        a, d = _turned(a, d, cosine, sine)
        b, e = _turned(b, e, cosine, sine)
        c, f = _turned(c, f, cosine, sine)
        cosine, sine, change = _turn(xx, zz, xz)
        xx, zz, xz = xx - change, zz + change, none
        xy, yz = _turned(xy, yz, cosine, sine)
        a, g = _turned(a, g, cosine, sine)
        b, h = _turned(b, h, cosine, sine)
        c, i = _turned(c, i, cosine, sine)
        cosine, sine, change = _turn(yy, zz, yz)
        yy, zz, yz = yy - change, zz + change, none
        xy, xz = _turned(xy, xz, cosine, sine)
        d, g = _turned(d, g, cosine, sine)
        e, h = _turned(e, h, cosine, sine)
        f, i = _turned(f, i, cosine, sine)
    first, second = (xx <= yy) & (xx <= zz), yy <= zz
    return (
        tl.where(first, a, tl.where(second, d, g)),
        tl.where(first, b, tl.where(second, e, h)),
        tl.where(first, c, tl.where(second, f, i)),
        tl.where(first, xx, tl.where(second, yy, zz)),
    )


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
def _turned(p, q, cosine, sine):
    """Two coordinates after that turn."""
    return cosine * p - sine * q, sine * p + cosine * q


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
