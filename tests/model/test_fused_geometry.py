"""What points and meshes tell, by the kernels for a GPU in Triton's interpreter, beside what a CPU uses."""

from __future__ import annotations

import os

import igl
import numpy as np
import pytest
import torch
import trimesh
from searches import (
    AWAY,
    SPREADS,
    finds_each_of_equal_points_once,
    finds_for_few_many_or_none,
    finds_the_last_axes_of_lapack,
    finds_what_a_tree_finds,
    of_arrays,
)

from model.cleaning import thinned
from model.connected import connected_parts
from model.fused import connected as fused_connected
from model.fused import points as fused_points
from model.fused import proximity as fused_proximity

os.environ["TRITON_INTERPRET"] = "1"  # looked at when Triton is imported
pytest.importorskip("triton")

found = of_arrays(fused_points.nearest)


@pytest.mark.parametrize(("size", "count"), [(1, 1), (7, 7), (50, 3), (997, 1), (997, 24), (1200, 160)])
def test_neighbours_are_those_of_a_tree(size: int, count: int) -> None:
    rng = np.random.default_rng(size + count)
    points = rng.normal(size=(size, 3)) + AWAY
    others = np.concatenate(
        [points[:30], AWAY + rng.normal(size=(30, 3)), AWAY + 1e-4 * rng.normal(size=(9, 3))]
    )
    finds_what_a_tree_finds(found, points, others, count)


def test_of_equal_points_each_is_found_once() -> None:
    finds_each_of_equal_points_once(found)


def test_others_may_be_few_many_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    finds_for_few_many_or_none(found, 60, (fused_points, "CELLS"), monkeypatch)


@pytest.mark.parametrize("spread", SPREADS)
def test_points_vary_least_along_the_last_axis_of_lapack(spread: tuple[float, float, float]) -> None:
    finds_the_last_axes_of_lapack(of_arrays(fused_points.axes), spread)


@pytest.mark.parametrize(("count", "noise"), [(24, 0.01), (50, 0.1), (9, 0.3)])
def test_what_quadrics_leave_is_what_least_squares_leave(count: int, noise: float) -> None:
    rng = np.random.default_rng(count)
    x, y = rng.uniform(-1, 1, (2, 20, count))
    patches = np.stack([x, y, 0.3 * x * x - 0.2 * x * y + 0.1 * y + noise * rng.normal(size=x.shape)], axis=2)
    patches = patches @ np.linalg.qr(rng.normal(size=(20, 3, 3)))[0] + 100
    points, numbers = torch.from_numpy(patches.reshape(-1, 3)), torch.arange(20 * count).view(20, count)
    left = fused_points.off_quadrics(points, numbers, 1e-12)
    for patch, found in zip(patches - patches.mean(axis=1, keepdims=True), left.tolist(), strict=True):
        u, v, w = (patch @ np.linalg.svd(patch)[2].T).T
        terms = np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=1)
        true = w - terms @ np.linalg.lstsq(terms, w)[0]
        assert found == pytest.approx((true**2).sum(), rel=1e-6)


@pytest.mark.parametrize(("cell", "decimals"), [(0.05, 9), (0.3, 9), (2.0, 9), (0.5, 1)])
def test_the_points_of_voxels_are_those_that_torch_chooses(cell: float, decimals: int) -> None:
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(400, 3)).round(decimals))
    assert torch.equal(fused_points.thinned(points, cell), thinned(points, cell))


def test_distances_to_a_mesh_are_those_of_a_tree_of_boxes() -> None:
    rng = np.random.default_rng(0)
    ball, box = trimesh.creation.icosphere(3, 0.5), trimesh.creation.box((0.2, 1.0, 0.6))
    body = trimesh.util.concatenate([box, ball])
    vertices, faces = np.asarray(body.vertices), np.asarray(body.faces, np.int32)
    near = vertices[::40] + 0.01 * rng.normal(size=(len(vertices[::40]), 3))
    points = np.concatenate([near, 3 * rng.normal(size=(20, 3)), vertices[:20]])
    given = (torch.from_numpy(part) for part in (vertices, faces, points))
    distance, face, at = (part.numpy() for part in fused_proximity.nearest(*given))
    squared, _, there = igl.point_mesh_squared_distance(points, vertices, faces)
    assert np.allclose(distance, np.sqrt(squared), atol=1e-12)
    assert np.allclose(np.linalg.norm(points - at, axis=1), distance, atol=1e-12)
    weights = trimesh.triangles.points_to_barycentric(vertices[faces][face], at)
    assert weights.min() > -1e-9 and np.allclose(weights.sum(axis=1), 1)
    assert (np.abs(at - there).max(axis=1) < 1e-9).mean() > 0.95  # the middle of the ball has several


def test_faces_without_area_are_edges() -> None:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0.5, 0, 0], [0, 1, 0]])
    faces = torch.tensor([[0, 1, 2], [0, 0, 3]], dtype=torch.int32)
    points = torch.tensor([[0.4, -0.3, 0.0], [-1.0, 0.5, 0.0]], dtype=torch.float64)
    distance, _, at = fused_proximity.nearest(vertices, faces, points)
    assert torch.allclose(distance, torch.tensor([0.3, 1.0]).double(), atol=1e-6)
    assert torch.allclose(at, torch.tensor([[0.4, 0.0, 0.0], [0.0, 0.5, 0.0]]).double(), atol=1e-6)


@pytest.mark.parametrize(("count", "links"), [(1, 0), (300, 200), (1000, 900), (500, 2000)])
def test_parts_are_those_of_scipy(count: int, links: int) -> None:
    starts, ends = torch.from_numpy(np.random.default_rng(count).integers(0, count, (2, links)))
    parts, first = connected_parts(starts, ends, count), fused_connected.hooked(starts, ends, count)
    assert torch.equal(parts[first], parts) and torch.equal(first.unique(), first[first].unique())
    assert len(first.unique()) == len(parts.unique())


def test_a_long_chain_is_one_part() -> None:
    nodes = torch.from_numpy(np.random.default_rng(0).permutation(700))
    assert not fused_connected.hooked(nodes[:-1], nodes[1:], len(nodes)).any()
