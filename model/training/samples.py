"""Samples signed distances of a checkpoint's shapes: `python -m model.training.samples FOLDER`.

DeepSDF's files, which its tools read: DATA/samples/NAME/SdfSamples/<package>/<category>/<id>.npz with float32
`pos` and `neg`, (N, 4) = x, y, z, signed distance; NormalizationParameters/… has the way into that frame.
The signed distance is the trained one: ±d − τ, so that sheets and thin parts have an inside (τ: `skin`).
Training shapes have deformed variants beside them, `<id>__v01.npz` …, each normalised anew.

94 % of the points lie near the surface (uniform on it, plus Gaussian noise of two widths, half each), the
rest uniform in the ball of radius 1. Every file is drawn from (seed, id, variant) alone, in random order;
of a recombined variant the list of training shapes is the other half (`model.training.recombine`).

A shape is rejected where its inside depends on the exact place of the cameras: an open shell, into which few
of them look. Of 65 chairs, 64 have a fragile share of 0.07 at most; the other, an armchair that is hollow and
open below, has 0.39. See `Quality`, `model.training.signs` and DATA/samples/NAME/quality.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
import trimesh
from numpy.typing import NDArray
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from model.checkpoint import VARIANT_MARK
from model.frame import Normalization, normalization_of
from model.training.deform import deformed, draw_deformation
from model.training.recipe import NoRecipe, SamplesRecipe, load_recipe
from model.training.recombine import Parted, parting_height, recombined
from model.training.shapes import DRAWN, Shape, SourceError, read_shapes
from model.training.signs import CAMERAS, SEEN, Solid
from model.training.slices import slices

Floats = NDArray[np.float64]
Result = TypeVar("Result")

FRAGILE_SHARE = 0.25  # between the accepted and the rejected chairs, far from both
FRAGILE_CAMERAS = 4
HOLLOW_SHARE = 0.05  # of the probes: a shape with less inside than that is judged as if it had as much
PROBES = 5000


class SamplesError(Exception):
    """Samples cannot be made; the message says why and what would help."""


@dataclass(frozen=True)
class Quality:
    """How well the inside of one shape is defined: a row of quality.csv."""

    id: str
    category: str
    split: str
    inside_share: float  # of the probes near the surface
    leak_share: float  # of the inside: hidden from the cameras, but the flood got there through a hole
    fragile_share: float  # of the inside: called outside, but seen by at most FRAGILE_CAMERAS
    thin_share: float  # of the surface: thinner than 2τ, so that the skin alone gives it an inside
    triangles: int
    files: int
    points: int  # of those files that the last run had to write
    seconds: float  # of one core, for that
    rejected: str  # why; empty where accepted


def make_samples(
    shapes: Sequence[Shape],
    data: Path,
    folder: Path,
    recipe: SamplesRecipe,
    jobs: int = 1,
    progress: Progress | None = None,
) -> list[Quality]:
    """Write the samples of all shapes into `folder` and its quality.csv; what is there is kept.

    Raises SamplesError when `folder` holds samples of another recipe or a shape cannot be read.
    """
    _claim(folder, recipe)
    known = read_quality(folder)
    todo = [s for s in shapes if s.id not in known or not _complete(s, folder, recipe, known[s.id])]
    progress = progress or Progress(disable=True)
    task = progress.add_task("samples", total=len(shapes), completed=len(shapes) - len(todo))
    stands = _stands(shapes, data, jobs) if recipe.recombined and todo else []
    work = partial(sample_shape, data=data, folder=folder, recipe=recipe, stands=stands)
    for quality in _each(work, todo, jobs):
        known[quality.id] = quality
        _write_quality(folder, known)
        progress.advance(task)
    return [known[shape.id] for shape in shapes]


@dataclass(frozen=True)
class Stand:
    """A training shape that can be parted: others of its category may stand on its legs."""

    shape: Shape
    path: Path
    height: float  # of the cut, normalised

    def parted(self) -> Parted:
        """Its triangles with the cut."""
        return Parted(read_normalised(self.path)[0], self.height)


def sample_shape(
    shape: Shape, data: Path, folder: Path, recipe: SamplesRecipe, stands: Sequence[Stand] = ()
) -> Quality:
    """Write the missing files of one shape, unless it is rejected, and say how good they are."""
    start = time.perf_counter()
    triangles, normalization = read_normalised(shape.path(data))
    measured = measure(Solid(triangles), recipe.skin)
    rejected = _verdict(measured["fragile_share"])
    kin = [stand for stand in stands if stand.shape.category == shape.category]
    written = 0 if rejected else _write_missing(shape, triangles, normalization, folder, recipe, kin)
    return Quality(
        shape.id,
        shape.category,
        shape.split,
        **measured,
        triangles=len(triangles),
        files=0 if rejected else len(variant_numbers(shape, recipe)),
        points=written * recipe.points,
        seconds=round(time.perf_counter() - start, 2),
        rejected=rejected,
    )


def read_triangles(path: Path) -> Floats:
    """Triangles (T, 3, 3) of a mesh file, in its frame, without those of no area. Raises SamplesError."""
    try:
        mesh = trimesh.load_mesh(path, process=False)
    except (OSError, ValueError) as error:
        raise SamplesError(
            f"{path} cannot be read ({error}): run `python -m model.training.sources`"
        ) from error
    triangles: Floats = np.asarray(mesh.vertices, np.float64)[np.asarray(mesh.faces)]
    kept: Floats = triangles[areas(triangles) > 0]
    return kept


def read_normalised(path: Path) -> tuple[Floats, Normalization]:
    """Normalised triangles (T, 3, 3) of a mesh file, and the way from its frame. Raises SamplesError."""
    raw = read_triangles(path)
    normalization = normalization_of(raw.reshape(-1, 3))
    return normalization.apply(raw), normalization


def variant_of(triangles: Floats, recipe: SamplesRecipe, rng: np.random.Generator) -> Floats:
    """A deformed copy (T', 3, 3) of normalised triangles (T, 3, 3), normalised anew."""
    bent = deformed(triangles, draw_deformation(rng, recipe.stretch, recipe.bend))
    normalised: Floats = normalization_of(bent.reshape(-1, 3)).apply(bent)
    return normalised


def draw_points(triangles: Floats, recipe: SamplesRecipe, rng: np.random.Generator) -> Floats:
    """Points (recipe.points, 3) near the surface of normalised triangles (T, 3, 3) and all over the ball."""
    uniform = round(recipe.uniform_share * recipe.points)
    near = surface_points(triangles, recipe.points - uniform, rng)
    sigma = np.resize(recipe.near_sigma, len(near))[:, None]
    return np.concatenate([near + rng.normal(size=near.shape) * sigma, ball_points(uniform, rng)])


def surface_points(triangles: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Points (count, 3) uniform on the area of triangles (T, 3, 3)."""
    return _surface_places(triangles, count, rng)[0]


def ball_points(count: int, rng: np.random.Generator) -> Floats:
    """Points (count, 3) uniform in the ball of radius 1."""
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    points: Floats = directions * rng.uniform(size=(count, 1)) ** (1 / 3)
    return points


def areas(triangles: Floats) -> Floats:
    """Areas (T,) of triangles (T, 3, 3)."""
    sides = triangles[:, 1:] - triangles[:, :1]
    area: Floats = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1) / 2
    return area


def measure(solid: Solid, skin: float) -> dict[str, float]:
    """The shares of `Quality`, by probes farther from the surface than the skin, where the sign matters."""
    rng = np.random.default_rng(0)
    places, normals = _surface_places(solid.triangles, PROBES, rng)
    probes = places + rng.normal(scale=0.03, size=places.shape)
    distances, nearest = solid.nearest(probes)
    probes, nearest = probes[distances > skin], nearest[distances > skin]
    flooded = ~solid.flood.inside(probes, nearest, solid.sight)
    cameras = solid.cameras(probes)
    leaked = flooded & (cameras < SEEN)
    inside = ~flooded | leaked
    fragile = flooded & ~leaked & (cameras <= FRAGILE_CAMERAS)
    return {
        "inside_share": _share(inside, len(probes)),
        "leak_share": _share(leaked, inside.sum()),
        "fragile_share": _share(fragile, max(inside.sum() + fragile.sum(), HOLLOW_SHARE * len(probes))),
        "thin_share": _share(~_thick(solid, places, normals, skin), PROBES),
    }


def read_samples(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Points (N, 3) and their signed distances (N,), skin applied, of one file of samples."""
    with np.load(path) as arrays:
        rows = np.concatenate([arrays["pos"], arrays["neg"]])
    return rows[:, :3], rows[:, 3]


def read_normalization(path: Path) -> Normalization:
    """The way from a shape's own frame into that of its samples."""
    with np.load(path) as arrays:
        return Normalization(arrays["offset"].astype(np.float64), float(arrays["scale"]))


def sample_path(folder: Path, shape: Shape, variant: int = 0) -> Path:
    """Where a shape's samples lie; variant 0 is the shape itself."""
    name = f"{shape.id}{VARIANT_MARK}{variant:02d}.npz" if variant else f"{shape.id}.npz"
    return folder / "SdfSamples" / shape.package / shape.category / name


def normalization_path(folder: Path, shape: Shape) -> Path:
    """Where a shape's normalisation lies."""
    return folder / "NormalizationParameters" / shape.package / shape.category / f"{shape.id}.npz"


def read_quality(folder: Path) -> dict[str, Quality]:
    """Rows of quality.csv by shape; none where the file is missing."""
    path = folder / "quality.csv"
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["id"]: _quality(row) for row in csv.DictReader(file)}


def _write_missing(
    shape: Shape,
    triangles: Floats,
    normalization: Normalization,
    folder: Path,
    recipe: SamplesRecipe,
    stands: Sequence[Stand],
) -> int:
    """Write the files of a shape (its triangles normalised) that are not there yet; how many."""
    scale, offset = np.float32(normalization.scale), normalization.offset.astype(np.float32)
    _save(normalization_path(folder, shape), offset=offset, scale=scale)
    missing = [v for v in variant_numbers(shape, recipe) if not sample_path(folder, shape, v).exists()]
    for variant in missing:
        rng = np.random.default_rng([recipe.seed, zlib.crc32(shape.id.encode()), variant])
        design = _on_other_legs(shape, triangles, recipe, rng, stands) if variant else triangles
        surface = variant_of(design, recipe, rng) if variant else triangles
        points = draw_points(surface, recipe, rng)
        distances = Solid(surface).signed_distance(points) - recipe.skin
        rows = np.column_stack([points, distances]).astype(np.float32)[rng.permutation(len(points))]
        negative = rows[:, 3] < 0
        _save(sample_path(folder, shape, variant), pos=rows[~negative], neg=rows[negative])
    return len(missing)


def _on_other_legs(
    shape: Shape, triangles: Floats, recipe: SamplesRecipe, rng: np.random.Generator, stands: Sequence[Stand]
) -> Floats:
    """The shape (normalised triangles) on the legs of another, for a share of the variants; else as it is."""
    own = next((stand for stand in stands if stand.shape.id == shape.id), None)
    others = [stand for stand in stands if stand.shape.group != shape.group]
    if not (recipe.recombined and own and others) or rng.uniform() >= recipe.recombined:
        return triangles
    other = others[rng.integers(len(others))]
    return recombined(Parted(triangles, own.height), other.parted())


def _stands(shapes: Sequence[Shape], data: Path, jobs: int) -> list[Stand]:
    """Every training shape that can be parted."""
    train = sorted((shape for shape in shapes if shape.split == "train"), key=lambda shape: shape.id)
    found = _each(partial(_stand, data=data), train, jobs)
    return sorted((stand for stand in found if stand is not None), key=lambda stand: stand.shape.id)


def _stand(shape: Shape, data: Path) -> Stand | None:
    path = shape.path(data)
    height = parting_height(read_normalised(path)[0])
    return None if height is None else Stand(shape, path, height)


def variant_numbers(shape: Shape, recipe: SamplesRecipe) -> range:
    """Of the files of a shape: 0 is the shape itself, what follows its deformed variants."""
    variants = recipe.drawn_variants if shape.package == DRAWN else recipe.variants
    return range(1 + variants if shape.split == "train" else 1)


def _complete(shape: Shape, folder: Path, recipe: SamplesRecipe, quality: Quality) -> bool:
    files = [sample_path(folder, shape, variant) for variant in variant_numbers(shape, recipe)]
    return bool(quality.rejected) or all(path.exists() for path in files)


def _verdict(fragile_share: float) -> str:
    if fragile_share <= FRAGILE_SHARE:
        return ""
    cameras = f"{SEEN} to {FRAGILE_CAMERAS} of {CAMERAS} cameras"
    return f"open shell: {fragile_share:.0%} of its inside is seen by {cameras}"


def _surface_places(triangles: Floats, count: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Points (count, 3) uniform on the area of triangles (T, 3, 3), and unit normals (count, 3) there."""
    area = areas(triangles)
    a, b, c = np.moveaxis(triangles[rng.choice(len(triangles), count, p=area / area.sum())], 1, 0)
    u, v = rng.uniform(size=(2, count, 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    normals = np.cross(b - a, c - a)
    return a + u * (b - a) + v * (c - a), normals / np.linalg.norm(normals, axis=1, keepdims=True)


def _thick(solid: Solid, places: Floats, normals: Floats, skin: float) -> NDArray[np.bool_]:
    """Whether the part at surface places (N, 3) is 2 · skin thick or more, on either side of it: (N,)."""
    depths = [-solid.signed_distance(places + side * skin * normals) for side in (-1, 1)]
    return np.maximum(*depths) > 0.9 * skin


def _share(part: NDArray[np.bool_], whole: float) -> float:
    return round(float(part.sum()) / max(float(whole), 1.0), 4)


def _claim(folder: Path, recipe: SamplesRecipe) -> None:
    """Write down what the folder's samples are made with; more variants may be added later, nothing else."""
    path = folder / "recipe.json"
    free = {"variants", "source", "train_split"}
    settings = recipe.model_dump(mode="json", exclude=free)
    if path.exists() and _made_with(path).model_dump(mode="json", exclude=free) != settings:
        raise SamplesError(f"{folder} holds samples made with other settings ({path.name}): remove it first")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _made_with(path: Path) -> SamplesRecipe:
    return SamplesRecipe.model_validate_json(path.read_text(encoding="utf-8"))


def _each(work: Callable[[Shape], Result], shapes: Sequence[Shape], jobs: int) -> Iterator[Result]:
    """Work on shapes in processes of one core each; the results come as they are done."""
    if jobs == 1:
        yield from map(work, shapes)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(work, shape) for shape in shapes]
        try:
            yield from (future.result() for future in as_completed(futures))
        finally:
            pool.shutdown(cancel_futures=True)


def _save(path: Path, **arrays: NDArray[np.float32] | np.float32) -> None:
    """Write an npz; a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.part")
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    partial.replace(path)


def _write_quality(folder: Path, rows: dict[str, Quality]) -> None:
    partial = folder / f"quality.{os.getpid()}.part"
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Quality)])
        writer.writeheader()
        writer.writerows(asdict(rows[key]) for key in sorted(rows))
    partial.replace(folder / "quality.csv")


def _quality(row: dict[str, str]) -> Quality:
    kinds = {"str": str, "int": int, "float": float}
    return Quality(**{field.name: kinds[str(field.type)](row[field.name]) for field in fields(Quality)})


def _summary(qualities: Sequence[Quality], seconds: float) -> str:
    rejected = [f"  {q.id}: {q.rejected}" for q in qualities if q.rejected]
    points, cores = sum(q.points for q in qualities), sum(q.seconds for q in qualities)
    speed = f"{points / max(cores, 1e-9):,.0f} points/s a core; this run took {seconds:.0f} s"
    lines = [f"{points:,} signed points of {len(qualities)} shapes, {speed}"]
    return "\n".join(lines + ([f"{len(rejected)} rejected:", *rejected] if rejected else []))


def draw_slices(shapes: Sequence[Shape], data: Path, folder: Path, skin: float) -> None:
    """Write folder/slices/<id>.png of each shape, of rejected ones too: see `model.training.slices`."""
    for shape in shapes:
        triangles, _ = read_normalised(shape.path(data))
        file = folder / "slices" / f"{shape.id}.png"
        file.parent.mkdir(exist_ok=True)
        slices(Solid(triangles), skin).save(file, optimize=True)


def main(arguments: Iterable[str] | None = None) -> int:
    """Sample the shapes of one checkpoint folder; exit status 1 with a message where that fails."""
    parser = argparse.ArgumentParser(prog="python -m model.training.samples", description=__doc__)
    parser.add_argument("folder", type=Path, help="checkpoint folder with recipe.toml and shapes.csv")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where shapes are and samples go")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, one core each")
    parser.add_argument("--split", choices=["train", "val", "test"], help="only the shapes of this split")
    parser.add_argument("--pictures", action="store_true", help="also draw slices through the shapes")
    options = parser.parse_args(None if arguments is None else list(arguments))
    for library in ("OMP", "OPENBLAS", "IGL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")  # processes share the cores, not threads
    start = time.perf_counter()
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    try:
        recipe = load_recipe(options.folder)
        shapes = [s for s in read_shapes(options.folder) if options.split in (None, s.split)]
        folder = options.data / "samples" / recipe.name
        with Progress(*columns) as progress:
            qualities = make_samples(shapes, options.data, folder, recipe.samples, options.jobs, progress)
        if options.pictures:
            draw_slices(shapes, options.data, folder, recipe.samples.skin)
    except (SamplesError, SourceError, NoRecipe) as error:
        print(error, file=sys.stderr)
        return 1
    print(_summary(qualities, time.perf_counter() - start))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
