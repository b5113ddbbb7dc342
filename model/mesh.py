"""A triangle mesh as plain arrays, and its way into a GLB file."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import trimesh
from numpy.typing import NDArray

from model.frame import Similarity


@dataclass(frozen=True)
class Mesh:
    """Triangles with outward orientation (counter-clockwise seen from outside)."""

    vertices: NDArray[np.float32]  # (V, 3)
    faces: NDArray[np.int32]  # (F, 3)
    normals: NDArray[np.float32] | None = None  # (V, 3) unit, outward
    colors: NDArray[np.uint8] | None = None  # (V, 4) red, green, blue, opacity: sRGB
    deviation: NDArray[np.float32] | None = None  # (V,) standard deviation along the normal, mesh's unit

    def moved(self, to: Similarity) -> Mesh:
        """The same mesh in another frame and unit."""
        return replace(
            self,
            vertices=to.apply(self.vertices).astype(np.float32),
            normals=None if self.normals is None else to.turn(self.normals).astype(np.float32),
            deviation=None if self.deviation is None else (to.scale * self.deviation).astype(np.float32),
        )


def to_trimesh(mesh: Mesh) -> trimesh.Trimesh:
    """The mesh as a trimesh object that shares vertices exactly as ours does."""
    return trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_normals=mesh.normals, process=False)


def to_glb(mesh: Mesh) -> bytes:
    """The mesh as binary glTF 2.0, vertices in the mesh's own frame and unit."""
    material = trimesh.visual.material.PBRMaterial(
        baseColorFactor=[0.72, 0.74, 0.78, 1.0], metallicFactor=0.0, roughnessFactor=0.8
    )
    body = to_trimesh(mesh)
    body.visual = trimesh.visual.TextureVisuals(material=material)
    return bytes(trimesh.Scene(body).export(file_type="glb"))
