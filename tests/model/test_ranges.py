"""Noise along lines of sight: how much there is, and points with less of it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from model.ranges import range_noise, smoothed

Array = NDArray[np.float64]
EYE = np.array([0.3, 1.2, 3.0])


def seen(noise: float, count: int = 4000) -> tuple[Array, Array]:
    """Points of a ball before a slanted wall, as they are and with noise of the inverse depth."""
    rng = np.random.default_rng(0)
    rays = np.column_stack([rng.uniform(-0.4, 0.4, (count, 2)), np.full(count, -1.0)])
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    wall = (4.0 / (-rays[:, 2] + 0.4 * rays[:, 0]))[:, None]
    centre = np.array([0.1, 0.0, -2.5])
    along = rays @ centre
    gap = along**2 - centre @ centre + 0.5**2
    ball = (along - np.sqrt(np.maximum(gap, 0)))[:, None]
    ranges = np.where(gap[:, None] > 0, ball, wall)
    noisy = 1 / (1 / ranges + noise * rng.normal(size=ranges.shape) / np.median(ranges))
    return EYE + ranges * rays, EYE + noisy * rays


def deviation(points: Array, true: Array) -> float:
    """As a share of the range; robust, since smoothing blurs the ball's outline."""
    error = np.linalg.norm(points - true, axis=1) / np.linalg.norm(true - EYE, axis=1)
    return float(np.median(error) / 0.6745)


@pytest.mark.parametrize("noise", [0.003, 0.01, 0.05])
def test_the_noise_is_found(noise: float) -> None:
    assert range_noise(seen(noise)[1], EYE) == pytest.approx(noise, rel=0.35)


def test_what_has_no_noise_has_little_of_it_found() -> None:
    assert range_noise(seen(0)[1], EYE) < 5e-4


@pytest.mark.parametrize("noise", [0.01, 0.05])
def test_smoothed_points_are_nearer_to_the_truth_and_on_their_lines_of_sight(noise: float) -> None:
    true, noisy = seen(noise)
    picks = np.arange(0, len(noisy), 2)
    found = range_noise(noisy, EYE)
    points, left = smoothed(noisy, picks, EYE, found, 0.2 * noise)
    assert deviation(points, true[picks]) < 0.35 * deviation(noisy, true)
    assert deviation(points, true[picks]) < 2 * left  # planes cut the curved ball short
    assert np.cross(points - EYE, noisy[picks] - EYE) == pytest.approx(0, abs=1e-9)


def test_the_two_sides_of_an_outline_stay_apart() -> None:
    """A point of the ball is not drawn to the wall a metre behind it."""
    true, noisy = seen(0.01)
    points, _ = smoothed(noisy, np.arange(len(noisy)), EYE, 0.01, 0.002)
    off = np.linalg.norm(points - true, axis=1) / np.linalg.norm(true - EYE, axis=1)
    assert np.quantile(off, 0.99) < 0.03
