"""A small picture of a completed mesh with the points of its scan, by nothing but a z-buffer in numpy."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.mesh import Mesh

Array = NDArray[np.float64]

WIDTH, HEIGHT = 320, 240
FINER = 2
"""Drawn so many times larger, for smooth edges."""
SAMPLES = 250_000
"""Points on the surface that are drawn: several for each pixel that the object covers."""
MAX_SCAN_POINTS = 700
GREY, ORANGE = np.array([184.0, 189.0, 199.0]), np.array([232.0, 106.0, 23.0])
LIGHT = np.array([0.35, 0.75, 0.55]) / np.linalg.norm([0.35, 0.75, 0.55])  # in the camera's frame
CAMERA_TURN, CAMERA_TILT = np.radians(35.0), np.radians(20.0)


def picture(mesh: Mesh, points: Array, up: Array | None = None) -> bytes:
    """A PNG, transparent around the object; `up` (3, 3) turns the frame of mesh and points (N, 3) to +y."""
    turn = _camera() @ (np.eye(3) if up is None else up)
    surface, shades = _surface(mesh, turn)
    seen = points[:: max(1, len(points) // MAX_SCAN_POINTS)] @ turn.T
    canvas = _Canvas(np.concatenate([surface, seen]))
    canvas.draw(surface, shades)
    seen[:, 2] += 2 / canvas.scale  # of what lies on the surface the points are seen
    canvas.draw(seen, np.broadcast_to(ORANGE, seen.shape))
    return canvas.png()


def _camera() -> Array:
    """From an upright frame to the camera's: x right, y up, z towards the eye."""
    cos, sin = np.cos(CAMERA_TURN), np.sin(CAMERA_TURN)
    turn = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
    cos, sin = np.cos(CAMERA_TILT), np.sin(CAMERA_TILT)
    return np.asarray(np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ turn)


def _surface(mesh: Mesh, turn: Array) -> tuple[Array, Array]:
    """Points (S, 3) spread evenly over the surface, in the camera's frame, and their shaded RGB (S, 3)."""
    corners = (mesh.vertices.astype(float) @ turn.T)[mesh.faces]  # (F, 3, 3)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    areas = np.linalg.norm(normals, axis=1)
    rng = np.random.default_rng(0)
    faces = np.searchsorted(np.cumsum(areas) / areas.sum(), np.sort(rng.random(SAMPLES)))
    faces = np.minimum(faces, len(areas) - 1)
    root, share = np.sqrt(rng.random(SAMPLES)), rng.random(SAMPLES)
    weights = np.stack([1 - root, root * (1 - share), root * share], axis=1)  # even over each triangle
    lit = np.maximum(normals @ LIGHT / np.maximum(areas, 1e-300), 0)
    colors = np.broadcast_to(GREY, (SAMPLES, 3))
    if mesh.colors is not None:
        nearest = weights.argmax(axis=1)
        colors = mesh.colors[mesh.faces[faces, nearest], :3].astype(float)
    places = np.einsum("sc,scx->sx", weights, corners[faces])
    return places, colors * (0.4 + 0.6 * lit[faces])[:, None]


class _Canvas:
    """Pixels, what is nearest in each, and where the world lies on them."""

    def __init__(self, everything: Array) -> None:
        low, high = everything.min(axis=0), everything.max(axis=0)
        self.size = FINER * HEIGHT, FINER * WIDTH
        self.middle = (low + high) / 2
        self.scale = 0.9 * min(self.size[1] / (high[0] - low[0]), self.size[0] / (high[1] - low[1]))
        self.image = np.zeros((*self.size, 4))
        self.depth = np.full(self.size, -np.inf)

    def draw(self, points: Array, colors: Array) -> None:
        """Points (N, 3) of the camera's frame as squares of three by three, the nearest on top."""
        order = points[:, 2].argsort()  # of several in one pixel the last is kept
        points, colors = points[order], colors[order]
        across = self.scale * (points - self.middle)
        columns = (self.size[1] / 2 + across[:, 0]).astype(int)
        rows = (self.size[0] / 2 - across[:, 1]).astype(int)
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                self._put(rows + down, columns + right, points[:, 2], colors)

    def _put(self, rows: NDArray[np.int_], columns: NDArray[np.int_], depth: Array, colors: Array) -> None:
        inside = (rows >= 0) & (rows < self.size[0]) & (columns >= 0) & (columns < self.size[1])
        rows, columns, depth, colors = rows[inside], columns[inside], depth[inside], colors[inside]
        nearer = depth > self.depth[rows, columns]
        rows, columns = rows[nearer], columns[nearer]
        self.depth[rows, columns] = depth[nearer]
        self.image[rows, columns, :3], self.image[rows, columns, 3] = colors[nearer], 255

    def png(self) -> bytes:
        """The picture, made smaller."""
        blocks = self.image.reshape(HEIGHT, FINER, WIDTH, FINER, 4)
        alpha = blocks[..., 3:].mean(axis=(1, 3))
        color = (blocks[..., :3] * blocks[..., 3:] / 255).mean(axis=(1, 3)) / np.maximum(alpha / 255, 1e-9)
        pixels = np.concatenate([np.minimum(color, 255), alpha], axis=2).round().astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels, "RGBA").save(buffer, "PNG", optimize=True)
        return buffer.getvalue()
