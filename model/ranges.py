"""The noise of a depth sensor lies along its lines of sight: neighbours in direction tell it from shape.

In space, points whose noise is large lie among points of other parts, and no neighbourhood there is a
surface any more. As seen from the sensor a point keeps its neighbours whatever its noise. Over the
directions the inverse depth of a plane is linear, and the noise of stereo and structured light is even.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.cleaning import deviation_from_quadrics
from model.neighbours import Neighbours
from model.streams import here

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

NOISE_CENTRES, NOISE_NEIGHBOURS = 1000, 24
SAME_PART = 4.0
"""Neighbours whose inverse depths differ by more deviations belong to another part."""
PASSES = 2
CHUNK = 2048
FEWEST, MOST = 12, 200
"""Neighbours that a point is smoothed over."""
LEFT = 1.5
"""Noise left by n neighbours, times √n: some are farther off and some are of other parts."""


def range_noise(points: Array, eye: Array) -> float:
    """Standard deviation of the noise of (N, 3) points seen from `eye` (3,), as a share of their range.

    That of the inverse depth about quadrics over neighbouring directions, in the usual neighbourhood.
    """
    rays = points - eye
    ranges = np.linalg.norm(rays, axis=1)
    directions = Neighbours(rays / ranges[:, None])
    picks = np.random.default_rng(0).permutation(len(points))[:NOISE_CENTRES]
    _, around = directions.nearest(directions.points[picks], min(NOISE_NEIGHBOURS, len(points)))
    seen = _seen_along(rays[picks], ranges[picks], rays[around])
    return float(deviation_from_quadrics(*(here(part) for part in seen)))


def smoothed(points: Array, picks: Indices, eye: Array, noise: float, target: float) -> tuple[Array, float]:
    """The picked ones (M,) of (N, 3) points, moved along their lines of sight onto robust local planes.

    `noise` is as of `range_noise`, `target` what it shall become: it says over how many neighbours. Also
    returns the noise that is left.
    """
    rays = points - eye
    ranges = np.linalg.norm(rays, axis=1)
    directions = Neighbours(rays / ranges[:, None])
    count = int(np.clip((LEFT * noise / target) ** 2, FEWEST, min(MOST, len(points))))
    inverse = []
    for part in np.array_split(picks, max(1, len(picks) // CHUNK)):
        _, around = directions.nearest(directions.points[part], count)
        inverse.append(_plane_at_centre(rays[part], ranges[part], rays[around], noise))
    moved = eye + rays[picks] / np.concatenate(inverse)[:, None]
    return moved, min(noise, LEFT * noise / np.sqrt(count))


def _seen_along(rays: Array, ranges: Array, around: Array) -> tuple[Array, Array, Array]:
    """Image coordinates x, y and relative inverse depths (B, K) of (B, K, 3) rays about (B, 3) ones."""
    forward = rays / ranges[:, None]
    aside = np.cross(forward, np.eye(3)[np.abs(forward).argmin(axis=1)])
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    axes = np.stack([aside, np.cross(forward, aside), forward], axis=1)  # (B, 3, 3)
    x, y, depth = np.moveaxis(np.einsum("bij,bkj->bki", axes, around), 2, 0)
    return x / depth, y / depth, ranges[:, None] / depth


def _plane_at_centre(rays: Array, ranges: Array, around: Array, noise: float) -> Array:
    """Relative inverse depths (B,) of planes through (B, K, 3) neighbours, where (B, 3) rays meet them."""
    x, y, inverse = _seen_along(rays, ranges, around)
    size = np.maximum(np.abs(x).max(axis=1), np.abs(y).max(axis=1))[:, None] + 1e-300
    basis = np.stack([np.ones_like(x), x / size, y / size], axis=2)
    off = inverse - 1
    for _ in range(PASSES):
        weights = 1 / (1 + (off / noise) ** 2) * (np.abs(off) < SAME_PART * noise)
        normal = np.einsum("bk,bki,bkj->bij", weights, basis, basis) + 1e-6 * np.eye(3)
        planes = np.linalg.solve(normal, np.einsum("bk,bki,bk->bi", weights, basis, inverse)[..., None])
        off = inverse - (basis @ planes)[..., 0]
    return np.maximum(planes[:, 0, 0], 0.1)  # of noise alone, a plane may pass behind everything
