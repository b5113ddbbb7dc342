"""New designs out of two: what stands on the legs of one shape, on the legs of another.

A chair is a seat, and what is above it, on legs; a table a top, a lamp a shade on a stand. Where the slender
part ends shows in the cross-sections. Cut there, the parts of any two shapes of a category make a design that
nobody drew: n shapes give n² of them, where stretching and bending (`model.training.deform`) give only
likenesses of n. Frame: normalised, y up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.frame import normalization_of
from model.training.signs import OUTSIDE, VOXEL, Flood

Floats = NDArray[np.float64]

SLAB_REACH = 0.12  # how far below and above a height its cross-sections are looked at
LOWEST, HIGHEST = 0.08, 0.95  # shares of the shape's height between which it may be parted
CLEAR = 0.2  # by how much of the footprint the slab must exceed what carries it
OVERLAP = 0.02  # the lower part reaches so far into the upper one, so that they are one solid
WIDEST, TALLEST = 2.0, 1.4  # bounds of the factors by which a lower part is fitted, and of their inverses


@dataclass(frozen=True)
class Parted:
    """A shape that can be parted: its triangles (T, 3, 3), and the height of the cut."""

    triangles: Floats
    height: float


def parting_height(triangles: Floats) -> float | None:
    """Height just below the slab of normalised triangles (T, 3, 3).

    None if nothing in the shape stands on something slender.
    """
    flood = Flood.of(triangles)
    columns = (np.array(flood.states.shape) - 3)[[0, 2]].prod()  # the box without its border
    profile = (flood.states != OUTSIDE).sum(axis=(0, 2)) / columns
    reach, layers = round(SLAB_REACH / VOXEL), len(profile)
    best, parted = CLEAR, None
    for layer in range(max(reach // 2, round(LOWEST * layers)), round(HIGHEST * layers)):
        under, over = profile[max(layer - reach, 0) : layer], profile[layer : layer + reach]
        clear = float(over.max() - 1.5 * under.max() - 0.3 * profile[:layer].mean())
        if clear > best:
            best, parted = clear, layer + int((over > (under.max() + over.max()) / 2).argmax())
    return None if parted is None else float(flood.origin[1] + parted * VOXEL)


def recombined(upper: Parted, lower: Parted) -> Floats:
    """The upper part of one shape on the lower part of another, fitted to its slab: triangles (T, 3, 3)."""
    top = above(upper.triangles, upper.height)
    legs = below(lower.triangles, lower.height + OVERLAP)
    (low, high), (from_low, from_high) = _slab_box(upper), _slab_box(lower)
    widths = np.clip((high - low) / np.maximum(from_high - from_low, 1e-3), 1 / WIDEST, WIDEST)
    taller = np.clip(np.sqrt(widths[0] * widths[2]), 1 / TALLEST, TALLEST)
    factors = np.array([widths[0], taller, widths[2]])
    centre, from_centre = (low + high) / 2, (from_low + from_high) / 2
    centre[1], from_centre[1] = upper.height, lower.height
    made = np.concatenate([top, (legs - from_centre) * factors + centre])
    normalised: Floats = normalization_of(made.reshape(-1, 3)).apply(made)
    return normalised


def above(triangles: Floats, height: float) -> Floats:
    """The part of triangles (T, 3, 3) that lies above a height: (T', 3, 3), open at the cut."""
    signed = triangles[:, :, 1] - height
    kept = signed >= 0
    pieces = [triangles[kept.all(axis=1)]]
    for corners in (1, 2):
        some = kept.sum(axis=1) == corners
        pieces += _cut(triangles[some], signed[some], kept[some], corners)
    return np.concatenate(pieces)


def below(triangles: Floats, height: float) -> Floats:
    """The part of triangles (T, 3, 3) that lies below a height: (T', 3, 3), open at the cut."""
    upside_down = np.array([1.0, -1.0, 1.0])
    kept: Floats = above(triangles * upside_down, -height) * upside_down
    return kept


def _cut(triangles: Floats, signed: Floats, kept: NDArray[np.bool_], corners: int) -> Sequence[Floats]:
    """What is left of triangles that keep one corner (a smaller triangle) or two (a quadrangle)."""
    alone = (kept if corners == 1 else ~kept).argmax(axis=1)
    order = (alone[:, None] + np.arange(3)) % 3
    rows = np.arange(len(triangles))[:, None]
    (a, b, c), s = np.moveaxis(triangles[rows, order], 1, 0), signed[rows, order]
    ab, ac = (
        a + (s[:, 0] / (s[:, 0] - s[:, other]))[:, None] * (corner - a) for other, corner in ((1, b), (2, c))
    )
    if corners == 1:
        return [np.stack([a, ab, ac], axis=1)]
    return [np.stack([ab, b, c], axis=1), np.stack([ab, c, ac], axis=1)]


def _slab_box(shape: Parted) -> tuple[Floats, Floats]:
    """Corners (3,) and (3,) of the box around what lies just above the cut."""
    slab = below(above(shape.triangles, shape.height), shape.height + SLAB_REACH).reshape(-1, 3)
    return slab.min(axis=0), slab.max(axis=0)
