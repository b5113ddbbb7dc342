"""Signed distances of meshes that are not watertight: which side of the surface is inside?

Designers' meshes are open shells, overlapping parts, doubled and flipped faces: neither winding numbers nor
normals can be trusted. Two rules can, and each errs to one side only; inside is what either calls so:

- flood: the surface is drawn into a grid of voxels and the outside flooded. A hole as wide as a voxel lets
  the flood into a solid part; it never calls open space inside, except behind gaps narrower than a voxel.
- sight (DeepSDF's virtual cameras all around): what is seen from afar is outside. Holes matter little, as few
  cameras see through one. It fills only what is hidden between parts: behind a cushion, in an open tube.

A closed surface has no holes for the flood to come in by. There the flood alone is right, and sight, which
would fill deep recesses, is not asked.

Frame of all points and triangles: normalised, within the ball of radius 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import igl
import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from numpy.typing import NDArray
from scipy import ndimage

from model.training.deform import bisected, edge_lengths

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

VOXEL = 2 / 256
HALF_DIAGONAL = VOXEL * 3**0.5 / 2
OUTSIDE, INSIDE, SURFACE = np.uint8(0), np.uint8(1), np.uint8(2)

CAMERAS = 100
SEEN = 2  # cameras that must agree: a single one may look through the crack between two faces
FAR = 4.0  # longer than any way through the ball


def directions(count: int) -> Floats:
    """Unit vectors (count, 3) spread evenly over the sphere (Fibonacci); the first few are spread as well."""
    k = np.arange(count)
    height = 1 - (2 * k + 1) / count
    angle = np.pi * (3 - np.sqrt(5)) * k
    ring = np.sqrt(1 - height * height)
    sphere = np.stack([ring * np.cos(angle), ring * np.sin(angle), height], axis=1)
    return sphere[np.random.default_rng(0).permutation(count)]


CAMERA_DIRECTIONS = directions(CAMERAS)
LOOKS = np.concatenate([3 * VOXEL * directions(26), 9 * VOXEL * directions(26)])


class Solid:
    """The signed distance to one surface of triangles (T, 3, 3): exact, negative inside."""

    def __init__(self, triangles: Floats) -> None:
        self.triangles = triangles
        self.closed = is_closed(triangles)
        self.flood = Flood.of(triangles)
        self.sight = Sight(triangles)
        self._corners = np.ascontiguousarray(triangles.reshape(-1, 3), np.float64)
        self._faces = np.arange(len(self._corners), dtype=np.int64).reshape(-1, 3)
        self._tree = igl.AABB()
        self._tree.init(self._corners, self._faces)

    def signed_distance(self, points: Floats) -> Floats:
        """Signed distances (N,) of points (N, 3)."""
        order = np.lexsort(np.floor(points / (4 * VOXEL)).T)  # neighbours walk the tree alike: twice as fast
        distances, nearest = self.nearest(points[order])
        inside = self.flood.inside(points[order], nearest, self.sight)
        unknown = np.flatnonzero(~inside)
        inside[unknown] = self.cameras(points[order][unknown], most=SEEN) < SEEN
        signed = np.empty(len(points))
        signed[order] = np.where(inside, -distances, distances)
        return signed

    def cameras(self, points: Floats, most: int = CAMERAS) -> NDArray[np.int64]:
        """How many of the far cameras see each of points (N, 3), (N,), up to `most`.

        All, if the surface is closed: what the flood reaches there is outside, seen or not.
        """
        return np.full(len(points), most) if self.closed else self.sight.cameras(points, most)

    def nearest(self, points: Floats) -> tuple[Floats, Floats]:
        """Distances (N,) of points (N, 3) to the surface, and its nearest points (N, 3)."""
        squared, _, nearest = self._tree.squared_distance(self._corners, self._faces, points)
        return np.sqrt(squared), nearest


class Sight:
    """What can be seen from where, past one surface of triangles (T, 3, 3)."""

    def __init__(self, triangles: Floats) -> None:
        self._scene = EmbreeScene(robust=True)
        corners = np.ascontiguousarray(triangles.reshape(-1, 3), np.float32)
        TriangleMesh(self._scene, corners, np.arange(len(corners), dtype=np.int32).reshape(-1, 3))

    def free(self, origins: Floats, steps: Floats) -> Booleans:
        """Whether nothing lies between origins (N, 3) and origins + steps (N, 3)."""
        lengths = np.linalg.norm(steps, axis=1).astype(np.float32)
        rays = np.ascontiguousarray(steps, np.float32) / np.maximum(lengths, 1e-12)[:, None]
        hit = self._scene.run(origins.astype(np.float32), rays, dists=lengths, query="OCCLUDED")
        return np.asarray(hit < 0, bool)

    def cameras(self, points: Floats, most: int = CAMERAS) -> NDArray[np.int64]:
        """How many of the far cameras see each of points (N, 3), (N,); counts up to `most`."""
        counts = np.zeros(len(points), np.int64)
        rest = np.arange(len(points))
        for camera in CAMERA_DIRECTIONS:
            counts[rest] += self.free(points[rest], np.broadcast_to(FAR * camera, (len(rest), 3)))
            rest = rest[counts[rest] < most]
        return counts


@dataclass(frozen=True)
class Flood:
    """A grid of voxels around one surface, flooded from outside."""

    origin: Floats  # (3,) corner of voxel (0, 0, 0)
    states: NDArray[np.uint8]  # (X, Y, Z) OUTSIDE, INSIDE or SURFACE; the border is outside

    @classmethod
    def of(cls, triangles: Floats) -> Flood:
        """Draw triangles (T, 3, 3) into the grid and flood it."""
        drawn = drawn_points(triangles, 0.8 * VOXEL)
        origin = triangles.min(axis=(0, 1)) - 1.5 * VOXEL
        index = ((drawn - origin) / VOXEL).astype(np.int64)
        states = np.zeros(((triangles.max(axis=(0, 1)) - origin) / VOXEL).astype(int) + 3, np.uint8)
        states[tuple(index.T)] = SURFACE
        components, _ = ndimage.label(states == OUTSIDE)
        states[(components != components[0, 0, 0]) & (states == OUTSIDE)] = INSIDE
        return cls(origin, states)

    def at(self, points: Floats) -> tuple[NDArray[np.uint8], Floats]:
        """States (N,) and centres (N, 3) of the voxels of points (N, 3), or nearest to them."""
        index = np.floor((points - self.origin) / VOXEL).astype(np.int64)
        np.clip(index, 0, np.array(self.states.shape) - 1, out=index)
        return self.states[tuple(index.T)], self.origin + (index + 0.5) * VOXEL

    def inside(self, points: Floats, nearest: Floats, sight: Sight) -> Booleans:
        """Whether points (N, 3) are inside: (N,); `nearest` (N, 3) are their nearest surface points.

        A point takes the state of an undrawn voxel whose centre it sees: of its own, else of one it finds by
        looking away from the surface, then around. What sees none is in a part as thin as a voxel: inside.
        """
        away = points - nearest
        distances = np.linalg.norm(away, axis=1)
        states, _ = self.at(points)
        states[distances < HALF_DIAGONAL] = SURFACE
        rest = np.flatnonzero(states == SURFACE)
        away /= np.maximum(distances, 1e-12)[:, None]
        for look in (0 * away, 1.5 * VOXEL * away, 3 * VOXEL * away, *LOOKS):
            steps = np.broadcast_to(look, points.shape)[rest]
            there, centres = self.at(points[rest] + steps)
            tried = np.flatnonzero(there != SURFACE)
            met = tried[sight.free(points[rest[tried]], centres[tried] - points[rest[tried]])]
            states[rest[met]] = there[met]
            rest = np.delete(rest, met)
        return np.asarray(states != OUTSIDE, bool)


def is_closed(triangles: Floats) -> bool:
    """Whether every edge of triangles (T, 3, 3) is shared by an even number of them: a surface without rim.

    Where two triangles are the same it is not: an open shell that was drawn with two sides has no rim either.
    """
    _, corner = np.unique(triangles.reshape(-1, 3).round(7), axis=0, return_inverse=True)
    faces = np.sort(corner.reshape(-1, 3), axis=1)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [0, 2]]])
    _, sharing = np.unique(edges, axis=0, return_counts=True)
    return bool((sharing % 2 == 0).all()) and len(np.unique(faces, axis=0)) == len(faces)


def drawn_points(triangles: Floats, spacing: float) -> Floats:
    """Points (N, 3) on triangles (T, 3, 3) such that no place on them is over 0.58 · spacing from one.

    Below half a voxel, as here, the surface cannot pass between the centres of neighbouring undrawn voxels:
    a closed surface does not leak. It may cut a corner of an undrawn voxel; centres can be relied on.
    """
    pieces = bisected(triangles, 8 * spacing, most=10_000_000)
    cuts = np.maximum(np.ceil(edge_lengths(pieces).max(axis=1) / spacing).astype(int), 1)
    return np.concatenate([(_lattice(n) @ pieces[cuts == n]).reshape(-1, 3) for n in np.unique(cuts)])


def _lattice(cuts: int) -> Floats:
    """Barycentric weights (M, 3) of the corners of a triangle cut into cuts² equal ones."""
    i, j = np.nonzero(np.tri(cuts + 1)[::-1])
    return np.stack([i, j, cuts - i - j], axis=1) / cuts
