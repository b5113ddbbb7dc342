"""How many fewer evaluations the coarse-to-fine surface needs than a dense grid of 256 cells an edge.

Counted is what the volume costs, 257³ = 16,974,593 evaluations of the decoder if it is dense. Both volumes go
through the same marching cubes and must give the same mesh: no vertex of one farther than 1e-4 from the
nearest of the other, in radii of the unit ball. The shapes are training shapes of the checkpoint, drawn with
a fixed seed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from benchmarks import common
from model.checkpoint import Checkpoint
from model.surface import HALF_WIDTH, Field, decoded_field, dense_volume, sparse_volume, triangulate

CELLS = 256
LARGEST_DEVIATION = 1e-4
SHAPES = 3

Volume = NDArray[np.float32]


@dataclass(frozen=True)
class Extraction:
    """Both volumes of one shape. Times in seconds, the deviation in radii of the unit ball."""

    shape: str
    dense: int
    sparse: int
    ratio: float
    dense_seconds: float
    sparse_seconds: float
    time_ratio: float
    vertices: int
    deviation: float
    same_faces: bool


def extract(name: str, field: Field, *, quick: bool) -> Extraction:
    """Evaluate one field both ways, densely only in the middle eighth of the grid if `quick`."""
    device = torch.device("cpu")
    start = perf_counter()
    sparse, count = sparse_volume(field, CELLS, device)
    between = perf_counter()
    if quick:
        dense, dense_count = dense_volume(middle(field), CELLS // 2, device)
    else:
        dense, dense_count = dense_volume(field, CELLS, device)
    sparse_seconds, dense_seconds = between - start, perf_counter() - between
    if quick:
        sparse = sparse[(slice(CELLS // 4, -(CELLS // 4)),) * 3]
    whole = (CELLS + 1) ** 3
    dense_seconds *= whole / dense_count
    deviation, vertices, same_faces = difference(dense, sparse)
    return Extraction(
        name,
        dense=whole,
        sparse=count,
        ratio=whole / count,
        dense_seconds=dense_seconds,
        sparse_seconds=sparse_seconds,
        time_ratio=dense_seconds / sparse_seconds,
        vertices=vertices,
        deviation=deviation,
        same_faces=same_faces,
    )


def middle(field: Field) -> Field:
    """The field whose grid of half as many cells is the middle eighth of the field's own."""
    return lambda points: field(points / 2)


def difference(dense: Volume, sparse: Volume) -> tuple[float, int, bool]:
    """Largest distance from a vertex of one mesh to the other's nearest, vertices, whether faces agree."""
    (expected, expected_faces), (found, found_faces) = triangulate(dense), triangulate(sparse)
    same_faces = np.array_equal(expected_faces, found_faces)
    expected, found = within_border(expected, dense), within_border(found, sparse)
    there, _ = cKDTree(expected).query(found)
    back, _ = cKDTree(found).query(expected)
    return float(max(there.max(), back.max())), len(expected), same_faces


def within_border(vertices: Volume, volume: Volume) -> Volume:
    """The vertices that the field made: those in the outermost cells close the mesh, wherever it is cut."""
    cell = 2 * HALF_WIDTH / (len(volume) - 1)
    return vertices[np.abs(vertices).max(axis=1) < HALF_WIDTH - cell]


def drawn_shapes(checkpoint: Checkpoint, count: int) -> list[int]:
    """Rows of `count` training shapes, their deformed variants left out."""
    own = checkpoint.own_shapes
    return sorted(np.random.default_rng(0).permutation(own)[:count].tolist())


def main(arguments: Iterable[str] | None = None) -> int:
    """Run the benchmark; exit status 1 if the meshes differ."""
    quick = "one shape, densely evaluated in the middle eighth alone; the dense time is eight times that"
    options = common.parser(__doc__, quick).parse_args(None if arguments is None else list(arguments))
    checkpoint = common.load(options)
    extractions = []
    for index in drawn_shapes(checkpoint, 1 if options.quick else SHAPES):
        name, field = checkpoint.shapes[index], decoded_field(checkpoint.decoder, checkpoint.codes[index])
        extractions.append(extract(name, field, quick=options.quick))
        common.progress.print(f"{name}: {extractions[-1].ratio:.1f} times fewer")
    deviation = max(one.deviation for one in extractions)
    same = deviation <= LARGEST_DEVIATION
    where = "the middle eighth" if options.quick else "the whole grid"
    print(f"{len(extractions)} training shapes, largest deviation of a vertex {deviation:.2g} in {where}")
    if not same:
        print(f"the meshes differ by more than {LARGEST_DEVIATION:g}", file=sys.stderr)
    number = median(one.ratio for one in extractions)
    common.tell(options, "surface", number, "times fewer evaluations", extractions, same_mesh=same)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
