"""Closed solids of a few kinds, from which furniture is put together: rods along paths, and slabs.

Both are lofts: rings of as many points each, joined to a skin and closed at both ends. Unit: metres.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Parts = list[Floats]
"""Triangles (T, 3, 3) of each solid."""
Random = np.random.Generator

AROUND = 40  # points of a slab's outline
SQUARE = 10.0  # power of a superellipse that is a rectangle but for its corners
LAYERS = 7  # rings from a slab's rim to the middle of its face


def loft(rings: Floats) -> Floats:
    """Triangles (T, 3, 3), outwards, of the closed solid through rings (k, m, 3)."""
    here, after = rings[:-1], rings[1:]
    here_next, after_next = np.roll(here, -1, axis=1), np.roll(after, -1, axis=1)
    sides = [np.stack([here, here_next, after_next], axis=2), np.stack([here, after_next, after], axis=2)]
    skin = [side.reshape(-1, 3, 3) for side in sides]
    triangles: Floats = np.concatenate([*skin, _lid(rings[0])[:, ::-1], _lid(rings[-1])])
    a, b, c = np.moveaxis(triangles - rings.mean(axis=(0, 1)), 1, 0)
    outwards = bool((a * np.cross(b, c)).sum() > 0)
    return triangles if outwards else triangles[:, ::-1]


def _lid(ring: Floats) -> Floats:
    middle = np.broadcast_to(ring.mean(axis=0), ring.shape)
    return np.stack([ring, np.roll(ring, -1, axis=0), middle], axis=1)


def superellipse(power: float, count: int) -> Floats:
    """Points (count, 2) of |x|ᵖ + |y|ᵖ = 1: a circle for p = 2, almost a square for 10."""
    angle = 2 * np.pi * (np.arange(count) + 0.5) / count
    both = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    reach = (np.abs(both) ** power).sum(axis=1) ** (-1 / power)
    points: Floats = both * reach[:, None]
    return points


def rod(path: Floats, across: ArrayLike, power: float = 2.0, side: ArrayLike = (1, 0, 0)) -> Floats:
    """Triangles (T, 3, 3) of a bar along a path (k, 3).

    `across` (2,) or (k, 2) are its half widths: first in the direction that is nearest to `side` at right
    angles to the path, then across that.
    """
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    first = np.asarray(side, float) - (along @ np.asarray(side, float))[:, None] * along
    flat = np.linalg.norm(first, axis=1) < 0.1
    first[flat] = np.cross(along[flat], [0.3, 0.9, 0.3])
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(along, first)
    halves = np.broadcast_to(np.asarray(across, float), (len(path), 2))
    ring = superellipse(power, 12)
    spread = (
        ring[None, :, :1] * (halves[:, :1] * first)[:, None]
        + ring[None, :, 1:] * (halves[:, 1:] * second)[:, None]
    )
    return loft(path[:, None] + spread)


def line(start: ArrayLike, end: ArrayLike, count: int = 9, bow: ArrayLike = (0, 0, 0)) -> Floats:
    """Points (count, 3) from start to end, their middle moved by `bow`."""
    t = np.linspace(0, 1, count)[:, None]
    first, last, middle = (np.asarray(point, float) for point in (start, end, bow))
    points: Floats = first * (1 - t) + last * t + 4 * t * (1 - t) * middle
    return points


def bent(corners: ArrayLike, radius: float, count: int = 5) -> Floats:
    """A path (k, 3) through corners (c, 3), rounded within `radius` of each but the ends."""
    points = np.asarray(corners, float)
    path = [points[:1]]
    for before, corner, after in zip(points[:-2], points[1:-1], points[2:], strict=True):
        ends = []
        for other in (before, after):
            away = other - corner
            length = np.linalg.norm(away)
            ends.append(corner + away * min(radius / length, 0.49))
        t = np.linspace(0, 1, count)[:, None]
        path.append((1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * corner + t**2 * ends[1])
    return np.concatenate([*path, points[-1:]])


def slab(
    outline: Floats, thickness: float, edge: float, surface: Callable[[Floats], Floats], dish: float = 0.0
) -> Floats:
    """Triangles (T, 3, 3) of a slab with rounded edges, laid on a surface.

    `outline` (m, 2) lies in the plane of the surface's two parameters; `surface` takes (N, 3), those two and
    the height above, to places (N, 3). `edge` is the radius of its edges, `dish` the depth of the hollow in
    its upper face; both and `thickness` in metres.
    """
    edge = min(edge, 0.49 * thickness, 0.45 * float(np.ptp(outline, axis=0).min()))
    middle = outline.mean(axis=0)
    inward = edge / (np.ptp(outline, axis=0) / 2)
    turn = np.linspace(0, np.pi / 2, 4)
    shrunk = np.linspace(0.0, 1.0, LAYERS)[1:]
    steps = []  # (how far the rim is drawn in, how far towards the middle, height)
    for side in (-1, 1):
        rim = [(1 - np.sin(a), 0.0, side * (thickness / 2 - edge * (1 - np.cos(a)))) for a in turn]
        sag = dish if side > 0 else 0.0
        face = [(1.0, t, side * thickness / 2 - sag * (1 - (1 - t) ** 2)) for t in 0.97 * shrunk]
        whole = [*rim[::-1], *face]
        steps += whole[::-1] if side < 0 else whole
    rings = []
    for drawn_in, towards, height in steps:
        flat = middle + (outline - middle) * (1 - drawn_in * inward) * (1 - towards)
        rings.append(np.column_stack([flat, np.full(len(flat), height)]))
    places = surface(np.concatenate(rings))
    return loft(places.reshape(len(rings), len(outline), 3))


def both(parts: Parts) -> Parts:
    """These, and their mirror images."""
    return [*parts, *(part[:, ::-1] * [-1, 1, 1] for part in parts)]


def section(rng: Random, thin: float = 0.01, thick: float = 0.028) -> tuple[float, float, float]:
    """Half widths of a bar, and the power of its section."""
    half = rng.uniform(thin, thick)
    if rng.uniform() < 0.5:
        return half, half, 2.0
    return half, half * rng.uniform(0.6, 1.6), SQUARE


def one_of(words: str, rng: Random) -> str:
    """One of the words, each as likely as it is often there."""
    return str(rng.choice(words.split()))
