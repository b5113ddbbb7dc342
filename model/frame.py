"""Frames: where a shape sits, and the way between a scan's frame and the canonical frame.

The canonical frame is DeepSDF's: y up, front +z, the shape centred in the ball of radius 1/1.03.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

BALL_RADIUS = 1.0 / 1.03
"""Radius of the ball that holds every normalised shape (DeepSDF's margin of 3 %)."""

UP_AXES = ("+y", "-y", "+z", "-z", "+x", "-x")


@dataclass(frozen=True)
class Normalization:
    """Raw to canonical, in DeepSDF's convention: normalised = (raw + offset) * scale."""

    offset: Array  # (3,) raw unit
    scale: float  # canonical units per raw unit

    def apply(self, points: ArrayLike) -> Array:
        """Map (N, 3) raw points into the canonical frame."""
        return np.asarray((np.asarray(points) + self.offset) * self.scale)

    def invert(self, points: ArrayLike) -> Array:
        """Map (N, 3) canonical points back into the raw frame."""
        return np.asarray(np.asarray(points) / self.scale - self.offset)


def normalization_of(vertices: Array) -> Normalization:
    """Centre the bounding box of (V, 3) vertices and scale the farthest one to `BALL_RADIUS`.

    Raises ValueError if the vertices have no extent.
    """
    centre = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    radius = float(np.linalg.norm(vertices - centre, axis=1).max())
    if not radius > 0:
        raise ValueError("the shape has no extent: all of its vertices coincide")
    return Normalization(offset=-centre, scale=BALL_RADIUS / radius)


@dataclass(frozen=True)
class Similarity:
    """A map of Sim(3): x ↦ scale · rotation · x + translation."""

    scale: float
    rotation: Array  # (3, 3), proper orthogonal
    translation: Array  # (3,) in the target's unit

    def apply(self, points: ArrayLike) -> Array:
        """Map (N, 3) points."""
        return np.asarray(self.scale * np.asarray(points) @ self.rotation.T + self.translation)

    def turn(self, vectors: ArrayLike) -> Array:
        """Rotate (N, 3) direction vectors, which neither move nor stretch."""
        return np.asarray(np.asarray(vectors) @ self.rotation.T)

    def inverse(self) -> Similarity:
        """The map back."""
        rotation = self.rotation.T
        return Similarity(1 / self.scale, rotation, -rotation @ self.translation / self.scale)

    def after(self, first: Similarity) -> Similarity:
        """The map that applies `first` and then this one."""
        return Similarity(
            scale=self.scale * first.scale,
            rotation=self.rotation @ first.rotation,
            translation=self.scale * self.rotation @ first.translation + self.translation,
        )

    def matrix(self) -> Array:
        """The (4, 4) homogeneous matrix."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.scale * self.rotation
        matrix[:3, 3] = self.translation
        return matrix


def upright(up: str | ArrayLike) -> Array:
    """The (3, 3) rotation that turns the scan's `up`, one of `UP_AXES` or a vector (3,), to +y.

    For "-y" it is the half turn about x, which also makes a depth camera's frame (y down, looking
    along +z) one whose z points at the camera, as the front of a canonical shape does. A vector is
    turned the shortest way from the axis nearest to it.
    Raises ValueError for another word and for a vector that is none.
    """
    if not isinstance(up, str):
        return _upright_vector(np.asarray(up, dtype=float))
    rotations = {
        "+y": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        "-y": [[1, 0, 0], [0, -1, 0], [0, 0, -1]],
        "+z": [[1, 0, 0], [0, 0, 1], [0, -1, 0]],
        "-z": [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
        "+x": [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
        "-x": [[0, 1, 0], [-1, 0, 0], [0, 0, 1]],
    }
    if up not in rotations:
        raise ValueError(f"up must be one of {', '.join(UP_AXES)}, not {up!r}")
    return np.array(rotations[up], dtype=float)


def _upright_vector(up: Array) -> Array:
    length = float(np.linalg.norm(up)) if up.shape == (3,) else 0.0
    if not (np.isfinite(length) and length > 0):
        raise ValueError(f"up must be three numbers, not all of them 0, not {up.tolist()}")
    up = up / length
    nearest = int(np.abs(up).argmax())
    axis = np.sign(up[nearest]) * np.eye(3)[nearest]
    # The shortest turn between two unit vectors less than a quarter turn apart (Rodrigues).
    v = np.cross(up, axis)
    cross = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    to_axis = np.eye(3) + cross + cross @ cross / (1 + up @ axis)
    name = ("+" if up[nearest] > 0 else "-") + "xyz"[nearest]
    return np.asarray(upright(name) @ to_axis)
