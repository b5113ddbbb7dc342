"""How many fewer evaluations the coarse-to-fine surface needs than dense grids of 256 and 512 cells an edge.

Counted is what finding the zero level costs: 257³ = 16,974,593 and 513³ = 135,005,697 evaluations if the grid
is dense. Both ways must give the same mesh: no vertex of one farther than 1e-4 from the nearest of the other,
in radii of the unit ball. The dense grid is evaluated whole at 257³, and in its middle at 513³ and with
--quick. Its values also show whether the bounds hold that the extraction rests on: `broken` is the share of
steps near the surface in which the field is steeper or bends more sharply than the card says, `used` the
largest share of a bound that a step needs. The fields are those of training shapes, drawn with a fixed seed,
and of as many random draws of the code prior: shapes that nobody trained.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
from model.surface import FEWEST_CELLS, HALF_WIDTH, NoSurface, ZeroLevel, zero_level

CELLS = (256, 512)
LARGEST_DEVIATION = 1e-4
SHAPES = 3  # training shapes, and as many draws of the prior

MIDDLE, QUICK_MIDDLE = 192, 64
"""Cells along an edge of the part that is evaluated densely where the whole grid is not."""

NEAR = 0.1
"""The clamping distance: beyond it no grid but the coarsest meets the surface within a step."""

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Extraction:
    """One field at one resolution, both ways. Times in seconds, the deviation in radii of the unit ball."""

    shape: str
    corners: int
    dense: int
    sparse: int
    ratio: float
    seconds: float
    time_ratio: float  # of the whole dense grid, at the speed of the part that was evaluated, to `seconds`
    mib: float  # peak of the sparse extraction, above what the process held before the first
    vertices: int  # compared
    deviation: float
    same_faces: bool
    broken: float
    used: float


class Middle:
    """The middle of a field, spread over the whole grid together with its distances: as steep as before.

    It keeps the values in the order asked for.
    """

    def __init__(self, whole: Field, share: float) -> None:
        self.whole, self.share = whole, share
        self.device, self.lipschitz, self.bend = whole.device, whole.lipschitz, whole.bend
        self.values: list[Tensor] = []

    def distance(self, points: Tensor) -> Tensor:
        """Distances (N,) at (N, 3) points."""
        self.values.append(self.whole.distance(points * self.share) / self.share)
        return self.values[-1]

    def distance_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Distances (N,) and their gradients (N, 3) at (N, 3) points."""
        distances, gradients = self.whole.distance_and_gradient(points * self.share)
        return distances / self.share, gradients

    def grid(self) -> Values:
        """The whole field's values on a dense grid, whose corners are asked for in their order."""
        values = torch.cat(self.values).numpy() * self.share
        return values.reshape((round(len(values) ** (1 / 3)),) * 3)


def extract(name: str, field: Field, cells: int, middle: int, memory: Memory) -> Extraction:
    """Find the surface coarse to fine, and densely in the `middle` cells along an edge."""
    memory.start()
    start = perf_counter()
    sparse = zero_level(field, cells)
    between, mib = perf_counter(), memory.grown()
    part = Middle(field, middle / cells)
    dense = densely(part, middle)
    seconds, dense_seconds = between - start, perf_counter() - between
    whole = (cells + 1) ** 3

    cell = 2 * HALF_WIDTH / cells
    edge = np.inf if middle == cells else part.share * HALF_WIDTH - 1.5 * cell  # the last cells close it
    expected = shrunk(dense, part.share)
    deviation, same_faces = difference(expected, sparse, edge)
    broken, used = bounds_at_work(part.grid(), field, cell, longest_step(cells))
    return Extraction(
        name,
        corners=cells + 1,
        dense=whole,
        sparse=sparse.evaluations,
        ratio=whole / sparse.evaluations,
        seconds=seconds,
        time_ratio=dense_seconds * whole / dense.evaluations / seconds,
        mib=mib,
        vertices=int(_within(expected, edge).sum()),
        deviation=deviation,
        same_faces=same_faces,
        broken=broken,
        used=used,
    )


def densely(field: Field, cells: int) -> ZeroLevel:
    """The surface on a dense grid; none is a mesh too."""
    try:
        return zero_level(field, cells, dense=True)
    except NoSurface:
        return ZeroLevel(np.empty((0, 3), np.float32), np.empty((0, 3), np.int32), (cells + 1) ** 3)


def shrunk(level: ZeroLevel, share: float) -> ZeroLevel:
    """A mesh of the middle where it belongs."""
    return ZeroLevel((level.vertices * share).astype(np.float32), level.faces, level.evaluations)


def difference(expected: ZeroLevel, found: ZeroLevel, edge: float = np.inf) -> tuple[float, bool]:
    """Largest distance from a vertex to the other mesh's nearest, and whether faces are the same.

    Looked at is what lies within [-edge, edge]³ of either mesh; what it is near to may lie outside.
    """
    one, other = _within(expected, edge), _within(found, edge)
    if not (one.any() and other.any()):
        return (np.inf, False) if one.any() or other.any() else (0.0, True)
    there, nearest = cKDTree(expected.vertices).query(found.vertices)
    back, _ = cKDTree(found.vertices).query(expected.vertices[one])
    faces = [level.faces[kept[level.faces].all(axis=1)] for level, kept in ((expected, one), (found, other))]
    same = np.array_equal(_in_order(faces[0]), _in_order(nearest[faces[1]]))
    return float(max(there[other].max(), back.max())), same


def _within(level: ZeroLevel, edge: float) -> NDArray[np.bool_]:
    return np.asarray(np.abs(level.vertices).max(axis=1) <= edge)


def _in_order(faces: NDArray[np.integer]) -> NDArray[np.integer]:
    """The same triangles, in an order that only depends on which they are."""
    faces = np.sort(faces, axis=1)
    return faces[np.lexsort(faces.T)]


def longest_step(cells: int) -> int:
    """The first step of an extraction, in cells of its last grid: half a cell of the coarsest."""
    step = 1
    while cells // step >= 4 * FEWEST_CELLS:
        step *= 2
    return step


def bounds_at_work(values: Values, field: Field, cell: float, longest: int) -> tuple[float, float]:
    """Share of steps in which a field breaks its bounds, and the largest share of a bound that one needs.

    `values` (N, N, N) are those of a dense grid with cells of this size. The steps are those of the grids
    that lead to it, the first of them `longest` cells long, from every corner near the surface.
    """
    flat, strides = values.ravel(), np.array([len(values) ** 2, len(values), 1])
    near = np.argwhere(np.abs(values) <= NEAR)
    steps, broken, used = 0, 0, 0.0
    for length in (longest >> halving for halving in range(longest.bit_length())):
        inner = (near >= length).all(axis=1) & (near < len(values) - length).all(axis=1)
        places = near[inner] @ strides
        for step in (step for step in product((-1, 0, 1), repeat=3) if step > (0, 0, 0)):
            move, distance = length * int(strides @ step), length * cell * float(np.linalg.norm(step))
            middle, ahead, behind = flat[places], flat[places + move], flat[places - move]
            steep = np.maximum(np.abs(ahead - middle), np.abs(behind - middle)) / (field.lipschitz * distance)
            bent = np.abs(middle - (ahead + behind) / 2) / (field.bend * distance)
            need = np.maximum(steep, bent)
            steps, broken = steps + len(need), broken + int((need > 1).sum())
            used = max(used, float(need.max(initial=0.0)))
    return broken / max(1, steps), used


class Memory:
    """The resident set of this process in MiB, as Linux tells it; not a number elsewhere."""

    def __init__(self) -> None:
        self.before = self._read("VmRSS")

    def start(self) -> None:
        """The peak begins anew."""
        if np.isfinite(self.before):
            Path("/proc/self/clear_refs").write_text("5")

    def grown(self) -> float:
        """How far the peak since `start` is above what there was at first."""
        return self._read("VmHWM") - self.before

    @staticmethod
    def _read(what: str) -> float:
        try:
            line = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        except OSError:
            return np.nan
        return int(line[1]) / 1024 if line else np.nan


def fields(checkpoint: Checkpoint, count: int) -> Iterator[tuple[str, Field]]:
    """`count` training shapes, and as many draws of the code prior."""
    for row in drawn_shapes(checkpoint, count):
        yield checkpoint.shapes[row], checkpoint.field(checkpoint.codes[row])
    root = torch.linalg.cholesky(torch.linalg.inv(checkpoint.prior.precision.double()))
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        draw = root @ torch.randn(len(root), generator=generator, dtype=torch.float64)
        yield f"draw {number}", checkpoint.field(checkpoint.prior.mean + draw.float())


def drawn_shapes(checkpoint: Checkpoint, count: int) -> list[int]:
    """Rows of `count` training shapes, their deformed variants left out."""
    own = checkpoint.own_shapes
    return sorted(np.random.default_rng(0).permutation(own)[:count].tolist())


def main(arguments: Iterable[str] | None = None) -> int:
    """Run the benchmark; exit status 1 if the meshes differ."""
    quick = f"one training shape and one draw, compared in the middle {QUICK_MIDDLE} cells an edge"
    options = common.parser(__doc__, quick).parse_args(None if arguments is None else list(arguments))
    checkpoint = common.load(options)
    memory, extractions = Memory(), []
    for name, field in fields(checkpoint, 1 if options.quick else SHAPES):
        for cells in CELLS:
            middle = QUICK_MIDDLE if options.quick else cells if cells == CELLS[0] else MIDDLE
            try:
                extractions.append(extract(name, field, cells, min(middle, cells), memory))
            except NoSurface:  # a draw may be empty
                common.progress.print(f"{name} is empty")
                continue
            common.progress.print(f"{name} at {cells + 1}³: {extractions[-1].ratio:.1f} times fewer")
    return _tell(options, checkpoint, extractions)


def _tell(options: argparse.Namespace, checkpoint: Checkpoint, extractions: list[Extraction]) -> int:
    deviation = max(one.deviation for one in extractions)
    same = deviation <= LARGEST_DEVIATION and all(one.same_faces for one in extractions)
    broken = max(one.broken for one in extractions)
    ratios = [median(one.ratio for one in extractions if one.corners == cells + 1) for cells in CELLS]
    print(f"bounds of the card: steepness {checkpoint.lipschitz:g}, bend {checkpoint.bend:g}")
    print(f"broken by a share of {broken:.2g} of the steps; largest deviation of a vertex {deviation:.2g}")
    if not same:
        print(
            f"the meshes differ, by {deviation:.2g} where {LARGEST_DEVIATION:g} is allowed", file=sys.stderr
        )
    for cells, ratio in zip(CELLS, ratios, strict=True):
        print(f"{cells + 1}³: {ratio:.1f} times fewer evaluations")
    unit = "times fewer evaluations"
    more = {"same_mesh": same, "broken": broken, "number_of_finest": ratios[1]}
    common.tell(options, "surface", ratios[0], unit, extractions, **more)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
