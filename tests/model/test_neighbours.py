"""Nearest neighbours as a GPU finds them, beside a tree (scipy)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from model import neighbours
from model.neighbours import Neighbours, least_axes, nearest_by_trying
from model.streams import device_here, working_on

AWAY = np.array([4e5, -3e6, 100.0])


def tried(points: np.ndarray, others: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    found = nearest_by_trying(torch.from_numpy(points), torch.from_numpy(others), count)
    return tuple(part.numpy() for part in found)


@pytest.mark.parametrize(("size", "count"), [(1, 1), (7, 7), (50, 3), (997, 1), (997, 24), (2000, 160)])
def test_they_are_those_of_a_tree(size: int, count: int) -> None:
    rng = np.random.default_rng(size + count)
    points = rng.normal(size=(size, 3))
    others = np.concatenate([points, rng.normal(size=(300, 3)), 1e-4 * rng.normal(size=(20, 3))])
    distances, numbers = tried(points, others, count)
    true, which = (part.reshape(len(others), -1) for part in cKDTree(points).query(others, k=count))
    assert np.array_equal(numbers, which)
    assert np.allclose(distances, true, atol=1e-14)


def test_points_far_from_the_origin_are_told_apart() -> None:
    points = np.random.default_rng(0).normal(size=(3000, 3))
    _, here = tried(points, points, 9)
    _, there = tried(points + AWAY, points + AWAY, 9)
    assert (here == there).mean() > 0.9999  # sums far away are rounded


def test_of_equal_points_each_is_found_once() -> None:
    points = np.repeat(np.random.default_rng(0).normal(size=(40, 3)), 5, axis=0)
    distances, numbers = tried(points, points, 5)
    assert (distances == 0).all()
    assert np.array_equal(np.sort(numbers, axis=1), np.arange(200).reshape(40, 5).repeat(5, axis=0))


def test_others_may_be_few_many_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    points, others = np.random.default_rng(0).normal(size=(2, 500, 3))
    whole = tried(points, others, 4)
    monkeypatch.setattr(neighbours, "PAIRS", 7 * len(points))
    assert all(np.array_equal(one, other) for one, other in zip(whole, tried(points, others, 4), strict=True))
    assert [part.shape for part in tried(points, others[:0], 4)] == [(0, 4), (0, 4)]


def test_of_one_there_is_no_axis() -> None:
    distances, numbers = Neighbours([[0.0, 0, 0], [1, 0, 0]]).nearest([[0.9, 0, 0]])
    assert numbers.tolist() == [1] and distances.shape == (1,)


def test_a_thread_works_where_it_says_until_it_is_done() -> None:
    here, other = device_here(), torch.device("meta")
    with pytest.raises(ZeroDivisionError), working_on(other):
        assert device_here() == other
        _ = 1 / 0
    assert device_here() == here == torch.device("cpu")


@pytest.mark.parametrize("spread", [(3, 2, 1), (1, 1, 1e-3), (1, 1, 0), (1, 1e-6, 0), (1, 0, 0), (0, 0, 0)])
def test_points_vary_least_along_the_last_axis_of_lapack(spread: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(0)
    turns = np.linalg.qr(rng.normal(size=(50, 3, 3)))[0]
    patches = rng.normal(size=(50, 24, 3)) * spread @ turns
    axes, least, whole = least_axes(patches.reshape(-1, 3), np.arange(1200).reshape(50, 24))
    covariance = np.stack([np.cov(patch.T, bias=True) for patch in patches])
    assert np.allclose(least, np.linalg.eigvalsh(covariance)[:, 0], atol=1e-14)
    assert np.allclose(whole, patches.var(axis=1).sum(axis=1))
    assert np.allclose(np.linalg.norm(axes, axis=1), 1)
    assert np.allclose(np.einsum("bij,bj->bi", covariance, axes), least[:, None] * axes, atol=1e-12)
