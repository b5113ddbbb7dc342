"""What a scan holds besides the object: stray points, noise, the floor it stands on. Points in, masks out.

Works on points in any frame and unit and knows no sensor. The order is: `outliers`, then `local_noise` (which
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
from model.fused import points as fused_points
from model.kernels import usable
from model.neighbours import Neighbours, least_axes
from model.streams import here

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Indices = NDArray[np.int64]
Points = Array | Tensor
Links = tuple[Tensor, Tensor]
"""Distances and numbers (N, K) of each point's nearest ones."""

SPACING_NEIGHBOURS = 8
STRAY_LOCALLY, STRAY_ANYWHERE = 3.0, 10.0
"""A point is stray whose distance to its neighbours is this many times theirs, or times the scan's median."""

SUM_OF = 1.0, 0.618, 0.382  # times a point's coordinates, which hardly any two points have in common

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
QUADRIC_TERMS = 6
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


def _diagonal(points: Points) -> float:
    low, high = here(points).aminmax(dim=0)
    return float((high - low).norm())


# Stray points


def outliers(points: Points) -> Mask:
    """Which of (N, 3) points belong to no surface, (N,).

    Stray are points that stand alone and small clusters that stand far off. Alone: the mean distance to the 8
    nearest is 3 times what it is for these, or 10 times the scan's median. Density may vary by 10² within a
    scan, and does not matter where it varies smoothly; points in a row, as on a leg one pixel wide, are as
    far from each other as their neighbours are, and stay. Small and far: farther from every larger cluster
    than twice its own size and than a fifth of the largest one's, and with less than 2 % of the points for a
    distance of one such size, 1 % for half of it. What is as long as its gap is wide, a foot below its hidden
    leg or an armrest before the backrest, stays.
    """
    points = here(points)
    if _all_differ(points):
        return _stray(points)
    rows = points.cpu().numpy()
    distinct, which = np.unique(rows, axis=0, return_index=True, return_inverse=True)[1:]
    return _stray(here(rows[distinct]))[which]


def _all_differ(points: Tensor) -> bool:
    """Whether no two of (N, 3) points are surely the same: equal ones have a sum of coordinates in common."""
    sums = points @ points.new_tensor(SUM_OF)
    return bool((np.diff(np.sort(sums.cpu().numpy())) > 0).all())


def _stray(points: Tensor) -> Mask:
    """The same for points that differ."""
    stray = np.zeros(len(points), dtype=bool)
    if len(points) <= SPACING_NEIGHBOURS:
        return stray
    links = Neighbours(points).nearest_here(points, min(LINKS + 1, len(points)))
    distances, neighbours = (part[:, 1 : SPACING_NEIGHBOURS + 1] for part in links)
    spacing = distances.mean(dim=1)
    most = torch.minimum(STRAY_LOCALLY * median(spacing[neighbours]), STRAY_ANYWHERE * median(spacing))
    kept = (spacing <= most).nonzero().squeeze(1)
    if len(kept) == len(points):
        return _small_and_far(points, links)
    stray[:] = True
    stray[kept.cpu().numpy()] = _small_and_far(points[kept])
    return stray


def median(values: Tensor) -> Tensor:
    """Of values (…, N), (…). Along the last axis; of an even number the mean of the middle two."""
    count = values.shape[-1]
    lower, upper = (values.kthvalue(place + 1).values for place in ((count - 1) // 2, count // 2))
    return (lower + upper) / 2


def _small_and_far(points: Tensor, links: Links | None = None) -> Mask:
    """Which points (N,) are in clusters that the rule of `outliers` takes away, largest clusters first."""
    some, labels = _clustered(points, links)
    counts = np.bincount(labels)
    order = np.argsort(-counts, kind="stable")
    kept = counts >= SMALL_CLUSTER * len(points)  # of the clusters
    kept[order[0]] = True
    small = order[~kept[order]]
    if not len(small):
        return np.zeros(len(points), dtype=bool)
    spread, of_spread = (points, labels) if some is None else (points[some], labels[some.cpu().numpy()])
    size = _diagonal(spread[of_spread == order[0]])
    near = _near(spread, of_spread, small, kept[of_spread], FAR_CLUSTER * size)
    for label, beside in zip(small, near, strict=True):
        share = counts[label] / len(points)
        kept[label] = beside or not _is_far(spread[of_spread == label], spread[kept[of_spread]], share, size)
    return ~kept[labels]


def _near(points: Tensor, labels: Indices, clusters: Indices, larger: Mask, reach: float) -> list[bool]:
    """Of which clusters the first point shows that it is near to the `larger` ones; of most it does."""
    first = points[[int((labels == cluster).argmax()) for cluster in clusters]]
    others = points[larger]
    near = [(others - one).square().sum(dim=1).amin() <= reach**2 for one in first]
    return torch.stack(near).tolist()


def _is_far(cluster: Tensor, larger: Tensor, share: float, size: float) -> bool:
    """Whether a cluster of this share of all points is too far from all larger ones, for that and its size.

    `size` is that of the largest.
    """
    far = max(FAR_CLUSTER * size, FAR_FOR_ITS_SIZE * _diagonal(cluster))
    gap = Neighbours(larger).gap(cluster)
    return bool(gap > far and share < SMALL_CLUSTER * gap / size)


def clusters(points: Points) -> Indices:
    """Labels (N,) of the connected parts of (N, 3) points, from 0.

    Two points are connected that are among each other's 16 nearest and within 3 spacings of each other, where
    the spacing is local: far parts of a scan, which are sparse, hold together as near ones do.
    """
    return _clustered(here(points))[1]


def _clustered(points: Tensor, links: Links | None = None) -> tuple[Tensor | None, Indices]:
    """Points (K,) in whose graph clusters are found, evenly spread (None: all), and the labels (N,) of all.

    `links` are each point's nearest ones, itself the first, if they are known already.
    """
    some = _spread(points, links)
    around = Neighbours(points if some is None else points[some])
    count = len(around.points)
    if links is None or some is not None:
        links = around.nearest_here(around.points, min(LINKS + 1, count))
    distances, neighbours = links
    spacing = distances[:, min(4, distances.shape[1] - 1)]
    linked = distances <= LINK_SPACINGS * torch.maximum(spacing[:, None], spacing[neighbours])
    own = torch.arange(count, device=points.device)[:, None].expand_as(linked)
    labels = connected_parts(own.flatten(), torch.where(linked, neighbours, own).flatten(), count)
    if some is not None:
        labels = labels[around.nearest_here(points)[1]]
    return some, labels.cpu().numpy()


def _spread(points: Tensor, links: Links | None) -> Tensor | None:
    """Points (K,) for a graph: no two of them the same, and no more than are looked at. None: all."""
    cell = thinning_cell(points, CLUSTERED_POINTS) or 1e-5 * _diagonal(points)
    if links is not None and len(points) <= CLUSTERED_POINTS and float(links[0][:, 1].amin()) > 2 * cell:
        return None
    return thinned(points, cell)


# Thinning


def thinned(points: Points, cell: float) -> Tensor:
    """Indices of one of (N, 3) points in each voxel of edge `cell`: the one nearest to the mean of its voxel.

    Ascending, where the thread works. Near and far parts of a scan weigh alike after it. Noise within a cell
    is mostly gone after it: measure it before. All points stay where `cell` is 0.
    """
    points = here(points)
    count, numbers = len(points), torch.arange(len(points), device=points.device)
    if cell <= 0:
        return numbers
    if usable(points.device):
        return fused_points.thinned(points, cell)
    voxels, order = _voxels(points, cell).sort(stable=True)
    points = points[order]
    row = torch.nn.functional.pad(voxels.diff() > 0, (1, 0)).cumsum(dim=0)  # of each point that of its voxel
    filled = points.new_zeros(count).index_add_(0, row, points.new_ones(1).expand(count))
    mean = torch.zeros_like(points).index_add_(0, row, points) / filled[:, None]
    # The only two points of a voxel are equally near: neither the unit nor the order of points shall choose.
    distance = ((points - mean[row]).norm(dim=1) / cell).round(decimals=6)
    chosen = torch.ones_like(numbers, dtype=torch.bool)
    for values in (distance, points[:, 0], numbers.to(points)):
        values = torch.where(chosen, values, torch.inf)
        least = torch.full_like(values, torch.inf).scatter_reduce_(0, row, values, "amin")
        chosen = values == least[row]
    return torch.zeros_like(chosen).scatter_(0, order, chosen).nonzero().squeeze(1)


def thinning_cell(points: Points, count: int) -> float:
    """The edge of voxels of which (N, 3) points fill about `count`; 0 where there are no more points."""
    if len(points) <= count:
        return 0.0
    points = here(points)
    high = _diagonal(points)
    low = 1e-9 * high  # one stray point may be far away
    for _ in range(30):
        middle = float(np.sqrt(low * high))
        filled = len(_voxels(points, middle).unique())
        if abs(filled - count) < CELL_ACCURACY * count:
            return middle
        low, high = (middle, high) if filled > count else (low, middle)
    return high


def _voxels(points: Tensor, cell: float) -> Tensor:
    """The number (N,) of the voxel that each point lies in."""
    if usable(points.device):
        return fused_points.voxels(points, cell)
    low, high = points.aminmax(dim=0)
    size = ((high - low) / cell).long() + 1
    x, y, z = ((points - low) / cell).long().T
    number: Tensor = (x * size[1] + y) * size[2] + z
    return number


# Noise


def local_noise(points: Points, neighbours: int = 24) -> float:
    """Standard deviation of the noise of (N, 3) points along the surface normal, in their unit.

    Around some of the points a quadric is fitted to the nearest ones, at least `neighbours` of them and as
    many as reach 5.5 deviations far. The variances of what remains, over their degrees of freedom, are the
    noise's and more at edges and thin parts, so a quantile somewhat below their median counts, divided by
    what that quantile is of pure noise. Curvature, edges and thin parts are thus not taken for noise while
    they are the fewer. After thinning to a half or third it still holds within about a third, upwards. Steps
    of a sensor that rounds its depths count as noise if neighbourhoods span several: if not, give more.
    """
    cloud = Neighbours(points)
    count = len(cloud.points)
    picks = np.random.default_rng(0).permutation(count)[:NOISE_CENTRES]
    centres = cloud.points[torch.from_numpy(picks).to(cloud.points.device)]
    while True:
        distances, around = cloud.nearest_here(centres, min(neighbours, count))
        noise = _usual_deviation(cloud.points, around)
        noise, reach = torch.stack([noise, median(distances[:, -1])]).tolist()
        if reach >= NOISE_RADIUS * noise or 2 * neighbours > min(count, 800):
            return float(noise)
        neighbours *= 2


def _usual_deviation(points: Tensor, around: Tensor) -> Tensor:
    """Standard deviation of (N, 3) points from quadrics through those of a row of (B, K), without edges."""
    if usable(points.device):
        return _deviation(fused_points.off_quadrics(points, around, RIDGE), around.shape[1])
    forward = least_axes(points, around)[0]
    aside = torch.linalg.cross(forward, _least_of_axes(forward))
    axes = torch.stack([aside, torch.linalg.cross(forward, aside), forward], dim=2)  # (B, 3, 3)
    patches = points[around]
    centred = patches - patches.mean(dim=1, keepdim=True)
    return deviation_from_quadrics(*(centred @ axes).unbind(dim=2))


def _least_of_axes(vectors: Tensor) -> Tensor:
    """The axis (B, 3) of the frame that each of (B, 3) vectors lies least along."""
    return torch.nn.functional.one_hot(vectors.abs().argmin(dim=1), 3).to(vectors)


def deviation_from_quadrics(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Standard deviation () of z from quadrics over (x, y), (B, K) each, in the patches without edges."""
    reach = torch.maximum(x.abs(), y.abs()).amax(dim=1, keepdim=True).clamp(min=1e-300)
    u, v = x / reach, y / reach
    terms = torch.stack([torch.ones_like(u), u, v, u * u, u * v, v * v], dim=2)
    products = terms.mT @ terms
    products.diagonal(dim1=1, dim2=2).add_(RIDGE * x.shape[1])
    factor, _ = torch.linalg.cholesky_ex(products)
    quadrics = torch.cholesky_solve(terms.mT @ z[:, :, None], factor)
    residual = z - (terms @ quadrics)[:, :, 0]
    return _deviation(residual.square().sum(dim=1), x.shape[1])


def _deviation(left: Tensor, count: int) -> Tensor:
    """Standard deviation () of which quadrics of `count` points leave these sums of squares (B,)."""
    freedom = count - QUADRIC_TERMS
    spread = 2 / (9 * freedom)  # Wilson and Hilferty: the cube root of χ² is nearly normal
    quantile_of_chi2 = freedom * (1 - spread + NORMAL_QUANTILE * np.sqrt(spread)) ** 3
    left = left.sort().values
    place, share = divmod(NOISE_QUANTILE * (len(left) - 1), 1)
    usual = torch.lerp(left[int(place)], left[min(int(place) + 1, len(left) - 1)], share)
    deviation: Tensor = (usual / quantile_of_chi2).sqrt()
    return deviation


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
    some = points[thinned(points, thinning_cell(points, PLANE_POINTS)).cpu().numpy()]
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
    return points[neighbours].mean(axis=1), least_axes(points, neighbours)[0].cpu().numpy()


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
    spread, labels = _clustered(here(points))
    some = np.arange(len(points)) if spread is None else spread.cpu().numpy()
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
