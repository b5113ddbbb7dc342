"""Slices through a solid: its signed distances as colours, to see where its inside is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.training.signs import Solid

INSIDE, OUTSIDE, SKIN = np.array([44, 96, 160.0]), np.array([240, 240, 236.0]), np.array([222, 110, 52.0])
FAR = 0.25
"""Distance from which on colours do not change."""


def slices(solid: Solid, skin: float, pixels: int = 240) -> Image.Image:
    """Three slices side by side through the origin: x = 0 (+z right), y = 0 (+z down) and z = 0 (+x right).

    Blue: inside. Orange: outside, but within the skin of the surface, so inside in training. Grey: outside,
    with a band for every twentieth.
    """
    steps = (np.arange(pixels) + 0.5) / pixels * 2 - 1
    across, down = np.meshgrid(steps, steps)
    zero = np.zeros_like(across)
    planes = [(zero, -down, across), (across, zero, down), (across, -down, zero)]
    points = np.stack([np.stack(plane, axis=-1) for plane in planes], axis=1)  # rows, planes, columns, xyz
    distances = solid.signed_distance(points.reshape(-1, 3)).reshape(pixels, -1)
    return Image.fromarray(_colors(distances, skin))


def _colors(distances: NDArray[np.float64], skin: float) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) of signed distances (H, W)."""
    apart = np.abs(distances)[..., None]
    bands = 1 - 0.06 * (np.floor(apart / 0.05) % 2)
    deep = np.clip(apart / FAR, 0, 1)
    inside = distances[..., None] < 0
    colors = bands * np.where(inside, INSIDE * (1 - 0.5 * deep), OUTSIDE * (0.8 + 0.2 * deep))
    colors[(distances >= 0) & (distances < skin)] = SKIN
    return np.rint(colors).astype(np.uint8)
