"""Finds shapes of one design among a checkpoint's: `python -m model.training.duplicates FOLDER`.

A design that is in the training split and in the test split, recoloured or resized, makes every measurement
too good. Two shapes count as one design when their surfaces lie close together once both bounding boxes are
the cube [-1, 1]³, so a stretch along the axes does not hide it. The distance is that of probes on each
surface to the other surface, the two means added. A coarse picture of where the surface is chooses the pairs
to measure. Only shapes of one category are compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

import igl
import numpy as np
import trimesh
from numpy.typing import NDArray
from rich.progress import track
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from model.training.shapes import Shape, SourceError, read_shapes

Floats = NDArray[np.float64]
Loader = Callable[[int], trimesh.Trimesh]

WITHIN = 0.02  # the same airliner a few rows longer is within it, most others are not
PROBES = 500
FIRST_PROBES = 50  # of them tell most pairs apart
COARSE_POINTS = 4000
CELLS = 6
COARSE_LIMIT = 0.35  # of 2, the largest there is; pairs of one design were measured to have 0.3 at most


@dataclass(frozen=True)
class Pair:
    """Two shapes of one design, by their numbers."""

    first: int
    second: int
    distance: float  # in the cube [-1, 1]³


@dataclass(frozen=True)
class _Look:
    coarse: Floats  # (CELLS³,) share of the surface near each node of a grid
    probes: Floats  # (PROBES, 3) on the surface, in the cube


def find_pairs(categories: Sequence[str], load: Loader, within: float = WITHIN) -> list[Pair]:
    """Pairs of one design among shapes of these categories, which `load` reads by number, all in one pose."""
    cube = lru_cache(maxsize=512)(lambda number: into_cube(load(number)))
    looks = [_look(*cube(number)) for number in track(range(len(categories)), "looking", transient=True)]
    coarse = np.stack([look.coarse for look in looks]) if looks else np.empty((0, CELLS**3))
    kinds = np.array(categories)
    pairs = []
    for first in track(range(len(looks)), "comparing", transient=True):
        near = np.abs(coarse[first + 1 :] - coarse[first]).sum(axis=1) < COARSE_LIMIT
        for second in first + 1 + np.flatnonzero(near & (kinds[first + 1 :] == kinds[first])):
            measured = _distance(looks[first], cube(first), looks[second], cube(second), within)
            if measured <= within:
                pairs.append(Pair(first, int(second), measured))
    return pairs


def groups_of(count: int, pairs: Sequence[Pair]) -> list[int]:
    """The group of each shape, as the number of its first shape; what is linked shares one."""
    rows, columns = [pair.first for pair in pairs], [pair.second for pair in pairs]
    links = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(count, count))
    _, labels = connected_components(links, directed=False)
    first = {label: number for number, label in reversed(list(enumerate(labels)))}
    return [first[label] for label in labels]


def surface_distance(a: trimesh.Trimesh, b: trimesh.Trimesh) -> float:
    """How far two surfaces are apart once both boxes are the cube [-1, 1]³: both mean distances, added."""
    cubes = into_cube(a), into_cube(b)
    looks = [_look(*cube) for cube in cubes]
    return _distance(looks[0], cubes[0], looks[1], cubes[1], np.inf)


def into_cube(mesh: trimesh.Trimesh) -> tuple[Floats, NDArray[np.int64]]:
    """Vertices (V, 3) and faces (F, 3) of the mesh, its bounding box made the cube [-1, 1]³."""
    vertices, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)
    used = vertices[np.unique(faces)]
    low, high = used.min(axis=0), used.max(axis=0)
    return (vertices - (low + high) / 2) * 2 / np.where(high > low, high - low, 1.0), faces


def _look(vertices: Floats, faces: NDArray[np.int64]) -> _Look:
    points = _spread(vertices[faces], COARSE_POINTS)
    return _Look(_coarse(points), points[:: COARSE_POINTS // PROBES])


def _spread(triangles: Floats, count: int) -> Floats:
    """Points (count, 3) on triangles (T, 3, 3), evenly by area and the same ones every time."""
    rng = np.random.default_rng(0)
    sides = triangles[:, 1:] - triangles[:, :1]
    area = np.cumsum(np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1))
    steps = (np.arange(count) + rng.random(count)) / count * area[-1]
    chosen = np.searchsorted(area, steps).clip(0, len(triangles) - 1)
    rng.shuffle(chosen)  # so that the first points are all over the surface too
    along = rng.random((count, 2))
    along = np.where(along.sum(axis=1, keepdims=True) > 1, 1 - along, along)
    points: Floats = triangles[chosen, 0] + np.einsum("nk,nkd->nd", along, sides[chosen])
    return points


def _coarse(points: Floats) -> Floats:
    """Share of the points at each node of a CELLS³ grid, each point spread over the eight nodes around it."""
    place = (points + 1) / 2 * (CELLS - 1)
    corner = np.floor(place).astype(np.int64).clip(0, CELLS - 2)
    beyond = place - corner
    grid = np.zeros((CELLS, CELLS, CELLS))
    for step in product((0, 1), repeat=3):
        weight = np.where(step, beyond, 1 - beyond).prod(axis=1)
        np.add.at(grid, tuple((corner + step).T), weight)
    return grid.ravel() / len(points)


Cube = tuple[Floats, NDArray[np.int64]]


def _distance(a: _Look, a_cube: Cube, b: _Look, b_cube: Cube, within: float) -> float:
    """Of two surfaces; infinite where a few probes tell that it is far above `within`."""
    if _mean_distance(a.probes[:FIRST_PROBES], b_cube) > 2 * within:
        return np.inf
    return _mean_distance(a.probes, b_cube) + _mean_distance(b.probes, a_cube)


def _mean_distance(points: Floats, cube: Cube) -> float:
    squared = igl.point_mesh_squared_distance(np.ascontiguousarray(points), *cube)[0]
    return float(np.sqrt(np.maximum(squared, 0.0)).mean())


def pairs_of(shapes: Sequence[Shape], data: Path, within: float = WITHIN) -> list[Pair]:
    """Pairs of one design among shapes whose PLYs lie under `data`. Raises SourceError."""
    paths = [shape.path(data) for shape in shapes]
    missing = sum(not path.exists() for path in paths)
    if missing:
        raise SourceError(f"{missing} shapes are not there: run `python -m model.training.sources` first")
    categories = [shape.category for shape in shapes]
    return find_pairs(categories, lambda number: trimesh.load_mesh(paths[number], process=False), within)


def main(arguments: Iterable[str] | None = None) -> int:
    """List pairs of one design without a common group; exit status 1 where one is in two splits."""
    parser = argparse.ArgumentParser(prog="python -m model.training.duplicates", description=__doc__)
    parser.add_argument("folder", type=Path, help="checkpoint folder with shapes.csv")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where the shapes are")
    parser.add_argument("--within", type=float, default=WITHIN, help="distance of one design's surfaces")
    options = parser.parse_args(None if arguments is None else list(arguments))
    try:
        shapes = read_shapes(options.folder)
        pairs = pairs_of(shapes, options.data, options.within)
    except SourceError as error:
        print(error, file=sys.stderr)
        return 1
    apart = straddling = 0
    for pair in sorted(pairs, key=lambda pair: pair.distance):
        a, b = shapes[pair.first], shapes[pair.second]
        apart += a.group != b.group
        straddling += a.split != b.split
        if a.group != b.group or a.split != b.split:
            print(f"{pair.distance:.4f}  {a.id} ({a.split})  {b.id} ({b.split})")
    print(f"{len(pairs)} pairs of one design: {apart} without a common group, {straddling} in two splits")
    return 1 if straddling else 0


if __name__ == "__main__":
    raise SystemExit(main())
