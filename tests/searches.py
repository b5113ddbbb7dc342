"""What holds of every search for neighbours, and of every way to find the axes of patches."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor

AWAY = np.array([4e5, -3e6, 100.0])
"""How far points are from the origin where that shall not matter."""

SPREADS = [(3, 2, 1), (1, 1, 1e-3), (1, 1, 0), (1, 1e-6, 0), (1, 0, 0), (0, 0, 0)]
"""Of patches along their axes: from round ones to single points."""

Arrays = tuple[np.ndarray, ...]
Search = Callable[[np.ndarray, np.ndarray, int], Arrays]


def of_arrays(search: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Arrays]:
    """A search of tensors as one of arrays."""

    def found(*arguments: Any) -> Arrays:
        given = (torch.from_numpy(part) if isinstance(part, np.ndarray) else part for part in arguments)
        return tuple(part.numpy() for part in search(*given))

    return found


def finds_what_a_tree_finds(search: Search, points: np.ndarray, others: np.ndarray, count: int) -> None:
    distances, numbers = search(points, others, count)
    true, which = (part.reshape(len(others), -1) for part in cKDTree(points).query(others, k=count))
    assert np.array_equal(numbers, which)
    assert np.allclose(distances, true, atol=1e-14)


def finds_each_of_equal_points_once(search: Search) -> None:
    points = np.repeat(np.random.default_rng(0).normal(size=(40, 3)), 5, axis=0)
    distances, numbers = search(points, points, 5)
    assert (distances == 0).all()
    assert np.array_equal(np.sort(numbers, axis=1), np.arange(200).reshape(40, 5).repeat(5, axis=0))


def finds_for_few_many_or_none(
    search: Search, size: int, at_a_time: tuple[ModuleType, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`at_a_time` names how many pairs are looked at at a time: to be set to a few."""
    points, others = np.random.default_rng(0).normal(size=(2, size, 3))
    whole = search(points, others, 4)
    monkeypatch.setattr(*at_a_time, 7 * len(points))
    assert all(
        np.array_equal(one, other) for one, other in zip(whole, search(points, others, 4), strict=True)
    )
    assert [part.shape for part in search(points, others[:0], 4)] == [(0, 4), (0, 4)]


def finds_the_last_axes_of_lapack(axes_of: Callable[..., Any], spread: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(0)
    turns = np.linalg.qr(rng.normal(size=(50, 3, 3)))[0]
    patches = rng.normal(size=(50, 24, 3)) * spread @ turns
    axes, least, whole = axes_of(patches.reshape(-1, 3), np.arange(1200).reshape(50, 24))
    covariance = np.stack([np.cov(patch.T, bias=True) for patch in patches])
    assert np.allclose(least, np.linalg.eigvalsh(covariance)[:, 0], atol=1e-14)
    assert np.allclose(whole, patches.var(axis=1).sum(axis=1))
    assert np.allclose(np.linalg.norm(axes, axis=1), 1)
    assert np.allclose(np.einsum("bij,bj->bi", covariance, axes), least[:, None] * axes, atol=1e-12)
