"""How fast shapes are sampled, and whether the signs are right.

Speed: signed distances per second of one core (processor time), with all that a file of samples costs but
reading and writing: drawing the points as the recipe says, building the solid, distances and signs. The
median of `SHAPES` of the checkpoint's shapes, at even intervals of the list.

Signs: against generalised winding numbers (libigl, fast), on the same kind of points of every shape whose
mesh is watertight and consistently wound. Connected parts that face inwards are turned over first: then a
number above one half means inside of some part. Points nearer than `NEAR` to the surface are left out.
What disagrees is space between parts that is narrower than a voxel (2 / 256), which sampling fills.

Goals: 100,000 distances a second, and 99.9 % of the signs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import process_time

import igl
import numpy as np
import trimesh
from numpy.typing import NDArray

from benchmarks import common
from model.frame import normalization_of
from model.training.evaluate.tasks import evenly
from model.training.recipe import SamplesRecipe, load_recipe
from model.training.samples import draw_points, read_normalised
from model.training.shapes import Shape, SourceError, read_shapes
from model.training.signs import Solid

Floats = NDArray[np.float64]

SHAPES = 12
NEAR = 1e-3
FAST, TRUE = 100_000, 0.999
"""The goals."""


@dataclass(frozen=True)
class Sampled:
    """One shape."""

    shape: str
    triangles: int
    seconds: float
    per_second: float
    compared: int  # points whose sign was compared; 0 if the mesh is not watertight
    agreeing: float  # share of them


def sampled(shape: Shape, data: Path, recipe: SamplesRecipe) -> Sampled:
    """Sample one shape, and compare the signs where the mesh is watertight."""
    path = shape.path(data)
    triangles, _ = read_normalised(path)
    begin = process_time()
    points = draw_points(triangles, recipe, np.random.default_rng(0))
    distances = Solid(triangles).signed_distance(points)
    seconds = process_time() - begin
    far = np.abs(distances) > NEAR
    compared, agreeing = 0, float("nan")
    if is_solid(path):
        inside = winding_numbers(path, points[far]) > 0.5
        compared, agreeing = int(far.sum()), float(np.mean(inside == (distances[far] < 0)))
    return Sampled(shape.id, len(triangles), seconds, len(points) / seconds, compared, agreeing)


def is_solid(path: Path) -> bool:
    """Whether winding numbers can be trusted: every edge of the mesh has two faces, and they agree."""
    mesh = trimesh.load_mesh(path)
    return bool(mesh.is_watertight and mesh.is_winding_consistent)


def winding_numbers(path: Path, points: Floats) -> Floats:
    """Of a watertight mesh, normalised, at points (N, 3), each of its parts facing outwards: (N,)."""
    mesh = trimesh.load_mesh(path)
    mesh.vertices = normalization_of(np.asarray(mesh.vertices)).apply(mesh.vertices)
    parts = mesh.split(only_watertight=False)
    for part in parts:
        if part.volume < 0:
            part.invert()
    whole = trimesh.util.concatenate(parts)
    vertices, faces = np.asarray(whole.vertices, float), np.asarray(whole.faces, np.int64)
    return np.asarray(igl.fast_winding_number(vertices, faces, points))


def listed(options: argparse.Namespace) -> list[Shape]:
    """The checkpoint's shapes. Ends the program where they have not been brought."""
    try:
        shapes = read_shapes(options.checkpoint)
    except SourceError as error:
        raise SystemExit(str(error)) from error
    if missing := [shape for shape in shapes if not shape.path(options.data).exists()]:
        raise SystemExit(
            f"{len(missing)} of {len(shapes)} shapes are not under {options.data}/shapes: run\n"
            f"  python -m model.training.sources {options.checkpoint} --data {options.data}"
        )
    return shapes


def main(arguments: Iterable[str] | None = None) -> int:
    """Run the benchmark; exit status 1 if a goal is missed."""
    parser = common.parser(__doc__, "two shapes, one of them watertight, and a quarter of the points")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where the shapes are")
    options = parser.parse_args(None if arguments is None else list(arguments))
    recipe = load_recipe(options.checkpoint).samples
    if options.quick:
        recipe = recipe.model_copy(update={"points": recipe.points // 4})
    shapes = listed(options)
    timed = evenly(shapes, 1 if options.quick else SHAPES)
    names = {shape.id for shape in timed}
    solid = [shape for shape in shapes if shape.id not in names and is_solid(shape.path(options.data))]
    found = []
    for shape in timed + (solid[:1] if options.quick else solid):
        found.append(sampled(shape, options.data, recipe))
        common.progress.print(f"{shape.id}: {found[-1].per_second:,.0f} a second")
    speed, right = median(one.per_second for one in found[: len(timed)]), agreement(found)
    print(f"{right:.3%} of the signs of {sum(one.compared > 0 for one in found)} watertight shapes agree")
    facts = {"timed": len(timed), "agreeing": right, "points": recipe.points}
    common.tell(
        options, "samples", speed / 1000, "thousand signed distances a second and core", found, **facts
    )
    return 1 if speed < FAST or right < TRUE else 0


def agreement(found: Sequence[Sampled]) -> float:
    """Share of all compared points; NaN if there are none."""
    compared = [one for one in found if one.compared]
    total = sum(one.compared for one in compared)
    return sum(one.agreeing * one.compared for one in compared) / total if total else float("nan")


if __name__ == "__main__":
    sys.exit(main())
