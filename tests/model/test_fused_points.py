"""Neighbours and axes by the kernels for a GPU, run by Triton's interpreter, beside a tree and LAPACK."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from model import fused_points

os.environ["TRITON_INTERPRET"] = "1"  # looked at when Triton is imported
pytest.importorskip("triton")

AWAY = np.array([4e5, -3e6, 100.0])


def found(points: np.ndarray, others: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    parts = fused_points.nearest(torch.from_numpy(points), torch.from_numpy(others), count)
    return tuple(part.numpy() for part in parts)


@pytest.mark.parametrize(("size", "count"), [(1, 1), (7, 7), (50, 3), (997, 1), (997, 24), (1200, 160)])
def test_neighbours_are_those_of_a_tree(size: int, count: int) -> None:
    rng = np.random.default_rng(size + count)
    points = rng.normal(size=(size, 3)) + AWAY
    others = np.concatenate(
        [points[:30], AWAY + rng.normal(size=(30, 3)), AWAY + 1e-4 * rng.normal(size=(9, 3))]
    )
    distances, numbers = found(points, others, count)
    true, which = (part.reshape(len(others), -1) for part in cKDTree(points).query(others, k=count))
    assert np.array_equal(numbers, which)
    assert np.allclose(distances, true, atol=1e-14)


def test_of_equal_points_each_is_found_once() -> None:
    points = np.repeat(np.random.default_rng(0).normal(size=(40, 3)), 5, axis=0)
    distances, numbers = found(points, points, 5)
    assert (distances == 0).all()
    assert np.array_equal(np.sort(numbers, axis=1), np.arange(200).reshape(40, 5).repeat(5, axis=0))


def test_others_may_be_few_many_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    points, others = np.random.default_rng(0).normal(size=(2, 60, 3))
    whole = found(points, others, 4)
    monkeypatch.setattr(fused_points, "CELLS", 7 * len(points))
    assert all(np.array_equal(one, other) for one, other in zip(whole, found(points, others, 4), strict=True))
    assert [part.shape for part in found(points, others[:0], 4)] == [(0, 4), (0, 4)]


@pytest.mark.parametrize("spread", [(3, 2, 1), (1, 1, 1e-3), (1, 1, 0), (1, 1e-6, 0), (1, 0, 0), (0, 0, 0)])
def test_points_vary_least_along_the_last_axis_of_lapack(spread: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(0)
    turns = np.linalg.qr(rng.normal(size=(50, 3, 3)))[0]
    patches = rng.normal(size=(50, 24, 3)) * spread @ turns
    points, numbers = torch.from_numpy(patches.reshape(-1, 3)), torch.arange(1200).view(50, 24)
    axes, least, whole = (part.numpy() for part in fused_points.axes(points, numbers))
    covariance = np.stack([np.cov(patch.T, bias=True) for patch in patches])
    assert np.allclose(least, np.linalg.eigvalsh(covariance)[:, 0], atol=1e-14)
    assert np.allclose(whole, patches.var(axis=1).sum(axis=1))
    assert np.allclose(np.linalg.norm(axes, axis=1), 1)
    assert np.allclose(np.einsum("bij,bj->bi", covariance, axes), least[:, None] * axes, atol=1e-12)
