"""Marching cubes over crossed cells, beside scikit-image's over the whole grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes
from torch import Tensor

from model.marching import FARTHEST, NEAREST, Piece, marched

CELL = 0.25


def crossed_cells(values: Tensor) -> Tensor:
    below = (values < 0).float()[None, None]
    share = torch.nn.functional.avg_pool3d(below, 2, 1)[0, 0]
    return (share > 0) & (share < 1)


def as_scikit_image_has_it(values: Tensor) -> tuple[np.ndarray, np.ndarray]:
    size = (values / CELL).abs().clamp(NEAREST, FARTHEST)
    volume = torch.where(values < 0, -size, size).numpy()
    vertices, faces, _, _ = marching_cubes(volume, level=0.0, gradient_direction="descent")
    return vertices, faces


def turned(faces: np.ndarray) -> set[tuple[int, ...]]:
    """Triangles, each from its lowest corner on."""
    first = faces.argmin(axis=1)[:, None]
    return set(map(tuple, np.take_along_axis(faces, (first + np.arange(3)) % 3, axis=1).tolist()))


def assert_as_scikit_image(values: Tensor) -> Piece:
    values = torch.nn.functional.pad(values, 6 * (1,), value=CELL)  # each edge that is cut is some cell's own
    found = marched(values, crossed_cells(values).nonzero(), CELL)
    vertices, faces = as_scikit_image_has_it(values)
    distance, number = cKDTree(vertices).query(found.vertices.numpy())
    assert distance.max() < 1e-5
    assert sorted(number) == list(range(len(vertices)))
    assert torch.isin(found.corners, found.places).all()
    assert turned(number[torch.searchsorted(found.places, found.corners).numpy()]) == turned(faces)
    assert len(found.corners) == len(faces)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_of_noise_every_case_comes_out_the_same(seed: int) -> None:
    """A grid of noise has all signs of corners, and all ways of a surface through what they leave open."""
    assert_as_scikit_image(torch.randn(23, 17, 31, generator=torch.Generator().manual_seed(seed)))


def test_some_of_noise_has_vertices_inside_of_cells() -> None:
    found = assert_as_scikit_image(torch.randn(23, 17, 31, generator=torch.Generator().manual_seed(0)))
    inside = found.places % 4 == 3
    assert 0 < inside.sum() < 0.05 * len(inside)
    off_planes = (found.vertices != found.vertices.round()).sum(dim=1)
    assert ((off_planes == 3) == inside).all() and (off_planes[~inside] == 1).all()


def test_values_of_zero_and_huge_ones_make_no_vertex_on_a_corner() -> None:
    values = torch.randn(12, 12, 12, generator=torch.Generator().manual_seed(0))
    values[::3], values[1::3] = values[::3].clamp(min=0), 1e9 * values[1::3]
    found = assert_as_scikit_image(values)
    assert (found.vertices != found.vertices.round()).any(dim=1).all()


def test_only_the_cells_named_are_looked_at() -> None:
    values = torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(0))
    assert len(marched(values, torch.empty(0, 3, dtype=torch.long)).corners) == 0
    one = marched(values, torch.tensor([[2, 3, 4]]))
    assert len(one.corners)
    assert (one.vertices >= torch.tensor([2, 3, 4])).all() and (one.vertices <= torch.tensor([3, 4, 5])).all()
    first = torch.stack(torch.unravel_index(one.corners // 4, values.shape), dim=-1)
    assert (first >= torch.tensor([2, 3, 4])).all() and (first <= torch.tensor([3, 4, 5])).all()
