"""Solids as a sensor sees them: what a scan holds when all of the truth is known."""

from __future__ import annotations

import functools

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from shapes import SignedDistance, ball_points, gradient, surface_points

from model.frame import Similarity
from model.mesh import Mesh
from model.observation import View

Array = NDArray[np.float64]

EYE = (0.6, 0.9, 2.6)
"""In front of a solid and above it."""


@functools.cache
def half_seen(
    solid: SignedDistance, eye: tuple[float, float, float] = EYE, count: int = 3000, seed: int = 0
) -> View:
    """What a sensor at `eye` sees of a convex solid, in the solid's frame, and the rays that pass it."""
    rng, at = np.random.default_rng(seed), np.array(eye)
    points = surface_points(solid, count, rng)
    points = points[np.einsum("ij,ij->i", gradient(solid, points), at - points) > 0]
    rays = ball_points(400, rng) * 1.3 - at
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    along = np.linspace(1, 4.5, 300)[:, None, None]
    nearest = np.min([solid(at + step * rays) for step in along], axis=0)
    return View(points, viewpoint=at, background=rays[nearest > 0.02])


def moved(view: View, to: Similarity) -> View:
    """The same view in another frame and unit."""
    return View(
        to.apply(view.points),
        None if view.normals is None else to.turn(view.normals),
        None if view.viewpoint is None else to.apply(view.viewpoint[None])[0],
        None if view.background is None else to.turn(view.background),
        view.colors,
    )


def distances_to(mesh: Mesh, points: Array) -> Array:
    """Exact distances (N,) of (N, 3) points to the nearest of a mesh's triangles, which are of one size."""
    triangles = mesh.vertices[mesh.faces].astype(float)
    near = cKDTree(triangles.mean(axis=1)).query(points, k=12)[1]
    repeated = np.repeat(points, near.shape[1], axis=0)
    closest = trimesh.triangles.closest_point(triangles[near.ravel()], repeated)
    return np.asarray(np.linalg.norm(closest - repeated, axis=1).reshape(near.shape).min(axis=1))


def about_y(degrees: float) -> Array:
    """The rotation (3, 3) about the vertical; +z turns towards +x."""
    angle = np.radians(degrees)
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def yaw_of(rotation: Array) -> float:
    """The turn of a rotation (3, 3) about the vertical, degrees."""
    return float(np.degrees(np.arctan2(rotation[0, 2] - rotation[2, 0], rotation[0, 0] + rotation[2, 2])))
