"""Ends of a fit as spheres: which of them is the middle one can be said."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.consensus import central
from model.placement import Placements


class Spheres:
    """A decoder whose code (1,) is a radius."""

    def __call__(self, codes: Tensor, points: Tensor) -> Tensor:
        return points.norm(dim=-1) - codes

    def distance_and_gradients(self, codes: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError


def chosen(radii: list[float], cost: list[float], scales: list[float] | None = None) -> int:
    codes, placements = torch.tensor(radii)[:, None], Placements.identity(len(radii))
    if scales is not None:
        placements = Placements(torch.tensor(scales).log(), placements.rotation, placements.translation)
    return central(Spheres(), codes, placements, torch.tensor(cost))


@pytest.mark.parametrize("odd", [0, 2, 4])
def test_the_odd_one_out_is_not_believed_though_it_is_lowest(odd: int) -> None:
    radii, cost = [0.5, 0.51, 0.49, 0.505, 0.495], [1.0] * 5
    radii[odd], cost[odd] = 0.8, 0.99
    assert chosen(radii, cost) != odd


def test_of_a_row_of_ends_the_middle_one_is_central() -> None:
    assert chosen([0.6, 0.52, 0.55, 0.5, 0.58], [1.0] * 5) == 2


def test_many_that_fit_badly_do_not_outweigh_one_that_fits() -> None:
    assert chosen([0.8, 0.5, 0.51, 0.49], [1.0, 9.0, 9.0, 9.0]) == 0


def test_one_end_is_its_own_centre() -> None:
    assert chosen([0.5], [0.0]) == 0


def test_ends_are_compared_where_they_stand_in_the_scan() -> None:
    """One sphere in canonical frames of several scales, and another that only looks alike there."""
    assert chosen([0.4, 0.2, 0.3, 0.4], [1.0] * 4, [1.0, 0.5, 0.75, 0.5]) != 3
