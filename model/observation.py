"""From a partial scan to what it says of the signed-distance field.

METHOD of DeepSDF, section 6.3: a measured point lies on the surface, a point η off it along the
normal has distance ±η, and the line of sight before it is free.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, Delaunay, QhullError, cKDTree

from model.frame import Similarity, upright
from model.latent import Rows

Array = NDArray[np.float64]

MIN_POINTS = 32
MAX_POINTS = 20_000
NEIGHBOURS = 24
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


@dataclass(frozen=True)
class Observation:
    """A scan turned upright, centred, and scaled to radius 1: the observation's frame."""

    surface: Array  # (K, 3)
    normals: Array | None  # (K, 3) unit, outward; None if the sides cannot be told
    free: Array  # (M, 3) points on lines of sight before a measured point
    background: Array  # (B, 3) points on rays that met nothing of the object
    from_scan: Similarity


def observe(
    points: Array,
    normals: Array | None = None,
    viewpoint: Array | None = None,
    background: Array | None = None,
    *,
    up: str = "+y",
    seed: int = 0,
) -> Observation:
    """Prepare (N, 3) scan points with what else is known of them.

    `normals` (N, 3); `viewpoint` (3,) the sensor's place; `background` (B, 3) unit directions from it
    that met nothing, guessed from the scan's outline if None; all in the scan's frame. Raises UnusableScan.
    """
    rng = np.random.default_rng(seed)
    points, normals = _finite(points, normals)
    from_scan = _observation_frame(points, up)
    keep = rng.permutation(len(points))[:MAX_POINTS]
    surface = from_scan.apply(points[keep])
    eye = None if viewpoint is None else from_scan.apply(np.asarray(viewpoint, dtype=float)[None])[0]
    given = None if normals is None else from_scan.turn(normals[keep])
    surface, facing = _facing_surface(surface, given, eye)
    free = np.empty((0, 3)) if eye is None else _sight_samples(surface, eye, rng)
    passed = np.empty((0, 3))
    if eye is not None:
        rays = _around_outline(surface, eye, rng) if background is None else from_scan.turn(background)
        passed = _background_samples(rays, surface, eye, rng)
    return Observation(surface, facing, free, passed, from_scan)


def _finite(points: Array, normals: Array | None) -> tuple[Array, Array | None]:
    finite = np.isfinite(points).all(axis=1)
    if normals is not None:
        finite &= np.isfinite(normals).all(axis=1)
    if finite.sum() < MIN_POINTS:
        raise UnusableScan(f"a scan needs at least {MIN_POINTS} finite points, this one has {finite.sum()}")
    return points[finite].astype(float), None if normals is None else normals[finite].astype(float)


def _observation_frame(points: Array, up: str) -> Similarity:
    turned = points @ upright(up).T
    low, high = np.quantile(turned, [0.002, 0.998], axis=0)
    centre = (low + high) / 2
    radius = float(np.linalg.norm(high - low) / 2)
    if not radius > 1e-9 * (1 + float(np.abs(centre).max())):
        raise UnusableScan("the scan's points all coincide: it has no extent to complete")
    return Similarity(1 / radius, upright(up), -centre / radius)


def _facing_surface(surface: Array, given: Array | None, eye: Array | None) -> tuple[Array, Array | None]:
    """Points whose side is certain, with outward normals; all points without any if no side is known."""
    if given is None and eye is None:
        return surface, None
    normals, variation = (
        _estimated_normals(surface) if given is None else (_unit(given), np.zeros(len(given)))
    )
    if eye is not None:
        cosine = np.einsum("ij,ij->i", normals, _unit(eye - surface))
        if given is None:
            normals = np.where(cosine[:, None] < 0, -normals, normals)
        sure = (np.abs(cosine) > GRAZING_COSINE) & (variation < EDGE_VARIATION)
        if sure.sum() >= MIN_POINTS:
            surface, normals = surface[sure], normals[sure]
    return surface, normals


def _unit(vectors: Array) -> Array:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12))


def _estimated_normals(points: Array) -> tuple[Array, Array]:
    """Unoriented unit normals by PCA over the neighbours, and the share of variance along them."""
    _, neighbours = cKDTree(points).query(points, k=min(NEIGHBOURS, len(points)))
    around = points[neighbours] - points[neighbours].mean(axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(np.einsum("nki,nkj->nij", around, around))
    return vectors[:, :, 0], values[:, 0] / np.maximum(values.sum(axis=1), 1e-12)


def _sight_samples(surface: Array, eye: Array, rng: np.random.Generator) -> Array:
    """Two points on each line of sight, uniform over what of it lies near the scan."""
    targets = np.repeat(surface, 2, axis=0)
    rays = targets - eye
    lengths = np.linalg.norm(rays, axis=1)
    start = np.maximum(lengths - SIGHT_REACH, 0)
    stop = np.maximum(lengths - SIGHT_MARGIN, start)
    along = start + rng.random(len(lengths)) * (stop - start)
    return np.asarray(eye + rays * (along / np.maximum(lengths, 1e-12))[:, None])


def _around_outline(surface: Array, eye: Array, rng: np.random.Generator) -> Array:
    """Directions (B, 3) that pass the scan just outside the convex outline it has from the eye.

    A scan that was cut out of its surroundings does not say which rays met nothing of the object; these
    are the safest guess, and without them nothing would bound the shape's size. Holes inside the outline
    are left alone: sensors miss thin and dark parts.
    """
    rays = _unit(surface - eye)
    forward = _unit(rays.mean(axis=0, keepdims=True))[0]
    depth = rays @ forward
    if depth.min() < 0.2:  # the sensor stands inside the scan: it has no outline
        return np.empty((0, 3))
    sideways = np.linalg.svd(forward[None])[2][1:]
    image = rays @ sideways.T / depth[:, None]
    try:
        outline = image[ConvexHull(image).vertices]
    except QhullError:  # all points on one line of sight
        return np.empty((0, 3))
    centre = outline.mean(axis=0)
    size = np.abs(outline - centre).max(axis=0)
    picks = centre + OUTLINE_REACH * size * rng.uniform(-1, 1, (OUTLINE_RAYS, 2))
    outside = Delaunay(centre + OUTLINE_MARGIN * (outline - centre)).find_simplex(picks) < 0
    return _unit(forward + picks[outside] @ sideways)


def _background_samples(directions: Array, surface: Array, eye: Array, rng: np.random.Generator) -> Array:
    """Four points on each ray that passed, about as far away as the surface it passed most closely.

    Spread over whole rays, hardly any would lie where a shape that is too large sticks out.
    """
    directions = np.repeat(_unit(directions), 4, axis=0)
    _, nearest = cKDTree(_unit(surface - eye)).query(directions)
    ranges = np.linalg.norm(surface[nearest] - eye, axis=1) + PASSING_SPREAD * rng.normal(size=len(nearest))
    points = eye + directions * np.maximum(ranges, 0)[:, None]
    return np.asarray(points[np.linalg.norm(points, axis=1) < PASSING_REACH])


@dataclass(frozen=True)
class RowWeights:
    """How the parts of an observation are weighed; each part's rows share its weight."""

    eta: float = 0.03  # η: distance off the surface of the two samples along the normal, canonical units
    surface: float = 1.0
    free: float = 2.0
    background: float = 8.0


def rows_of(
    observation: Observation,
    counts: tuple[int, int],
    skin: float,
    weights: RowWeights,
    device: torch.device,
    seed: int = 0,
) -> Rows:
    """Random rows of an observation: about `counts[0]` of the surface, `counts[1]` of free space.

    With a skin τ the field is −τ on the surface. The row below the surface is an interval, since a part
    may be thinner than η.
    """
    rng = np.random.default_rng(seed)
    eta, parts = weights.eta, []
    if observation.normals is None:
        on = _pick(observation.surface, counts[0], rng)
        parts.append(_part(observation.surface[on], None, -skin, -skin, weights.surface))
    else:
        on = _pick(observation.surface, counts[0] // 3, rng)
        surface, normals = observation.surface[on], observation.normals[on]
        parts.append(_part(surface, None, -skin, -skin, weights.surface / 3))
        parts.append(_part(surface, eta * normals, eta - skin, eta - skin, weights.surface / 3))
        parts.append(_part(surface, -eta * normals, -eta - skin, -skin, weights.surface / 3))
    for points, weight in ((observation.free, weights.free), (observation.background, weights.background)):
        if len(points):
            some = points[_pick(points, counts[1] // 2, rng)]
            parts.append(_part(some, None, 0.0, np.inf, weight, only_in_ball=True))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    tensors = [torch.from_numpy(column)[None].to(device) for column in columns]
    return Rows(*tensors)


def _pick(points: Array, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.permutation(len(points))[:count]


def _part(
    points: Array,
    offsets: Array | None,
    lower: float,
    upper: float,
    weight: float,
    only_in_ball: bool = False,
) -> tuple[NDArray[np.float32] | NDArray[np.bool_], ...]:
    count = len(points)
    return (
        points.astype(np.float32),
        (np.zeros_like(points) if offsets is None else offsets).astype(np.float32),
        np.full(count, lower, np.float32),
        np.full(count, upper, np.float32),
        np.full(count, weight / count, np.float32),
        np.full(count, only_in_ball),
    )
