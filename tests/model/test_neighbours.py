"""Nearest neighbours as a GPU finds them, beside a tree (scipy)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from searches import (
    AWAY,
    SPREADS,
    finds_each_of_equal_points_once,
    finds_for_few_many_or_none,
    finds_the_last_axes_of_lapack,
    finds_what_a_tree_finds,
    of_arrays,
)

from model import neighbours
from model.neighbours import Neighbours, least_axes, nearest_by_trying
from model.streams import device_here, working_on

tried = of_arrays(nearest_by_trying)


@pytest.mark.parametrize(("size", "count"), [(1, 1), (7, 7), (50, 3), (997, 1), (997, 24), (2000, 160)])
def test_they_are_those_of_a_tree(size: int, count: int) -> None:
    rng = np.random.default_rng(size + count)
    points = rng.normal(size=(size, 3))
    others = np.concatenate([points, rng.normal(size=(300, 3)), 1e-4 * rng.normal(size=(20, 3))])
    finds_what_a_tree_finds(tried, points, others, count)


def test_points_far_from_the_origin_are_told_apart() -> None:
    points = np.random.default_rng(0).normal(size=(3000, 3))
    _, here = tried(points, points, 9)
    _, there = tried(points + AWAY, points + AWAY, 9)
    assert (here == there).mean() > 0.9999  # sums far away are rounded


def test_of_equal_points_each_is_found_once() -> None:
    finds_each_of_equal_points_once(tried)


def test_others_may_be_few_many_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    finds_for_few_many_or_none(tried, 500, (neighbours, "PAIRS"), monkeypatch)


def test_of_one_there_is_no_axis() -> None:
    distances, numbers = Neighbours([[0.0, 0, 0], [1, 0, 0]]).nearest([[0.9, 0, 0]])
    assert numbers.tolist() == [1] and distances.shape == (1,)


def test_a_thread_works_where_it_says_until_it_is_done() -> None:
    here, other = device_here(), torch.device("meta")
    with pytest.raises(ZeroDivisionError), working_on(other):
        assert device_here() == other
        _ = 1 / 0
    assert device_here() == here == torch.device("cpu")


@pytest.mark.parametrize("spread", SPREADS)
def test_points_vary_least_along_the_last_axis_of_lapack(spread: tuple[float, float, float]) -> None:
    finds_the_last_axes_of_lapack(least_axes, spread)
