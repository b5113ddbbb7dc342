"""How far points are from a mesh: what `model.proximity` says in torch.

All in double precision, of a mesh that is scaled to size 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from model.kernels.vectors import dot, squared


@triton.jit(do_not_specialize=["count"])
def place(
    vertices,  # (V, 3) float32 or float64
    faces,  # (F, 3) int32
    frame,  # (4,) float64: the lower corner of the mesh, and its size
    corners,  # found: (F, 9) float64
    code,  # found: (F) int32
    count,  # F
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The corners of faces, scaled to size 1, and where their middles are along Morton's curve."""
    face = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists, along = face < count, tl.zeros([ROWS], tl.int32)
    a, b, c = (
        _corner(faces, face, 0, exists),
        _corner(faces, face, 1, exists),
        _corner(faces, face, 2, exists),
    )
    size = tl.load(frame + 3)
    for axis in tl.static_range(3):
        low = tl.load(frame + axis)
        x = (tl.load(vertices + a * 3 + axis, mask=exists, other=0.0).to(tl.float64) - low) / size
        y = (tl.load(vertices + b * 3 + axis, mask=exists, other=0.0).to(tl.float64) - low) / size
        z = (tl.load(vertices + c * 3 + axis, mask=exists, other=0.0).to(tl.float64) - low) / size
        tl.store(corners + face * 9 + axis, x, mask=exists)
        tl.store(corners + face * 9 + 3 + axis, y, mask=exists)
        tl.store(corners + face * 9 + 6 + axis, z, mask=exists)
        cell = tl.minimum(((x + y + z) / 3 * (1 << BITS)).to(tl.int32), (1 << BITS) - 1)
        for bit in tl.static_range(BITS):
            along |= ((cell >> bit) & 1) << (3 * bit + axis)
    tl.store(code + face, along, mask=exists)


@triton.jit
def bound(
    corners,  # (F, 9)
    order,  # (G * WIDTH) int64: faces, in groups of neighbours
    balls,  # found: (G, 4): the middle of one of a group's faces, and how far from it the group reaches
    WIDTH: tl.constexpr,
):
    """Balls that hold groups of faces."""
    group, member = tl.program_id(0), tl.arange(0, WIDTH)
    at = corners + tl.load(order + group * WIDTH + member) * 9
    ax, ay, az, bx, by, bz, cx, cy, cz = _triangle(at)
    one = corners + tl.load(order + group * WIDTH + WIDTH // 2) * 9
    x, y, z = _mean(one), _mean(one + 1), _mean(one + 2)
    reach = tl.maximum(squared(ax - x, ay - y, az - z), squared(bx - x, by - y, bz - z))
    reach = tl.sqrt(tl.max(tl.maximum(reach, squared(cx - x, cy - y, cz - z)), 0))
    tl.store(balls + group * 4, x)
    tl.store(balls + group * 4 + 1, y)
    tl.store(balls + group * 4 + 2, z)
    tl.store(balls + group * 4 + 3, reach)


@triton.jit(do_not_specialize=["many"])
def search(
    points,  # (N, 3), scaled as the corners
    corners,  # (F, 9)
    order,  # (S * WIDTH * WIDTH): faces, in groups of WIDTH, WIDTH of which are again one
    balls,  # (S * WIDTH, 4) of groups
    larger,  # (S, 4) of groups of groups
    squares,  # found: (N) of the distances
    nearest,  # found: (N) int64 faces
    where,  # found: (N, 3) on them
    many,  # S
    SLACK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The face nearest to a point. Groups are passed over that are too far off as a whole."""
    row, member = tl.program_id(0), tl.arange(0, WIDTH)
    x, y, z = tl.load(points + row * 3), tl.load(points + row * 3 + 1), tl.load(points + row * 3 + 2)
    off = tl.full([WIDTH], float("inf"), tl.float64)
    for first in range(0, many * WIDTH, WIDTH):  # the centres of their balls are on the mesh
        ball = balls + (first + member) * 4
        off = tl.minimum(off, squared(x - tl.load(ball), y - tl.load(ball + 1), z - tl.load(ball + 2)))
    least = tl.sqrt(tl.min(off, 0)) * (1 + SLACK) + SLACK  # with what is rounded
    least, best = least * least, tl.load(order)
    for large in range(many):
        if _reached(larger + large * 4, x, y, z, least):
            for group in range(large * WIDTH, (large + 1) * WIDTH):
                if _reached(balls + group * 4, x, y, z, least):
                    face = tl.load(order + group * WIDTH + member)
                    ax, ay, az, bx, by, bz, cx, cy, cz = _triangle(corners + face * 9)
                    off, _, _, _ = _nearest_on_triangle(x, y, z, ax, ay, az, bx, by, bz, cx, cy, cz)
                    nearer = tl.min(off, 0)
                    if nearer < least:
                        least, best = nearer, tl.load(order + group * WIDTH + tl.argmin(off, 0))
    ax, ay, az, bx, by, bz, cx, cy, cz = _triangle(corners + best * 9)
    at_off, at_x, at_y, at_z = _nearest_on_triangle(x, y, z, ax, ay, az, bx, by, bz, cx, cy, cz)
    tl.store(squares + row, at_off)
    tl.store(nearest + row, best)
    tl.store(where + row * 3, at_x)
    tl.store(where + row * 3 + 1, at_y)
    tl.store(where + row * 3 + 2, at_z)


@triton.jit
def _reached(ball, x, y, z, squares):
    """Whether a ball is as near to a point as the square of a distance says."""
    near = tl.sqrt(squares) + tl.load(ball + 3)
    return squared(x - tl.load(ball), y - tl.load(ball + 1), z - tl.load(ball + 2)) <= near * near


@triton.jit
def _nearest_on_triangle(x, y, z, ax, ay, az, bx, by, bz, cx, cy, cz):
    """The square of the distance to the nearest point of a triangle, and that point.

    It is the projection where that is inside, else the nearest one of the three edges.
    """
    px, py, pz = x - ax, y - ay, z - az  # all from the first corner on
    bx, by, bz = bx - ax, by - ay, bz - az
    cx, cy, cz = cx - ax, cy - ay, cz - az
    share = _share(dot(px, py, pz, bx, by, bz), dot(bx, by, bz, bx, by, bz))
    at_x, at_y, at_z = share * bx, share * by, share * bz
    off = squared(px - at_x, py - at_y, pz - at_z)
    share = _share(dot(px, py, pz, cx, cy, cz), dot(cx, cy, cz, cx, cy, cz))
    other = squared(px - share * cx, py - share * cy, pz - share * cz)
    nearer = other < off
    at_x = tl.where(nearer, share * cx, at_x)
    at_y = tl.where(nearer, share * cy, at_y)
    at_z = tl.where(nearer, share * cz, at_z)
    off = tl.minimum(off, other)
    ex, ey, ez = cx - bx, cy - by, cz - bz
    share = _share(dot(px - bx, py - by, pz - bz, ex, ey, ez), dot(ex, ey, ez, ex, ey, ez))
    ex, ey, ez = bx + share * ex, by + share * ey, bz + share * ez
    other = squared(px - ex, py - ey, pz - ez)
    nearer = other < off
    at_x, at_y, at_z = tl.where(nearer, ex, at_x), tl.where(nearer, ey, at_y), tl.where(nearer, ez, at_z)
    nx, ny, nz = by * cz - bz * cy, bz * cx - bx * cz, bx * cy - by * cx
    rx, ry, rz = py * nz - pz * ny, pz * nx - px * nz, px * ny - py * nx
    area, of_b, of_c = (
        dot(nx, ny, nz, nx, ny, nz),
        -dot(cx, cy, cz, rx, ry, rz),
        dot(bx, by, bz, rx, ry, rz),
    )
    inside = (of_b > 0) & (of_c > 0) & (of_b + of_c < area)  # barycentric coordinates, times the area
    of_b, of_c = of_b / tl.where(inside, area, 1.0), of_c / tl.where(inside, area, 1.0)
    at_x = tl.where(inside, of_b * bx + of_c * cx, at_x)
    at_y = tl.where(inside, of_b * by + of_c * cy, at_y)
    at_z = tl.where(inside, of_b * bz + of_c * cz, at_z)
    return squared(px - at_x, py - at_y, pz - at_z), ax + at_x, ay + at_y, az + at_z


@triton.jit
def _share(along, whole):
    """How far along an edge the nearest point is, from 0 to 1."""
    return tl.minimum(tl.maximum(along / tl.where(whole > 0, whole, 1.0), 0.0), 1.0)


@triton.jit
def _corner(faces, face, number: tl.constexpr, exists):
    return tl.load(faces + face * 3 + number, mask=exists, other=0)


@triton.jit
def _mean(corners):
    return (tl.load(corners) + tl.load(corners + 3) + tl.load(corners + 6)) / 3


@triton.jit
def _triangle(at):
    return (
        tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3), tl.load(at + 4), tl.load(at + 5),
        tl.load(at + 6), tl.load(at + 7), tl.load(at + 8),
    )  # fmt: skip
