"""Shapes out of shapes: stretched, bent and mirrored variants of a mesh that stay plausible.

A few hundred designs are few for a prior. A variant is the design another maker could have drawn: other
proportions, softly bent, left and right mostly still alike. Its distances are measured anew on the variant.
Frame: normalised (ball of radius 1), y up, front +z, left-right mirror plane x = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SYMMETRIC_SHARE = 0.8
MIRRORED_SHARE = 0.5
LONGEST_EDGE = 0.08  # a quadratic bend leaves its chord by 4e-4 at most over this length


@dataclass(frozen=True)
class Deformation:
    """A smooth map of the unit ball: stretch along the axes, then a quadratic displacement, then a mirror."""

    stretch: Floats  # (3,) factors
    lattice: Floats  # (3, 3, 3, 3) displacements at the nodes {-1, 0, 1}³, indexed x, y, z
    mirrored: bool  # x → -x

    def __call__(self, points: Floats) -> Floats:
        """Images (N, 3) of points (N, 3)."""
        x, y, z = (_quadratic(points[:, axis]) for axis in range(3))
        weights = x[:, :, None, None] * y[:, None, :, None] * z[:, None, None, :]
        moved = points + weights.reshape(-1, 27) @ self.lattice.reshape(27, 3)
        image: Floats = moved * self.stretch * ((-1.0 if self.mirrored else 1.0), 1.0, 1.0)
        return image


def draw_deformation(rng: np.random.Generator, stretch: float, bend: float) -> Deformation:
    """Draw a deformation: log-stretch U(-stretch, stretch) per axis, lattice displacements N(0, bend²)."""
    factors = np.exp(rng.uniform(-stretch, stretch, size=3))
    # Three deviations would fold the field over itself; two never do.
    lattice = np.clip(rng.normal(scale=bend, size=(3, 3, 3, 3)), -2 * bend, 2 * bend)
    if rng.uniform() < SYMMETRIC_SHARE:
        lattice = symmetrised(lattice)
    return Deformation(factors, lattice, bool(rng.uniform() < MIRRORED_SHARE))


def symmetrised(lattice: Floats) -> Floats:
    """The part of a lattice (3, 3, 3, 3) that commutes with the mirror x → -x, as strong as before."""
    image = lattice[::-1] * np.array([-1.0, 1.0, 1.0])
    half = (lattice + image) / 2
    half[[0, 2]] *= np.sqrt(2)  # the mean of two independent draws is weaker by √2
    return np.asarray(half, np.float64)


def deformed(triangles: Floats, deformation: Deformation) -> Floats:
    """Triangles (T', 3, 3) of a deformed surface; long triangles (of T) are cut first so that they bend."""
    cut = bisected(triangles, LONGEST_EDGE)
    return deformation(cut.reshape(-1, 3)).reshape(-1, 3, 3)


def bisected(triangles: Floats, longest: float, most: int = 400_000) -> Floats:
    """The same surface in triangles (T', 3, 3) without an edge over `longest`.

    Edges are halved, the longest of a triangle first. Whether an edge is halved depends on its length
    alone, so neighbours agree on it and no crack opens when the corners move. Stops at `most` triangles.
    """
    done = [triangles[:0]]
    while len(triangles) and sum(map(len, done)) + len(triangles) <= most:
        edges = edge_lengths(triangles)
        long = edges.max(axis=1) > longest
        done.append(triangles[~long])
        triangles = _halved(triangles[long], edges[long].argmax(axis=1))
    return np.concatenate([*done, triangles])


def edge_lengths(triangles: Floats) -> Floats:
    """Lengths (T, 3) of the edges of triangles (T, 3, 3), each from a corner to the next."""
    lengths: Floats = np.linalg.norm(triangles - np.roll(triangles, -1, axis=1), axis=2)
    return lengths


def _halved(triangles: Floats, edge: NDArray[np.int64]) -> Floats:
    """Both halves (2T, 3, 3) of triangles cut from the middle of the given edge to the corner opposite."""
    rows = np.arange(len(triangles))
    a, b, c = (triangles[rows, (edge + i) % 3] for i in range(3))
    middle = (a + b) / 2
    return np.concatenate([np.stack([a, middle, c], axis=1), np.stack([middle, b, c], axis=1)])


def _quadratic(x: Floats) -> Floats:
    """Lagrange polynomials (N, 3) of the nodes -1, 0, 1 at x (N,)."""
    return np.stack([x * (x - 1) / 2, 1 - x * x, x * (x + 1) / 2], axis=1)
