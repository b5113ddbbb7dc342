"""From a partial scan to what it says of the signed-distance field.

METHOD of DeepSDF, section 6.3: a measured point lies on the surface, a point η off it along the normal has
distance η, and the line of sight before it is free. Its −η behind the surface is left out (decision 16). A
scan is one view or several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import ConvexHull, QhullError
from torch import Tensor

from model import cleaning, ranges
from model.frame import Similarity, upright
from model.neighbours import Neighbours, least_axes
from model.problems import BACKGROUND, FREE, OUTSIDE, SURFACE, Rows
from model.streams import brought, fetched, here

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

MIN_POINTS = 32
MAX_POINTS = 20_000
FINEST_CELL = 0.008
"""Points nearer to each other than this say the same; radii of the scan."""

SMOOTHED_TO = 0.01
"""Noise that points are smoothed down to, as far as can be; radii of the scan."""

NEIGHBOURS, MOST_NEIGHBOURS = 24, 160
GRAZING_COSINE = 0.1
EDGE_VARIATION = 0.08
"""Share of variance along the normal above which a neighbourhood is an edge or noise, not a surface."""

SIGHT_REACH = 2.2
"""How far before a measured point its line of sight is sampled, in radii of the scan."""

SIGHT_MARGIN = 0.05
"""How far before the measured point its free line of sight ends, in radii of the scan."""

PASSING_SPREAD, PASSING_REACH = 0.15, 1.6
"""Spread in range of the points sampled on rays that passed the object, and how far from the scan's centre
they may say something; radii of the scan."""

OUT_OF_BOX = 0.002
"""Share of the points that may be beyond each side of the scan's box."""

SIDES = 32
"""To so many sides the farthest points of an outline are looked for first."""

OUTLINE_RAYS = 4096
OUTLINE_REACH, OUTLINE_MARGIN = 1.5, 1.05
"""Rays are taken to have passed the object between these two blow-ups of the scan's outline."""


class UnusableScan(Exception):
    """The scan cannot be completed; the message says what to change."""


@dataclass(frozen=True)
class View:
    """What one frame of a sensor saw, in the scan's frame and unit."""

    points: Array  # (N, 3)
    normals: Array | None = None  # (N, 3) outward
    viewpoint: Array | None = None  # (3,) where the sensor stood
    background: Array | None = None  # (B, 3) unit directions from the viewpoint that met nothing
    colors: NDArray[np.uint8] | None = None  # (N, 3) RGB


@dataclass(frozen=True, eq=False)
class Observation:
    """A scan turned upright, centred, and scaled to radius 1: the observation's frame."""

    surface: Array  # (K, 3)
    normals: Array  # (K, 3) unit, outward; NaN where the sides cannot be told
    free: Array  # (M, 3) points on lines of sight before a measured point
    background: Array  # (B, 3) points on rays that met nothing of the object
    from_scan: Similarity
    noise: float  # standard deviation along the normal
    colors: NDArray[np.uint8] | None = None  # (K, 3) RGB
    removed: dict[str, int] = field(default_factory=dict)  # points left out, by reason

    @cached_property
    def sided(self) -> Mask:
        """Of which points of the surface (K,) the normal is known."""
        return np.asarray(np.isfinite(self.normals).all(axis=1))

    def in_scan(self) -> Array:
        """The points of the surface (K, 3) in the scan's frame and unit."""
        return self.from_scan.inverse().apply(self.surface)


@dataclass(frozen=True)
class _Cloud:
    """The points of all views, each with what is known of it, where the thread works."""

    points: Tensor  # (N, 3)
    normals: Tensor | None  # (N, 3) as given, NaN where not; None if no view brings any
    colors: Tensor | None  # (N, 3)
    view: Tensor  # (N,)
    viewpoints: Tensor  # (V, 3) where the sensor of each view stood, NaN where unknown

    def __len__(self) -> int:
        return len(self.points)

    def of(self, rows: Tensor) -> _Cloud:
        """Those of its points that have the numbers (K,)."""
        normals, colors = (None if part is None else part[rows] for part in (self.normals, self.colors))
        return _Cloud(self.points[rows], normals, colors, self.view[rows], self.viewpoints)

    @classmethod
    def joined(cls, parts: Sequence[_Cloud]) -> _Cloud:
        """The points of all parts of one cloud, in order."""
        normals = [part.normals for part in parts if part.normals is not None]
        colors = [part.colors for part in parts if part.colors is not None]
        return cls(
            torch.cat([part.points for part in parts]),
            torch.cat(normals) if normals else None,
            torch.cat(colors) if colors else None,
            torch.cat([part.view for part in parts]),
            parts[0].viewpoints,
        )

    def moved(self, to: Similarity) -> _Cloud:
        turn, translation = here(to.rotation.T), here(to.translation)
        points, viewpoints = (
            torch.addmm(translation, part, turn, alpha=to.scale) for part in (self.points, self.viewpoints)
        )
        normals = None if self.normals is None else self.normals @ turn
        return replace(self, points=points, normals=normals, viewpoints=viewpoints)


def observe(
    views: View | Sequence[View],
    *,
    up: str | ArrayLike = "+y",
    remove_plane: bool = False,
    seed: int = 0,
) -> Observation:
    """Prepare a scan of one view or several with what else is known of its points.

    Stray points go, and with `remove_plane` the plane that the object stands on and what else stands
    there. A view without `background` has it guessed from its outline. `up` is an axis of the scan or a
    vector (3,). Raises UnusableScan.
    """
    views = [views] if isinstance(views, View) else list(views)
    rng = np.random.default_rng(seed)
    cloud, removed = _cleaned(_merged(views), upright(up)[1], remove_plane, seed)
    from_scan = _observation_frame(cloud.points, up)
    noise = cleaning.local_noise(cloud.points)
    if noise > SMOOTHED_TO / from_scan.scale:
        cloud, noise = _smoothed(cloud, views, noise, SMOOTHED_TO / from_scan.scale, rng)
        from_scan = _observation_frame(cloud.points, up)
    cloud, noise = cloud.moved(from_scan), noise * from_scan.scale
    cloud = _thinned(cloud)
    cloud, normals = _facing(cloud, noise)
    empty = _empty_space(views, cloud, from_scan, noise, rng)
    surface, outward, free, background = fetched(cloud.points, normals, *empty)
    colors = None if cloud.colors is None else cloud.colors.cpu().numpy()
    return Observation(surface, outward, free, background, from_scan, noise, colors, removed)


def _merged(views: Sequence[View]) -> _Cloud:
    counts = [len(view.points) for view in views]
    points = torch.cat([here(view.points) for view in views])
    normals = [_known(view.normals, (count, 3), points) for view, count in zip(views, counts, strict=True)]
    colors = [np.full((len(v.points), 3), 160, np.uint8) if v.colors is None else v.colors for v in views]
    sided = any(view.normals is not None for view in views)
    colored = any(view.colors is not None for view in views)
    return _Cloud(
        points,
        torch.cat(normals) if sided else None,
        torch.tensor(np.concatenate(colors), device=points.device) if colored else None,
        torch.cat(
            [points.new_full((count,), number, dtype=torch.long) for number, count in enumerate(counts)]
        ),
        torch.stack([_known(view.viewpoint, (3,), points) for view in views]),
    )


def _known(values: Array | None, shape: tuple[int, ...], points: Tensor) -> Tensor:
    """The values beside the points, NaN if there are none."""
    return points.new_full(shape, torch.nan) if values is None else here(values).reshape(shape)


def _cleaned(cloud: _Cloud, up: Array, remove_plane: bool, seed: int) -> tuple[_Cloud, dict[str, int]]:
    """The points of the object, and how many others were left out, by reason. `up` is (3,), scan's frame."""
    removed = {}

    def keep(which: Mask, reason: str) -> None:
        nonlocal cloud
        if not which.all():
            removed[reason] = int((~which).sum())
            cloud = cloud.of(torch.from_numpy(np.flatnonzero(which)).to(cloud.points.device))

    keep(_finite(cloud.points).cpu().numpy(), "not finite")
    _require_points(cloud)
    _require_extent(cloud.points)
    if remove_plane:
        standing = cleaning.standing_on_plane(cloud.points.cpu().numpy(), up, seed)
        if standing is None:
            raise UnusableScan("no plane was found under the object: leave out `remove_plane`")
        keep(standing.kept, "plane and surroundings")
        _require_points(cloud)
    keep(~cleaning.outliers(cloud.points), "stray")
    _require_points(cloud)
    return cloud, removed


def _finite(rows: Tensor) -> Tensor:
    return (0 * rows).sum(dim=1) == 0  # of what is not finite it is NaN


def _require_points(cloud: _Cloud) -> None:
    if len(cloud) < MIN_POINTS:
        raise UnusableScan(f"a scan needs at least {MIN_POINTS} usable points, this one has {len(cloud)}")


def _require_extent(points: Tensor) -> None:
    low, high = np.array(torch.stack(points.aminmax(dim=0)).tolist())
    if not (high - low).max() > 1e-9 * (1 + np.maximum(-low, high).max()):
        raise UnusableScan("the scan's points all coincide: it has no extent to complete")


def _observation_frame(points: Tensor, up: str | ArrayLike) -> Similarity:
    rotation = upright(up)
    low, high, radius = _box(points @ here(rotation.T))
    if not radius > 1e-9 * (1 + float(np.abs(low + high).max())):
        raise UnusableScan("the scan's points all coincide: it has no extent to complete")
    return Similarity(1 / radius, rotation, -(low + high) / 2 / radius)


def _box(points: Tensor) -> tuple[Array, Array, float]:
    """Lower and upper corner (3,) of nearly all of (N, 3) points, and half the diagonal: their radius."""
    place, share = divmod(OUT_OF_BOX * (len(points) - 1), 1)
    rows = points.T
    ends = torch.cat([rows, -rows]).topk(int(place) + 2, largest=False).values[:, -2:]
    last, after = ends.T
    low, high = np.array(torch.lerp(last, after, share).tolist()).reshape(2, 3) * [[1], [-1]]
    return low, high, float(np.linalg.norm(high - low) / 2)


def _smoothed(
    cloud: _Cloud, views: Sequence[View], noise: float, target: float, rng: np.random.Generator
) -> tuple[_Cloud, float]:
    """Points with less noise, where the sensor's place tells its direction, and what is left of it."""
    parts, left = [], [0.0]
    for number, view in enumerate(views):
        part = cloud.of((cloud.view == number).nonzero().squeeze(1))
        if view.viewpoint is None or len(part) < MIN_POINTS:
            parts.append(part)
            left.append(noise)
            continue
        eye, points = np.asarray(view.viewpoint, dtype=float), part.points.cpu().numpy()
        distance = float(np.median(np.linalg.norm(points - eye, axis=1)))
        picks = rng.permutation(len(part))[:MAX_POINTS]
        share = ranges.range_noise(points, eye)
        points, share = ranges.smoothed(points, picks, eye, share, target / distance)
        rows = torch.from_numpy(picks).to(cloud.points.device)
        parts.append(replace(part.of(rows), points=here(points)))
        left.append(share * distance)
    return _Cloud.joined(parts), max(left)


def _thinned(cloud: _Cloud) -> _Cloud:
    """One point a voxel, so that what is near the sensor or seen twice weighs no more than the rest."""
    cell = max(FINEST_CELL, cleaning.thinning_cell(cloud.points, MAX_POINTS))
    thin = cleaning.thinned(cloud.points, cell)
    return cloud.of(thin) if len(thin) >= MIN_POINTS else cloud


def _facing(cloud: _Cloud, noise: float) -> tuple[_Cloud, Tensor]:
    """The points that are neither edges nor seen at a grazing angle, and outward normals (NaN: unknown)."""
    eyes, seen = cloud.viewpoints[cloud.view], _finite(cloud.viewpoints)[cloud.view]
    given = torch.zeros_like(seen) if cloud.normals is None else _finite(cloud.normals)
    known = given | seen
    if not known.any():
        return cloud, torch.full_like(cloud.points, torch.nan)
    normals, variation = _estimated_normals(cloud.points, noise)
    if cloud.normals is not None:
        normals = torch.where(given[:, None], _unit(cloud.normals), normals)
    cosine = (normals * _unit(eyes - cloud.points)).sum(dim=1)
    flip = ~given & seen & (cosine < 0)
    normals = torch.where(flip[:, None], -normals, normals)
    normals = torch.where(known[:, None], normals, torch.nan)
    sure = ~seen | ((cosine.abs() > GRAZING_COSINE) & (given | (variation < EDGE_VARIATION)))
    rows = sure.nonzero().squeeze(1)
    if len(rows) < MIN_POINTS:
        return cloud, normals
    return cloud.of(rows), normals[rows]


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=1)


def _estimated_normals(points: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Unoriented unit normals by PCA over the neighbours, and the share of variance along them.

    Neighbourhoods are as wide as the noise asks for: within a few standard deviations of it everything
    is round. The noise's own variance is no sign of an edge.
    """
    cloud = Neighbours(points)
    some = points[:: max(1, len(points) // 500)]
    reach = float(cleaning.median(cloud.nearest_here(some, min(NEIGHBOURS, len(points)))[0][:, -1]))
    wider = (4.5 * noise / max(reach, 1e-12)) ** 2
    count = int(np.clip(NEIGHBOURS * wider, NEIGHBOURS, MOST_NEIGHBOURS))
    _, neighbours = cloud.nearest_here(points, min(count, len(points)))
    normals, least, whole = least_axes(points, neighbours)
    return normals, (least - noise**2).clamp(min=0) / whole.clamp(min=1e-24)


def _empty_space(
    views: Sequence[View], cloud: _Cloud, from_scan: Similarity, noise: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Points (M, 3) on lines of sight and (B, 3) on rays that passed, of all views with a viewpoint."""
    free, passed = [cloud.points[:0]], [cloud.points[:0]]
    for number, view in enumerate(views):
        surface = cloud.points if len(views) == 1 else cloud.points[cloud.view == number]
        if view.viewpoint is None or not len(surface):
            continue
        eye = cloud.viewpoints[number]
        free.append(_sight_samples(surface, eye, noise, rng))
        if view.background is None:
            rays = _around_outline(surface, eye, rng)
        else:
            rays = here(from_scan.turn(view.background))
        passed.append(_background_samples(rays, surface, eye, rng))
    return torch.cat(free), torch.cat(passed)


def _sight_samples(surface: Tensor, eye: Tensor, noise: float, rng: np.random.Generator) -> Tensor:
    """Two points on each line of sight, uniform over what of it lies near the scan."""
    rays = surface - eye
    lengths = rays.norm(dim=1, keepdim=True)
    start = (lengths - SIGHT_REACH).clamp(min=0)
    stop = torch.maximum(lengths - max(SIGHT_MARGIN, 3 * noise), start)
    along = torch.lerp(start, stop, here(rng.random((len(surface), 2))))
    samples: Tensor = eye + rays[:, None] * (along / lengths.clamp(min=1e-12))[:, :, None]
    return samples.flatten(0, 1)


def _around_outline(surface: Tensor, eye: Tensor, rng: np.random.Generator) -> Tensor:
    """Directions (B, 3) that pass the scan just outside the convex outline it has from the eye.

    A scan that was cut out of its surroundings does not say which rays met nothing of the object; these
    are the safest guess, and without them nothing would bound the shape's size. Holes inside the outline
    are left alone: sensors miss thin and dark parts.
    """
    if len(surface) < 4:
        return surface[:0]
    rays = _unit(surface - eye)
    forward = _unit(rays.mean(dim=0, keepdim=True))
    depth = rays @ forward.T
    *axis, nearest = torch.cat([forward[0], depth.amin(dim=0)]).tolist()
    if nearest < 0.2:  # the sensor stands inside the scan: it has no outline
        return surface[:0]
    sideways = here(np.linalg.svd([axis])[2][1:])
    try:
        hull = _convex_hull(rays @ sideways.T / depth)
    except QhullError:  # all points on one line of sight
        return surface[:0]
    outline = hull.points[hull.vertices]
    centre = outline.mean(axis=0)
    size = np.abs(outline - centre).max(axis=0)
    picks = centre + OUTLINE_REACH * size * rng.uniform(-1, 1, (OUTLINE_RAYS, 2))
    smaller = centre + (picks - centre) / OUTLINE_MARGIN  # instead of a larger outline
    sides = here(hull.equations)  # (S, 3) outward normals and offsets
    outside = torch.addmm(sides[:, 2], here(smaller), sides[:, :2].T).amax(dim=1) > 0
    return _unit(forward + here(picks)[outside] @ sideways)


def _convex_hull(points: Tensor) -> ConvexHull:
    """Of (N, 2) points. Raises QhullError if they are all in a line.

    Most lie within the polygon of those that are farthest to some sides, and need not be looked at.
    """
    farthest = (points @ _sides(points.device)).argmax(dim=0)
    corners = points[farthest]  # counter-clockwise
    x, y = (corners.roll(-1, dims=0) - corners).T
    outward = torch.stack([y, -x])
    outside = (points @ outward > (corners.T * outward).sum(dim=0)).any(dim=1)
    return ConvexHull(points[outside.index_fill(0, farthest, True)].cpu().numpy())


@cache
def _sides(device: torch.device) -> Tensor:
    """Unit vectors to `SIDES` sides, counter-clockwise, as columns (2, SIDES)."""
    angles = np.linspace(0, 2 * np.pi, SIDES, endpoint=False)
    return torch.tensor(np.stack([np.cos(angles), np.sin(angles)]), device=device)


def _background_samples(directions: Tensor, surface: Tensor, eye: Tensor, rng: np.random.Generator) -> Tensor:
    """Four points on each ray that passed, about as far away as the surface it passed most closely.

    Spread over whole rays, hardly any would lie where a shape that is too large sticks out.
    """
    directions = _unit(directions)
    _, passed = Neighbours(_unit(surface - eye)).nearest_here(directions)
    spread = PASSING_SPREAD * here(rng.normal(size=(len(directions), 4)))
    ranges = (surface[passed] - eye).norm(dim=1, keepdim=True) + spread
    points: Tensor = (eye + directions[:, None] * ranges.clamp(min=0)[:, :, None]).flatten(0, 1)
    return points[points.norm(dim=1) < PASSING_REACH]


@dataclass(frozen=True)
class RowWeights:
    """How the parts of an observation are weighed; each part's rows share its weight."""

    eta: float = 0.03  # η: distance off the surface of the sample along the normal, canonical units
    eta_in_noise: float = 2.5  # … and at least so many standard deviations of the noise
    surface: float = 1.0
    free: float = 4.0
    background: float = 16.0

    def eta_for(self, observation: Observation) -> float:
        """η for the noise of an observation, canonical units; a radius of a scan is about one of them."""
        return max(self.eta, self.eta_in_noise * observation.noise)


def rows_of(
    observation: Observation,
    counts: tuple[int, int],
    skin: float,
    weights: RowWeights,
    device: torch.device,
    seed: int = 0,
) -> Rows:
    """Random rows of an observation, (1, K): about `counts[0]` of the surface, `counts[1]` of free space.

    With a skin τ the field is −τ on the surface. There are no rows below it (DeepSDF's −η): how thick a
    part is there nobody saw, and many are thinner than η.
    """
    rng = np.random.default_rng(seed)
    eta = weights.eta_for(observation)
    sided = observation.sided
    count = counts[0] // 2 if sided.any() else counts[0]
    share = weights.surface / 2 if sided.any() else weights.surface
    on = _pick(observation.surface, count, rng)
    parts = [_part(SURFACE, observation.surface[on], None, -skin, -skin, share)]
    on = on[sided[on]]
    if len(on):
        surface, normals = observation.surface[on], observation.normals[on]
        parts.append(_part(OUTSIDE, surface, eta * normals, eta - skin, eta - skin, share))
    empty = (
        (FREE, observation.free, weights.free),
        (BACKGROUND, observation.background, weights.background),
    )
    for kind, points, weight in empty:
        if len(points):
            some = points[_pick(points, counts[1] // 2, rng)]
            parts.append(_part(kind, some, None, 0.0, np.inf, weight))
    return _on_device([np.concatenate(column) for column in zip(*parts, strict=True)], device)


def _on_device(columns: Sequence[NDArray[np.float32]], device: torch.device) -> Rows:
    """Rows of their columns, which are brought to the device together."""
    # Each begins at a multiple of 16 bytes: for others a GPU's kernels would be compiled once more.
    padded = [np.pad(column.ravel(), (0, -column.size % 4)) for column in columns]
    flat = brought(np.concatenate(padded), device).split([column.size for column in padded])
    shaped = ((part[: column.size], column) for part, column in zip(flat, columns, strict=True))
    points, offsets, lower, upper, weights, only_in_ball, kind = (
        part.view(1, *column.shape) for part, column in shaped
    )
    return Rows(points, offsets, lower, upper, weights, only_in_ball.bool(), kind.to(torch.int8))


def _pick(points: Array, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.choice(len(points), min(count, len(points)), replace=False)


def _part(
    kind: int, points: Array, offsets: Array | None, lower: float, upper: float, weight: float
) -> tuple[NDArray[np.float32], ...]:
    count = len(points)
    return (
        points.astype(np.float32),
        (np.zeros_like(points) if offsets is None else offsets).astype(np.float32),
        np.full(count, lower, np.float32),
        np.full(count, upper, np.float32),
        np.full(count, weight / count, np.float32),
        np.full(count, kind in (FREE, BACKGROUND), np.float32),
        np.full(count, kind, np.float32),
    )
