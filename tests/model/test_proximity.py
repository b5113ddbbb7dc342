"""Distances to a mesh as a GPU finds them, beside a tree of boxes (libigl)."""

from __future__ import annotations

import igl
import numpy as np
import torch
import trimesh

from model.proximity import nearest_on_faces, nearest_on_mesh


def assert_as_igl(body: trimesh.Trimesh, points: np.ndarray) -> None:
    vertices, faces = np.asarray(body.vertices), np.asarray(body.faces)
    squared, _, there = igl.point_mesh_squared_distance(points, vertices, faces)
    corners = torch.from_numpy(vertices[faces])
    distance, face, at = (part.numpy() for part in nearest_on_faces(corners, torch.from_numpy(points)))
    assert np.allclose(distance, np.sqrt(squared), atol=1e-12)
    assert np.allclose(np.linalg.norm(points - at, axis=1), distance, atol=1e-12)
    weights = trimesh.triangles.points_to_barycentric(vertices[faces][face], at)
    assert weights.min() > -1e-9 and np.allclose(weights.sum(axis=1), 1)
    alone = np.abs(at - there).max(axis=1) < 1e-9  # a point in the middle has several nearest ones
    assert alone.mean() > 0.98


def test_they_are_those_of_a_tree_for_fine_and_for_coarse_faces() -> None:
    rng = np.random.default_rng(0)
    ball, box = trimesh.creation.icosphere(4, 0.5), trimesh.creation.box((0.2, 1.0, 0.6))
    near = trimesh.sample.sample_surface(ball, 300, seed=1)[0] + 0.01 * rng.normal(size=(300, 3))
    for body in (ball, box, trimesh.util.concatenate([box, ball])):
        assert_as_igl(body, np.concatenate([near, rng.normal(size=(200, 3)), body.vertices[:50]]))


def test_faces_without_area_are_edges() -> None:
    flat = trimesh.Trimesh(
        [[0, 0, 0], [1, 0, 0], [0.5, 0, 0], [0, 1, 0]], [[0, 1, 2], [0, 0, 3]], process=False
    )
    corners = torch.from_numpy(np.asarray(flat.vertices)[flat.faces])
    distance, _, at = nearest_on_faces(corners, torch.tensor([[0.4, -0.3, 0.0], [-1.0, 0.5, 0.0]]).double())
    assert torch.allclose(distance, torch.tensor([0.3, 1.0]).double(), atol=1e-6)
    assert torch.allclose(at, torch.tensor([[0.4, 0.0, 0.0], [0.0, 0.5, 0.0]]).double(), atol=1e-6)


def test_a_mesh_far_from_its_origin_is_as_good() -> None:
    body = trimesh.creation.icosphere(3, 2.0)
    away = np.array([4e5, -3e6, 100.0])
    points = np.random.default_rng(0).normal(size=(100, 3))
    vertices, faces = np.asarray(body.vertices), np.asarray(body.faces, np.int32)
    here, there = (nearest_on_mesh(vertices + way, faces, points + way) for way in (0 * away, away))
    assert np.allclose(here[0], there[0], atol=1e-8) and np.allclose(here[2] + away, there[2], atol=1e-8)
