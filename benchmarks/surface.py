"""How many fewer evaluations the coarse-to-fine surface needs than dense grids of 256 and 512 cells an edge.

Counted is what finding the zero level costs: 257³ = 16,974,593 and 513³ = 135,005,697 evaluations of the
decoder if the grid is dense. Both ways end in the same marching cubes and must give the same mesh: no vertex
of one farther than 1e-4 from the nearest of the other, in radii of the unit ball. Dense grids are evaluated
whole up to 257³, of 513³ the middle alone. Their values show whether the bounds hold that the extraction rests
on: `broken` is the share of corners that bend more sharply or are steeper than the card says, `used` the largest
share of a bound that was needed. The shapes are training shapes, and draws from the prior in the place of
shapes never seen, both with a fixed seed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from benchmarks import common
from model.checkpoint import Checkpoint
from model.field import Field
from model.surface import HALF_WIDTH, NoSurface, ZeroLevel, zero_level

CELLS = (256, 512)
LARGEST_DEVIATION = 1e-4
SHAPES = 3
"""Training shapes, and as many draws."""

MIDDLE = 192
QUICK_MIDDLE = 96
"""Cells along an edge of the part of a grid that is evaluated densely, where the whole is not."""

NEAR = 0.1
"""How near the surface a corner's bounds matter: the clamping distance, and the farthest step of the grids."""

Points = NDArray[np.float32]


@dataclass(frozen=True)
class Extraction:
    """One shape at one resolution, both ways. Times in seconds, the deviation in radii of the unit ball."""

    shape: str
    corners: int
    dense: int
    sparse: int
    ratio: float
    dense_seconds: float
    sparse_seconds: float
    time_ratio: float
    memory: float  # MiB by which the sparse extraction raised the resident set at most
    vertices: int  # compared
    deviation: float
    same_faces: bool
    broken: float
    used: float


@dataclass
class Middle:
    """The middle of another field, spread over the whole grid: its values are kept in the order asked for."""

    field: Field
    share: float
    values: list[Tensor] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """The field's."""
        return self.field.device

    @property
    def lipschitz(self) -> float:
        """A field that is spread out is less steep."""
        return self.field.lipschitz * self.share

    @property
    def bend(self) -> float:
        """And bends less sharply."""
        return self.field.bend * self.share

    def distance(self, points: Tensor) -> Tensor:
        """Values (N,) of the field in its middle."""
        self.values.append(self.field.distance(points * self.share))
        return self.values[-1]

    def distance_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Values (N,) and gradients (N, 3)."""
        values, gradients = self.field.distance_and_gradient(points * self.share)
        return values, gradients * self.share

    def grid(self) -> NDArray[np.float32]:
        """The values of a dense grid, which is evaluated corner by corner."""
        values = torch.cat(self.values).numpy()
        return values.reshape((round(len(values) ** (1 / 3)),) * 3)


def extract(name: str, field: Field, cells: int, middle: int) -> Extraction:
    """Extract a field's surface sparsely, and densely in the `middle` cells of as many as there are."""
    start = perf_counter()
    with peak_memory() as memory:
        sparse = zero_level(field, cells)
    between = perf_counter()
    part = Middle(field, middle / cells)
    dense = zero_level(part, middle, dense=True)
    sparse_seconds, dense_seconds = between - start, perf_counter() - between
    whole = (cells + 1) ** 3
    dense_seconds *= whole / dense.evaluations
    deviation, vertices, same_faces = difference(shrunk(dense, part.share), sparse, part.share)
    broken, used = bounds_at_work(part.grid(), field, 2 * HALF_WIDTH / cells)
    return Extraction(
        name,
        corners=cells + 1,
        dense=whole,
        sparse=sparse.evaluations,
        ratio=whole / sparse.evaluations,
        dense_seconds=dense_seconds,
        sparse_seconds=sparse_seconds,
        time_ratio=dense_seconds / sparse_seconds,
        memory=memory[0],
        vertices=vertices,
        deviation=deviation,
        same_faces=same_faces,
        broken=broken,
        used=used,
    )


def shrunk(level: ZeroLevel, share: float) -> ZeroLevel:
    """A mesh of the middle where it belongs."""
    return ZeroLevel((level.vertices * share).astype(np.float32), level.faces, level.evaluations)


def difference(expected: ZeroLevel, found: ZeroLevel, share: float = 1.0) -> tuple[float, int, bool]:
    """Largest distance from a vertex to the other mesh's nearest, vertices, and whether faces are the same.

    Looked at is the given share of the grid's width, without its outermost cells: they close one of the meshes.
    """
    edge = HALF_WIDTH * share - 1.5 * typical_edge(expected)
    one, other = (np.abs(level.vertices).max(axis=1) < edge for level in (expected, found))
    if not one.any() or not other.any():
        return float("inf") if one.any() or other.any() else 0.0, 0, one.any() == other.any()
    there, nearest = cKDTree(expected.vertices[one]).query(found.vertices[other])
    back, _ = cKDTree(found.vertices[other]).query(expected.vertices[one])
    numbers = np.full(len(found.vertices), -1)
    numbers[other] = np.flatnonzero(one)[nearest]
    same = np.array_equal(whole_faces(expected.faces, one), whole_faces(numbers[found.faces], one, other[found.faces]))
    return float(max(there.max(), back.max())), int(one.sum()), same
