"""Meshes: their way into another frame and into a GLB file."""

from __future__ import annotations

import io

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from model.frame import Similarity
from model.mesh import Mesh, to_glb, to_trimesh


@pytest.fixture
def ball() -> Mesh:
    """An icosphere of radius 0.5 with its exact normals."""
    body = trimesh.creation.icosphere(2, 0.5)
    vertices = np.asarray(body.vertices, np.float32)
    return Mesh(vertices, np.asarray(body.faces, np.int32), 2 * vertices)


def test_a_moved_mesh_keeps_its_faces_its_types_and_its_outward_side(ball: Mesh) -> None:
    way = Similarity(
        200.0, Rotation.random(rng=np.random.default_rng(0)).as_matrix(), np.array([10.0, 500, 3])
    )
    moved = ball.moved(way)
    assert (moved.vertices.dtype, moved.faces.dtype) == (np.float32, np.int32)
    assert np.allclose((moved.vertices - way.translation) / 100, moved.normals, atol=1e-4)
    assert np.isclose(to_trimesh(moved).volume, 200**3 * to_trimesh(ball).volume, rtol=1e-4)


def test_a_mesh_without_normals_stays_without(ball: Mesh) -> None:
    assert Mesh(ball.vertices, ball.faces).moved(Similarity(1, np.eye(3), np.zeros(3))).normals is None


def test_a_glb_read_by_another_program_is_the_same_mesh(ball: Mesh) -> None:
    content = to_glb(ball)
    assert content[:4] == b"glTF" and int.from_bytes(content[8:12], "little") == len(content)
    scene = trimesh.load(io.BytesIO(content), file_type="glb", process=False)
    (read,) = scene.geometry.values()
    assert np.array_equal(read.vertices, ball.vertices)
    assert np.array_equal(read.faces, ball.faces)
    assert np.allclose(read.vertex_normals, ball.normals, atol=1e-6)
    assert read.is_watertight


def test_trimesh_neither_merges_nor_sorts_our_vertices(ball: Mesh) -> None:
    doubled = Mesh(np.concatenate([ball.vertices, ball.vertices[:5]]), ball.faces)
    assert np.array_equal(to_trimesh(doubled).vertices, doubled.vertices)
