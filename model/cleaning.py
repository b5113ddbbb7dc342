"""What a scan holds besides the object: stray points, noise, the floor it stands on. Points in, masks out.

Works on arrays in any frame and unit and knows no sensor. The order is: `outliers`, then `local_noise` (which
needs the points as they were measured), then `standing_on_plane`, then `thinned`. What each point's
neighbours tell is computed where the thread works (`model.streams`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError
from torch import Tensor

from model.connected import connected_parts
from model.neighbours import Neighbours, least_axes

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Indices = NDArray[np.int64]
Links = tuple[Tensor, Tensor]
"""Distances and numbers (N, K) of each point's nearest ones."""

SPACING_NEIGHBOURS = 8
STRAY_LOCALLY, STRAY_ANYWHERE = 3.0, 10.0
"""A point is stray whose distance to its neighbours is this many times theirs, or times the scan's median."""

SUM_OF = 0.618, 0.382  # of a point's coordinates, which hardly any two points have in common

SMALL_CLUSTER, FAR_CLUSTER, FAR_FOR_ITS_SIZE = 0.02, 0.2, 2.0
"""A cluster goes that has less than this share of the points, and less than this share times its distance
from all larger ones in diagonals of the largest, if that is at least 0.2, and 2 diagonals of its own."""

CLUSTERED_POINTS = 20_000  # clusters are found among so many, the others follow the nearest of them
LINKS, LINK_SPACINGS = 16, 3.0
"""Points link with those of their nearest that are within this many spacings of either."""

CELL_ACCURACY = 0.02  # how near the number of filled voxels comes to the one asked for

NOISE_CENTRES = 1000
NOISE_RADIUS = 5.5
"""Radius of a neighbourhood in standard deviations of the noise that is found in it; in a smaller one the
nearest points would be chosen by their noise."""
NOISE_QUANTILE, NORMAL_QUANTILE = 0.35, -0.385
"""Which of the neighbourhoods' variances counts, and the standard normal distribution's value there."""
RIDGE = 1e-12  # added to a quadric's normal equations: points in a row say nothing of the terms across

PLANE_POINTS, PLANE_TRIES = 6000, 300
PLANE_TILT = 15.0  # degrees off `up`
PLANE_ABOVE = 0.9  # least share of the points off a plane that must be above it
PLANE_FOOTPRINT = 0.7  # least share of those that must be over the plane's own extent
PLANE_LOWEST = 0.99  # where so many are above it, and `up` is known, it is the floor whatever its extent
PLANE_SHARE = 0.05  # least share of all points, weighed by area, that a plane must hold
PLANE_TOLERANCE = 0.006  # of the scan's diagonal: floors are not flat, and sensors bend them

JOINED_FOOTPRINT, JOINED_GAP = 0.5, 0.04
"""A cluster belongs to the object if this share of it is over or under the object, or if the gap between them
is at most this share of the object's diagonal."""
SEEDS = 4  # so many of the largest clusters are tried as the object's first


def _diagonal(points: Array) -> float:
    low, high = corners(points)
    return float(np.linalg.norm(high - low))


def corners(points: Array) -> tuple[Array, Array]:
    """Lower and upper corner (3,) of the box of (N, 3) points, by rows, along which numpy is faster."""
    rows = np.ascontiguousarray(points.T)
    return rows.min(axis=1), rows.max(axis=1)


# Stray points


def outliers(points: Array) -> Mask:
    """Which of (N, 3) points belong to no surface, (N,).

    Stray are points that stand alone and small clusters that stand far off. Alone: the mean distance to the 8
    nearest is 3 times what it is for these, or 10 times the scan's median. Density may vary by 10² within a
    scan, and does not matter where it varies smoothly; points in a row, as on a leg one pixel wide, are as
    far from each other as their neighbours are, and stay. Small and far: farther from every larger cluster
    than twice its own size and than a fifth of the largest one's, and with less than 2 % of the points for a
    distance of one such size, 1 % for half of it. What is as long as its gap is wide, a foot below its hidden
    leg or an armrest before the backrest, stays.
    """
    distinct, which = _distinct(points)
    points = points[distinct]
    if len(points) <= SPACING_NEIGHBOURS:
        return np.zeros(len(which), dtype=bool)
    links = Neighbours(points).nearest_here(points, min(LINKS + 1, len(points)))
    distances, neighbours = (part[:, 1 : SPACING_NEIGHBOURS + 1] for part in links)
    spacing = distances.mean(dim=1)
    most = torch.minimum(STRAY_LOCALLY * _median(spacing[neighbours]), STRAY_ANYWHERE * _median(spacing))
    stray = (spacing > most).cpu().numpy()
    kept = np.flatnonzero(~stray)
    stray[kept] = _small_and_far(points[kept], None if stray.any() else links)
    return np.asarray(stray[which])


def _median(values: Tensor) -> Tensor:
    """Along the last axis; of an even number the mean of the middle two."""
    count = values.shape[-1]
    ordered = values.sort(dim=-1).values
    return (ordered[..., (count - 1) // 2] + ordered[..., count // 2]) / 2


def _distinct(points: Array) -> tuple[Indices, Indices]:
    """The numbers of (N, 3) points that differ, and which of these each point (N,) is.

    Most scans have no point twice. Then a sum of the coordinates tells, which equal points have in common.
    """
    x, y, z = points.T
    if (np.diff(np.sort(x + SUM_OF[0] * y + SUM_OF[1] * z)) > 0).all():
        return np.arange(len(points)), np.arange(len(points))
    return np.unique(points, axis=0, return_index=True, return_inverse=True)[1:]


def _small_and_far(points: Array, links: Links | None) -> Mask:
    """Which points (N,) are in clusters that the rule of `outliers` takes away, largest clusters first."""
    some, labels = _clustered(points, links)
    counts = np.bincount(labels)
    order = np.argsort(-counts, kind="stable")
    spread, of_spread = points[some], labels[some]
    size = _diagonal(spread[of_spread == order[0]])
    kept = np.isin(of_spread, np.flatnonzero(counts >= SMALL_CLUSTER * len(points)))
    kept |= of_spread == order[0]
    away = []
    for label in order[~np.isin(order, of_spread[kept])]:
        one = of_spread == label
        if _is_far(spread[one], spread[kept], counts[label] / len(points), size):
            away.append(label)
        else:
            kept |= one
    return np.isin(labels, away)


def _is_far(cluster: Array, larger: Array, share: float, size: float) -> bool:
    """Whether a cluster of this share of all points is too far from all larger ones, for that and its size.

    `size` is that of the largest. Most clusters are near enough for their first point to show it.
    """
    far = max(FAR_CLUSTER * size, FAR_FOR_ITS_SIZE * _diagonal(cluster))
    if np.linalg.norm(larger - cluster[0], axis=1).min() <= far:
        return False
    gap = Neighbours(larger).gap(cluster)
    return bool(gap > far and share < SMALL_CLUSTER * gap / size)


def clusters(points: Array) -> Indices:
    """Labels (N,) of the connected parts of (N, 3) points, from 0.

    Two points are connected that are among each other's 16 nearest and within 3 spacings of each other, where
    the spacing is local: far parts of a scan, which are sparse, hold together as near ones do.
    """
    return _clustered(points)[1]


def _clustered(points: Array, links: Links | None = None) -> tuple[Indices, Indices]:
    """Points (K,) in whose graph the clusters are found, evenly spread, and the labels (N,) of all.

    `links` are each point's nearest ones, itself the first, if they are known already.
    """
    cell = thinning_cell(points, CLUSTERED_POINTS) or 1e-5 * _diagonal(points)  # no two the same
    some = thinned(points, cell)
    around = Neighbours(points[some])
    if links is None or len(some) < len(points):
        links = around.nearest_here(points[some], min(LINKS + 1, len(some)))
    distances, neighbours = links
    spacing = distances[:, min(4, distances.shape[1] - 1)]
    linked = distances <= LINK_SPACINGS * torch.maximum(spacing[:, None], spacing[neighbours])
    starts, _ = linked.nonzero(as_tuple=True)
    labels = connected_parts(starts, neighbours[linked], len(some)).cpu().numpy()
    others = np.setdiff1d(np.arange(len(points)), some, assume_unique=True)
    of_all = np.empty(len(points), np.int64)
    of_all[some] = labels
    if len(others):
        of_all[others] = labels[around.nearest(points[others])[1]]
    return some, of_all


# Thinning


def thinned(points: Array, cell: float) -> Indices:
    """Indices of one of (N, 3) points in each voxel of edge `cell`: the one nearest to the mean of its voxel.

    Ascending. Near and far parts of a scan weigh alike after it. Noise within a cell is mostly gone after
    it: measure it before. All points stay where `cell` is 0.
    """
    if cell <= 0:
        return np.arange(len(points))
    _, voxel, count = np.unique(_voxels(points, cell), return_inverse=True, return_counts=True)
    first = count[voxel] == 1  # of its voxel
    shared = np.flatnonzero(~first)
    mean = np.stack([np.bincount(voxel, axis) for axis in points.T], axis=1) / count[:, None]
    # The only two points of a voxel are equally near: neither the unit nor the order of points shall choose.
    distance = np.round(np.linalg.norm(points[shared] - mean[voxel[shared]], axis=1) / cell, 6)
    order = shared[np.lexsort((points[shared, 0], distance, voxel[shared]))]
    first[order] = np.diff(voxel[order], prepend=-1) > 0
    return np.flatnonzero(first)


def thinning_cell(points: Array, count: int) -> float:
    """The edge of voxels of which (N, 3) points fill about `count`; 0 where there are no more points."""
    if len(points) <= count:
        return 0.0
    high = _diagonal(points)
    low = 1e-9 * high  # one stray point may be far away
    for _ in range(30):
        middle = float(np.sqrt(low * high))
        filled = len(np.unique(_voxels(points, middle)))
        if abs(filled - count) < CELL_ACCURACY * count:
            return middle
        low, high = (middle, high) if filled > count else (low, middle)
    return high


def _voxels(points: Array, cell: float) -> Indices:
    """The number (N,) of the voxel that each point lies in."""
    low, high = corners(points)
    size = np.floor((high - low) / cell).astype(np.int64) + 1
    steps = np.floor((points - low) / cell).astype(np.int64)
    return np.asarray((steps[:, 0] * size[1] + steps[:, 1]) * size[2] + steps[:, 2])


# Noise


def local_noise(points: Array, neighbours: int = 24) -> float:
    """Standard deviation of the noise of (N, 3) points along the surface normal, in their unit.

    Around some of the points a quadric is fitted to the nearest ones, at least `neighbours` of them and as
    many as reach 5.5 deviations far. The variances of what remains, over their degrees of freedom, are the
    noise's and more at edges and thin parts, so a quantile somewhat below their median counts, divided by
    what that quantile is of pure noise. Curvature, edges and thin parts are thus not taken for noise while
    they are the fewer. After thinning to a half or third it still holds within about a third, upwards. Steps
    of a sensor that rounds its depths count as noise if neighbourhoods span several: if not, give more.
    """
    cloud = Neighbours(points)
    picks = np.random.default_rng(0).permutation(len(points))[:NOISE_CENTRES]
    while True:
        distances, around = cloud.nearest_here(points[picks], min(neighbours, len(points)))
        noise = _usual_deviation(points, around)
        if _median(distances[:, -1]) >= NOISE_RADIUS * noise or 2 * neighbours > min(len(points), 800):
            return noise
        neighbours *= 2


def _usual_deviation(points: Array, around: Tensor) -> float:
    """Standard deviation of (N, 3) points from quadrics through those of a row of (B, K), without edges."""
    forward = least_axes(points, around)[0]
    aside = np.cross(forward, np.eye(3)[np.abs(forward).argmin(axis=1)])
    axes = np.stack([aside, np.cross(forward, aside), forward], axis=2)  # (B, 3, 3)
    patches = torch.from_numpy(points).to(around.device)[around]
    centred = patches - patches.mean(dim=1, keepdim=True)
    x, y, z = (centred @ torch.from_numpy(axes).to(around.device)).unbind(dim=2)
    return deviation_from_quadrics(x, y, z)


def deviation_from_quadrics(x: Tensor, y: Tensor, z: Tensor) -> float:
    """Standard deviation of z from quadrics over (x, y), (B, K) each, in the patches without edges."""
    reach = torch.maximum(x.abs(), y.abs()).amax(dim=1, keepdim=True).clamp(min=1e-300)
    u, v = x / reach, y / reach
    terms = torch.stack([torch.ones_like(u), u, v, u * u, u * v, v * v], dim=2)
    products = terms.mT @ terms
    products.diagonal(dim1=1, dim2=2).add_(RIDGE * x.shape[1])
    factor, _ = torch.linalg.cholesky_ex(products)
    quadrics = torch.cholesky_solve(terms.mT @ z[:, :, None], factor)
    residual = z - (terms @ quadrics)[:, :, 0]
    freedom = x.shape[1] - terms.shape[2]
    spread = 2 / (9 * freedom)  # Wilson and Hilferty: the cube root of χ² is nearly normal
    quantile_of_chi2 = freedom * (1 - spread + NORMAL_QUANTILE * np.sqrt(spread)) ** 3
    left = residual.square().sum(dim=1).quantile(NOISE_QUANTILE)
    return float((left / quantile_of_chi2).sqrt())


# The floor


@dataclass(frozen=True)
class Plane:
    """The points x with normal · x = offset. Up from it is where the other points are."""

    normal: Array  # (3,) unit
    offset: float
    tolerance: float  # as far from it as points of it are, in the points' unit

    def height(self, points: Array) -> Array:
        """Signed distances (N,) of (N, 3) points, positive above."""
        return np.asarray(points @ self.normal - self.offset)


def find_plane(points: Array, up: Array | None = None, seed: int = 0) -> Plane | None:
    """The largest plane that (N, 3) points stand on, or None.

    On it stand the points if nine of ten that are not of it are above it, and most of these over its extent:
    the seat of a chair is no floor, since the backrest rises at its border. With `up` (3,) given, its normal
    is within 15° of it, and of a plane that has nothing below it the extent does not matter. Largest is what
    fills most voxels: a floor counts by its area, not by how densely it was measured. Planes are tried
    through single points with the normals of their surroundings (RANSAC).
    """
    some = points[thinned(points, thinning_cell(points, PLANE_POINTS))]
    tolerance = PLANE_TOLERANCE * _diagonal(some) + 2 * local_noise(points)
    feet, normals = _tried_planes(some, np.random.default_rng(seed))
    if up is not None:
        level = np.abs(normals @ up) > np.cos(np.radians(1.5 * PLANE_TILT)) * np.linalg.norm(up)
        feet, normals = feet[level], normals[level]
    held = np.abs(some @ normals.T - np.einsum("ij,ij->i", feet, normals)) < tolerance
    best, most = None, PLANE_SHARE * len(some)
    for index in np.argsort(-held.sum(axis=0)):
        plane = _fitted(some, held[:, index], tolerance, up)
        count = int((np.abs(plane.height(some)) < tolerance).sum())
        if count > most and _supports(plane, some, up):
            best, most = plane, count
    return best


def _tried_planes(points: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Points (T, 3) and the normals (T, 3) of the surface around them."""
    picks = points[rng.permutation(len(points))[:PLANE_TRIES]]
    _, neighbours = Neighbours(points).nearest(picks, min(30, len(points)))
    return points[neighbours].mean(axis=1), least_axes(points, neighbours)[0]


def _fitted(points: Array, held: Mask, tolerance: float, up: Array | None) -> Plane:
    """The least-squares plane of the points that a first plane holds, then of what it holds itself."""
    for _ in range(3):
        centre = points[held].mean(axis=0)
        _, axes = np.linalg.eigh(np.cov((points[held] - centre).T))
        normal = axes[:, 0]
        heights = (points - centre) @ normal
        held = np.abs(heights) < tolerance
    upwards = heights.sum() if up is None else normal @ up
    normal = normal if upwards > 0 else -normal
    return Plane(normal, float(normal @ centre), tolerance)


def _supports(plane: Plane, points: Array, up: Array | None) -> bool:
    """Whether the plane is level, and the points that are not of it are above it and over it."""
    if up is not None and plane.normal @ up < np.cos(np.radians(PLANE_TILT)) * np.linalg.norm(up):
        return False
    heights = plane.height(points)
    above, below = heights > 2 * plane.tolerance, int((heights < -2 * plane.tolerance).sum())
    share = above.sum() / max(1, above.sum() + below)
    if share < PLANE_ABOVE or (up is not None and share > PLANE_LOWEST):
        return bool(share >= PLANE_ABOVE)
    return _over(plane, points[above], points[np.abs(heights) < plane.tolerance]) > PLANE_FOOTPRINT


def _over(plane: Plane, points: Array, others: Array) -> float:
    """Share of (N, 3) points whose projection onto the plane is within the outline of that of the others."""
    across = np.linalg.svd(plane.normal[None])[2][1:].T
    try:
        sides = ConvexHull(others @ across).equations  # (S, 3) outward normals and offsets
    except QhullError:  # all of the others in a line
        return 0.0
    return float((points @ across @ sides[:, :2].T + sides[:, 2] <= 0).all(axis=1).mean())


def without_plane(points: Array, plane: Plane, margin: float) -> Mask:
    """Which (N, 3) points are farther above the plane than `margin`, (N,)."""
    return plane.height(points) > margin


@dataclass(frozen=True)
class Standing:
    """The object among (N, 3) points that stands on a plane, and how many points were something else."""

    plane: Plane
    kept: Mask  # (N,)
    on_plane: int  # on it or below
    elsewhere: int  # of other things that stand on it


def standing_on_plane(points: Array, up: Array | None = None, seed: int = 0) -> Standing | None:
    """The largest thing that stands on the plane of `find_plane`, or None where there is no plane.

    Largest is the connected part that fills most voxels, together with parts that lie over or under it, as
    feet do whose legs are hidden, or close by it: a gap of 4 % of its diagonal.
    """
    plane = find_plane(points, up, seed)
    if plane is None:
        return None
    above = np.flatnonzero(without_plane(points, plane, 1.5 * plane.tolerance))
    if not len(above):
        return None
    kept = np.zeros(len(points), dtype=bool)
    kept[above] = _object(points[above], plane)
    return Standing(plane, kept, len(points) - len(above), len(above) - int(kept.sum()))


def _object(points: Array, plane: Plane) -> Mask:
    """Which points (N,) are of the largest thing: a cluster and those that belong to it."""
    some, labels = _clustered(points)
    parts = np.argsort(-np.bincount(labels[some]), kind="stable")
    things = [_belonging(points[some], labels[some], seed, parts, plane) for seed in parts[:SEEDS]]
    largest = max(things, key=lambda thing: int(np.isin(labels[some], thing).sum()))
    return np.isin(labels, largest)


def _belonging(points: Array, labels: Indices, seed: int, parts: Indices, plane: Plane) -> list[int]:
    """The labels of one cluster and of those that belong to it, tried in the order given."""
    ours = [seed]
    for label in parts[parts != seed]:
        one, body = points[labels == label], points[np.isin(labels, ours)]
        near = Neighbours(body).gap(one) < JOINED_GAP * _diagonal(body)
        if near or _over(plane, one, body) > JOINED_FOOTPRINT:
            ours.append(label)
    return ours
