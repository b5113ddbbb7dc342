"""What evaluation gives to a method, and what is true: original meshes, and frames of a depth camera."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import igl
import numpy as np
import trimesh
from numpy.typing import NDArray

from model.frame import Normalization, normalization_of
from model.mesh import Mesh
from model.metrics import NAN, intersection_over_union
from model.training.samples import FRAGILE_CAMERAS, areas
from model.training.shapes import Shape
from model.training.signs import SEEN, Solid
from model.training.views import Camera, View, depth_view, viewpoints, with_inverse_depth_noise

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

VIEWS = 16
"""Places of the camera around a shape, numbered; numbers that follow each other are far apart."""

VOLUME_POINTS = 30_000
FEWEST_INSIDE = 50
"""Of the volume points: a shape of thin sheets has fewer inside, and no volume to speak of."""


def true_shape(shape: Shape, data: Path) -> tuple[trimesh.Trimesh, Normalization]:
    """The original mesh in the unit-ball frame, and the way into it."""
    return normalized_mesh(shape.path(data))


def normalized_mesh(file: Path) -> tuple[trimesh.Trimesh, Normalization]:
    """A mesh file in the unit-ball frame, and the way into it."""
    mesh = trimesh.load_mesh(file, process=False)
    normalization = normalization_of(np.asarray(mesh.vertices))
    mesh.vertices = normalization.apply(mesh.vertices)
    return mesh, normalization


@dataclass(frozen=True)
class Truth:
    """An original mesh in the unit-ball frame, and what is inside of it."""

    mesh: trimesh.Trimesh
    normalization: Normalization

    @cached_property
    def solid(self) -> Solid:
        """The inside as the training samples define it, without the skin."""
        triangles = np.asarray(self.mesh.triangles, float)
        return Solid(triangles[areas(triangles) > 0])

    def sides(self, points: Floats) -> tuple[Booleans, Booleans]:
        """Whether points (N, 3) are inside, and whether that can be said at all: (N,) each.

        Inside is what `model.training.signs` calls so: what the flood does not reach, or cameras do not see.
        It cannot be said where the flood came in but few cameras see it: a leaky mesh's inside.
        """
        _, nearest = self.solid.nearest(points)
        flooded = ~self.solid.flood.inside(points, nearest, self.solid.sight)
        cameras = np.full(len(points), 0)
        cameras[flooded] = self.solid.cameras(points[flooded], most=FRAGILE_CAMERAS + 1)
        inside = ~flooded | (cameras < SEEN)
        return inside, inside | (cameras > FRAGILE_CAMERAS)

    def iou(self, generated: Mesh) -> float:
        """Intersection over union of the volumes, on points uniform in the box of both meshes.

        Inside the generated mesh, which is closed, is where its winding number exceeds a half. Points of
        which the original does not say whether they are inside are left out. NaN if it has no inside.
        """
        low = np.minimum(self.mesh.bounds[0], generated.vertices.min(axis=0))
        high = np.maximum(self.mesh.bounds[1], generated.vertices.max(axis=0))
        points = np.random.default_rng(4).uniform(low, high, (VOLUME_POINTS, 3))
        inside, known = self.sides(points)
        if np.count_nonzero(inside) < FEWEST_INSIDE:
            return NAN
        made = inside_of(generated, points[known])
        return intersection_over_union(made, inside[known])


@lru_cache(maxsize=4)
def truth_of(file: Path) -> Truth:
    """Of a mesh file, kept for the next views of it."""
    return Truth(*normalized_mesh(file))


def inside_of(mesh: Mesh, points: Floats) -> Booleans:
    """Whether points (N, 3) are inside a closed mesh: (N,)."""
    faces = np.asarray(mesh.faces, np.int64)
    return np.asarray(igl.fast_winding_number(mesh.vertices.astype(float), faces, points) > 0.5)


def one_view(true: trimesh.Trimesh, normalization: Normalization, view: int, views: int = VIEWS) -> View:
    """One frame of a depth camera looking at the shape in its own metres, by number."""
    raw = true.copy()
    raw.vertices = normalization.invert(true.vertices)
    centre = -normalization.offset
    eye = centre + viewpoints(views, seed=1, radius=1 / normalization.scale)[view]
    return depth_view(raw, eye, target=centre, width=160, height=120)


def several_views(truth: Truth, first: int, count: int = 3) -> Sequence[View]:
    """Frames of one depth camera from places all around the shape: numbers `first`, `first` + 1, …"""
    return [one_view(truth.mesh, truth.normalization, (first + k) % VIEWS) for k in range(count)]


def noisy_view(truth: Truth, view: int, alpha: float) -> View:
    """A frame with Gaussian noise of standard deviation `alpha` on the inverse depth.

    `alpha` is in the unit-ball frame, where the camera is 2.5 from the shape: 0.01 moves points by about
    0.06. So it means the same for a lamp and for a car.
    """
    clean = one_view(truth.mesh, truth.normalization, view)
    camera = Camera(clean.intrinsics, clean.camera_to_world)
    rng = np.random.default_rng([view, round(1e6 * alpha)])
    depth = with_inverse_depth_noise(clean.depth, alpha * truth.normalization.scale, rng)
    return View(
        camera.unproject(depth),
        clean.viewpoint,
        clean.background,
        depth,
        clean.intrinsics,
        clean.camera_to_world,
    )
