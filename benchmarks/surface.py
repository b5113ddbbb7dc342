"""How many fewer evaluations the coarse-to-fine surface needs than dense grids of 256 and 512 cells an edge.

Counted is what finding the zero level costs: 257³ = 16,974,593 and 513³ = 135,005,697 evaluations if the grid
is dense. The meshes must be the same: no vertex of one farther than 1e-4 from the nearest of the other, in
radii of the unit ball, and as many faces. At 257³ the whole dense grid is compared; at 513³, and with
--quick, its middle eighth is, at the same spacing, since the rest would take half an hour. The fields are
those of training shapes, drawn with a fixed seed, and of as many random draws of the code prior: shapes that
nobody trained.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from benchmarks import common
from model.checkpoint import Checkpoint
from model.field import Field
from model.surface import ZeroLevel, zero_level

LARGEST_DEVIATION = 1e-4
SHAPES = 2  # training shapes, and as many draws of the prior


@dataclass(frozen=True)
class Extraction:
    """One field at one resolution. Times in seconds, the deviation in radii of the unit ball."""

    shape: str
    cells: int
    dense: int
    sparse: int
    ratio: float
    seconds: float
    vertices: int
    deviation: float
    same_faces: bool
    peak_mib: float  # most memory the process has held so far


@dataclass(frozen=True)
class Middle:
    """The middle eighth of a field, blown up to the whole grid: no steeper and no more bent than before."""

    whole: Field

    @property
    def device(self) -> torch.device:
        """The whole's."""
        return self.whole.device

    @property
    def lipschitz(self) -> float:
        """The whole's."""
        return self.whole.lipschitz

    @property
    def bend(self) -> float:
        """The whole's."""
        return self.whole.bend

    def distance(self, points: Tensor) -> Tensor:
        """The whole's, half as far out."""
        return self.whole.distance(points / 2)

    def distance_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The whole's, half as far out."""
        distances, gradients = self.whole.distance_and_gradient(points / 2)
        return distances, gradients / 2


def extract(name: str, field: Field, cells: int, *, whole: bool) -> Extraction:
    """Find the surface coarse to fine, and compare it with the dense one, `whole` or in the middle."""
    start = perf_counter()
    found = zero_level(field, cells)
    seconds = perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    part, size = (field, cells) if whole else (Middle(field), cells // 2)
    compared = found if whole else zero_level(part, size)
    deviation, same_faces = difference(zero_level(part, size, dense=True), compared)
    dense = (cells + 1) ** 3
    return Extraction(
        name,
        cells,
        dense,
        found.evaluations,
        dense / found.evaluations,
        seconds,
        len(compared.vertices),
        deviation,
        same_faces,
        peak,
    )


def difference(expected: ZeroLevel, found: ZeroLevel) -> tuple[float, bool]:
    """Largest distance from a vertex of one mesh to the other's nearest, and whether faces are as many."""
    there, _ = cKDTree(expected.vertices).query(found.vertices)
    back, _ = cKDTree(found.vertices).query(expected.vertices)
    return float(max(there.max(), back.max())), len(expected.faces) == len(found.faces)


def fields(checkpoint: Checkpoint, count: int) -> Iterator[tuple[str, Field]]:
    """`count` training shapes, and as many draws of the code prior."""
    for row in drawn_shapes(checkpoint, count):
        yield checkpoint.shapes[row], checkpoint.field(checkpoint.codes[row])
    prior = checkpoint.prior
    root = torch.linalg.cholesky(torch.linalg.inv(prior.precision.double()))
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        draw = root @ torch.randn(len(prior.mean), generator=generator, dtype=torch.float64)
        yield f"draw {number}", checkpoint.field(prior.mean + draw.float())


def drawn_shapes(checkpoint: Checkpoint, count: int) -> list[int]:
    """Rows of `count` training shapes, their deformed variants left out."""
    own = checkpoint.own_shapes
    return sorted(np.random.default_rng(0).permutation(own)[:count].tolist())


def main(arguments: Iterable[str] | None = None) -> int:
    """Run the benchmark; exit status 1 if the meshes differ."""
    quick = "one shape at 257³, compared in the middle eighth alone"
    options = common.parser(__doc__, quick).parse_args(None if arguments is None else list(arguments))
    checkpoint = common.load(options)
    looked_at = list(fields(checkpoint, SHAPES))[: 1 if options.quick else None]
    extractions = []
    for name, field in looked_at:
        for cells in (256,) if options.quick else (256, 512):
            extractions.append(extract(name, field, cells, whole=cells == 256 and not options.quick))
            common.progress.print(f"{name} at {cells}: {extractions[-1].ratio:.1f} times fewer")
    deviation = max(one.deviation for one in extractions)
    same = deviation <= LARGEST_DEVIATION and all(one.same_faces for one in extractions)
    print(f"{len(extractions)} surfaces, largest deviation of a vertex {deviation:.2g}")
    if not same:
        print(f"the meshes differ by more than {LARGEST_DEVIATION:g}", file=sys.stderr)
    for cells in sorted({one.cells for one in extractions}):
        ratio = median(one.ratio for one in extractions if one.cells == cells)
        print(f"{cells + 1}³: {ratio:.1f} times fewer evaluations")
    number = median(one.ratio for one in extractions if one.cells == 256)
    common.tell(options, "surface", number, "times fewer evaluations", extractions, same_mesh=same)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
