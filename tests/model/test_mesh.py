"""Meshes: their way into another frame and into a GLB file."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial.transform import Rotation

from model.frame import Similarity
from model.mesh import (
    Mesh,
    Triangles,
    components_of,
    distances_to,
    is_closed,
    parts_of,
    simplified,
    to_glb,
    to_trimesh,
    volume_of,
)


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


@pytest.mark.parametrize("faces", [2000, 300, 60])
def test_a_closed_mesh_of_thin_parts_stays_closed_with_fewer_faces(faces: int) -> None:
    """A table of thin boards: plain edge collapse glues their sides together."""
    inside = np.zeros((40, 40, 40), bool)
    inside[4:36, 4:36, 30:32] = True
    for x in (5, 33):
        for y in (5, 33):
            inside[x : x + 2, y : y + 2, 4:31] = True
    body = trimesh.voxel.ops.matrix_to_marching_cubes(inside)
    table = Mesh(np.asarray(body.vertices, np.float32), np.asarray(body.faces, np.int32))
    assert to_trimesh(table).is_watertight and len(table.faces) > 2000
    few = simplified(table, faces)
    assert len(few.faces) <= faces
    assert to_trimesh(few).is_watertight
    assert to_trimesh(few).volume == pytest.approx(to_trimesh(table).volume, rel=0.1)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_mesh_is_closed_where_trimesh_says_so(missing: int, ball: Mesh) -> None:
    mesh = replace(ball, faces=ball.faces[missing:])
    assert is_closed(mesh) == to_trimesh(mesh).is_watertight == (missing == 0)
    twice = replace(ball, faces=np.concatenate([ball.faces, ball.faces[:1]]))
    assert not is_closed(twice) and not to_trimesh(twice).is_watertight


def test_the_volume_is_that_of_trimesh_wherever_the_mesh_is(ball: Mesh) -> None:
    for place in ([0, 0, 0], [3, -2, 1], [4096, 0, 512]):
        moved = replace(ball, vertices=(ball.vertices + place).astype(np.float32))
        body = trimesh.Trimesh(moved.vertices.astype(float) - place, moved.faces, process=False)
        assert volume_of(moved) == pytest.approx(body.volume, rel=1e-9)


def test_distances_are_those_to_faces_not_to_vertices() -> None:
    body = trimesh.creation.box((2, 2, 2))
    box = Mesh(np.asarray(body.vertices, np.float32), np.asarray(body.faces, np.int32))
    distances, nearest = distances_to(box, np.array([[0.8, 0.9, 1.5], [0.0, 0.0, 0.0], [2.0, 2.0, 1.0]]))
    assert distances == pytest.approx([0.5, 1.0, np.sqrt(2)])
    assert box.vertices[nearest[0]] == pytest.approx([1, 1, 1])


def triangles(mesh: Mesh) -> Triangles:
    """The same in the making, each vertex with a normal and a deviation that tell it from others."""
    vertices = torch.from_numpy(mesh.vertices)
    faces = torch.from_numpy(mesh.faces).long()
    return Triangles(vertices, faces, 2 * vertices, torch.arange(len(vertices)).float())


def test_what_vertices_carry_stays_with_them_when_parts_go(ball: Mesh) -> None:
    far = np.concatenate([0.01 * ball.vertices - [2, 0, 0], ball.vertices], dtype=np.float32)
    two = Mesh(far, np.concatenate([ball.faces, ball.faces + len(ball.vertices)], dtype=np.int32))
    kept = components_of(triangles(two), 0.01).mesh()
    assert np.array_equal(kept.vertices, ball.vertices) and np.array_equal(kept.faces, ball.faces)
    assert kept.normals is not None and np.array_equal(kept.normals, 2 * ball.vertices)
    assert kept.deviation is not None
    assert np.array_equal(kept.deviation, len(ball.vertices) + np.arange(len(ball.vertices)))


def test_a_mesh_in_the_making_moves_as_one_that_is_made(ball: Mesh) -> None:
    turn = trimesh.transformations.random_rotation_matrix(np.array([0.2, 0.5, 0.9]))[:3, :3]
    way = Similarity(2.5, turn, np.array([100.0, -3.0, 0.5]))
    made, moved = triangles(ball).mesh().moved(way), triangles(ball).moved(way).mesh()
    assert moved.normals is not None and made.normals is not None
    assert np.allclose(moved.vertices, made.vertices, rtol=1e-6, atol=1e-6)
    assert np.allclose(moved.normals, made.normals, rtol=0, atol=1e-6)
    assert moved.deviation is not None and made.deviation is not None
    assert np.allclose(moved.deviation, made.deviation, rtol=1e-6)


def test_parts_stay_whose_area_is_a_share_of_the_largest(ball: Mesh) -> None:
    def beside(mesh: Mesh, radius: float, x: float) -> Mesh:
        vertices = np.concatenate([mesh.vertices, 2 * radius * ball.vertices + [x, 0, 0]], dtype=np.float32)
        return Mesh(vertices, np.concatenate([mesh.faces, ball.faces + len(mesh.vertices)], dtype=np.int32))

    three = beside(beside(Mesh(ball.vertices, ball.faces), 0.1, 1.0), 0.04, 2.0)  # areas 1, 0.04 and 0.0064
    for share, count in ((0.0, 3), (0.01, 2), (0.1, 1), (1.0, 1)):
        kept = components_of(triangles(three), share).mesh()
        assert to_trimesh(kept).body_count == count
        assert to_trimesh(kept).is_watertight
    assert [parts_of(three, share) for share in (0.0, 0.01, 0.1)] == [3, 2, 1]


def test_a_part_of_which_nothing_was_seen_goes(ball: Mesh) -> None:
    far = np.concatenate([ball.vertices, 0.5 * ball.vertices + [2, 0, 0]], dtype=np.float32)
    two = Mesh(far, np.concatenate([ball.faces, ball.faces + len(ball.vertices)], dtype=np.int32))
    points = two.vertices.astype(float)
    for seen, count in ((points, 2), (ball.vertices.astype(float), 1), (points[len(ball.vertices) :], 2)):
        assert to_trimesh(components_of(triangles(two), 0.01, seen).mesh()).body_count == count
    stray = np.concatenate([np.repeat(points[:1], 5000, axis=0), points[-1:]])
    assert to_trimesh(components_of(triangles(two), 0.01, stray).mesh()).body_count == 1


@pytest.mark.parametrize(("gap", "count"), [(0.03, 2), (0.3, 1)])
def test_an_unseen_part_stays_that_stands_next_to_a_seen_one(ball: Mesh, gap: float, count: int) -> None:
    """As a leg does whose joint was made too thin. The box's diagonal is about 2."""
    radius = float(ball.vertices[:, 0].max())
    other = 0.5 * ball.vertices + [1.5 * radius + gap, 0, 0]
    far = np.concatenate([ball.vertices, other], dtype=np.float32)
    two = Mesh(far, np.concatenate([ball.faces, ball.faces + len(ball.vertices)], dtype=np.int32))
    kept = components_of(triangles(two), 0.01, ball.vertices.astype(float))
    assert to_trimesh(kept.mesh()).body_count == count


def test_a_glb_compressed_with_draco_is_smaller_and_as_closed(ball: Mesh) -> None:
    mesh = replace(ball, deviation=np.ones(len(ball.vertices), np.float32))
    content = to_glb(mesh, draco=True)
    assert b"KHR_draco_mesh_compression" in content and b"_DEVIATION" not in content
    assert len(content) < 0.7 * len(to_glb(mesh))
    scene = trimesh.load(io.BytesIO(content), file_type="glb", process=False)
    (read,) = scene.geometry.values()
    assert read.is_watertight
    assert distances_to(ball, np.asarray(read.vertices, float))[0].max() < 1e-3
