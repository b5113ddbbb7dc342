"""How near a completed mesh is to the true one (DeepSDF paper, section 6 and supplement).

All take points in the unit-ball frame. Chamfer distance is reported ×10³ by convention; the
functions here return it unscaled.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Array = NDArray[np.float64]

CHAMFER_POINTS = 30_000
COMPLETENESS_DISTANCE = 0.01
ACCURACY_QUANTILE = 0.9


def sample_surface(mesh: trimesh.Trimesh, count: int, seed: int = 0) -> tuple[Array, Array]:
    """Area-weighted surface points (count, 3) and the unit normals (count, 3) of their faces."""
    points, faces = trimesh.sample.sample_surface(mesh, count, seed=seed)
    return np.asarray(points), np.asarray(mesh.face_normals[faces])


def chamfer_distance(a: Array, b: Array) -> float:
    """Mean squared distance from (N, 3) `a` to `b` plus the same from `b` to `a`."""
    to_b, _ = cKDTree(b).query(a)
    to_a, _ = cKDTree(a).query(b)
    return float(np.mean(to_b**2) + np.mean(to_a**2))


@dataclass(frozen=True)
class Comparison:
    """One generated mesh against the true one, in the unit-ball frame."""

    chamfer: float  # two-way mean squared distance
    accuracy: float  # distance within which 90 % of generated points lie of the true surface
    completeness: float  # share of true points within 0.01 of the generated surface
    cosine: float  # mean |cosine| between true normals and those of the nearest generated point

    def to_dict(self) -> dict[str, float]:
        """Plain numbers, Chamfer distance ×10³."""
        return {**asdict(self), "chamfer": 1000 * self.chamfer}


def compare(generated: trimesh.Trimesh, true: trimesh.Trimesh, count: int = CHAMFER_POINTS) -> Comparison:
    """Measure a generated mesh against the true one with `count` points on each.

    The cosine takes absolute values: faces of designers' meshes are often flipped, so the true
    normal's sign says nothing.
    """
    made, made_normals = sample_surface(generated, count, seed=1)
    real, real_normals = sample_surface(true, count, seed=2)
    to_real, _ = cKDTree(real).query(made)
    to_made, nearest = cKDTree(made).query(real)
    return Comparison(
        chamfer=float(np.mean(to_real**2) + np.mean(to_made**2)),
        accuracy=float(np.quantile(to_real, ACCURACY_QUANTILE)),
        completeness=float(np.mean(to_made < COMPLETENESS_DISTANCE)),
        cosine=float(np.mean(np.abs(np.sum(real_normals * made_normals[nearest], axis=1)))),
    )
