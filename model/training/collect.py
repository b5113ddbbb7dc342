"""Lists a folder of meshes as training shapes: `python -m model.training.collect FOLDER CHECKPOINT`.

Writes CHECKPOINT/shapes.csv, which `model.training.sources` reads. The files stay where they are. Shapes of
one design share a group, which stays in one split. A file that cannot be used is named with the reason.
Files lie as FOLDER/<class>/<instance>.<suffix>, or as ShapeNet has them:
FOLDER/<class>/<instance>/models/model_normalized.obj.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray
from rich.progress import track

from model.training.duplicates import WITHIN, find_pairs, groups_of
from model.training.meshes import FORMATS, posed, read_mesh
from model.training.shapes import Shape, SourceError, write_shapes
from model.training.splits import split_groups

Floats = NDArray[np.float64]

SHAPENET = ("models", "model_normalized.obj")
SPLITS = ("test", "val", "train")  # where a design is in two, the first keeps it
SHARES = {"test": 0.1, "val": 0.1}
AXES = dict(zip("xyz", np.eye(3), strict=True))


@dataclass(frozen=True)
class Found:
    """A mesh file: its class and instance, as DeepSDF's split files name them."""

    path: Path
    category: str
    instance: str


@dataclass(frozen=True)
class LeftOut:
    """A file that does not become a shape."""

    path: Path
    reason: str


def find_meshes(folder: Path, category: str | None = None) -> list[Found]:
    """Mesh files under `folder`, by path; without a folder of their own, of the class `category` or `folder`.

    Raises SourceError when there are none.
    """
    files = [path for path in folder.rglob("*") if path.suffix.lower().removeprefix(".") in FORMATS]
    found = [_found(path, folder, category) for path in sorted(files) if path.is_file()]
    if not found:
        raise SourceError(f"{folder}: no mesh files; their names must end in one of {', '.join(FORMATS)}")
    return found


def read_split(path: Path) -> set[tuple[str, str]]:
    """Class and instance of all shapes of a split file of DeepSDF: {dataset: {class: [instance, …]}}.

    Raises SourceError.
    """
    try:
        datasets = json.loads(path.read_text(encoding="utf-8"))
        return {
            (name, instance)
            for classes in datasets.values()
            for name, instances in classes.items()
            for instance in instances
        }
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error}") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise SourceError(f"{path}: must hold {{dataset: {{class: [instance, …]}}}}: {error}") from error


def rotation_from(up: str, front: str) -> Floats:
    """The turn (3, 3), v ↦ v·Rᵀ, that brings the axes `up` and `front` ("z", "-x" …) to y and +z.

    Raises SourceError where they are no axes or not at right angles.
    """
    if not all(re.fullmatch("-?[xyz]", axis) for axis in (up, front)) or up[-1] == front[-1]:
        raise SourceError(f"up {up} and front {front}: must be two of x, y, z, each with or without a minus")
    high, ahead = (AXES[axis[-1]] * (-1 if axis.startswith("-") else 1) for axis in (up, front))
    return np.array([np.cross(high, ahead), high, ahead])


def collect(
    found: Sequence[Found],
    rotation: Floats,
    scale: float = 1.0,
    splits: Mapping[str, set[tuple[str, str]]] | None = None,
    within: float = WITHIN,
    seed: int = 0,
    author: str = "",
    licence: str = "",
) -> tuple[list[Shape], list[LeftOut]]:
    """Shapes of the files, each in a group and a split, and the files left out.

    `scale` is metres a unit of the files. `splits` names class and instance of the shapes of some splits;
    what is in none of them is left out. Without any, a tenth of the designs goes to test and a tenth to val.
    """
    side = {key: name for name in reversed(SPLITS) for key in (splits or {}).get(name, set())}
    shapes, left_out = [], []
    taken = Counter[str]()
    for item in track(found, "reading", transient=True):
        if splits and (item.category, item.instance) not in side:
            left_out.append(LeftOut(item.path, "in no split file"))
            continue
        try:
            size = _size(load_mesh(item.path), rotation) * scale
        except SourceError as error:
            left_out.append(LeftOut(item.path, str(error)))
            continue
        name = _id(item)
        taken[name] += 1
        name = name if taken[name] == 1 else f"{name}_{taken[name]}"
        split = side.get((item.category, item.instance), "")
        words = (name, item.instance, item.category, item.category, split, name, "", item.path.as_posix())
        shapes.append(Shape(*words, rotation, size, author, licence))
    shapes = _grouped(shapes, within)
    shapes, straddling = _apart(shapes) if splits else (_split(shapes, SHARES, seed), [])
    if splits and "val" not in splits:
        shapes = _split(shapes, {"val": SHARES["val"]}, seed)
    return shapes, left_out + straddling


def load_mesh(path: Path) -> trimesh.Trimesh:
    """Geometry of a file, in its own frame. Raises SourceError."""
    try:
        return read_mesh(path.read_bytes(), path.name)
    except OSError as error:
        raise SourceError(f"cannot be read: {error}") from error


def _found(path: Path, folder: Path, category: str | None) -> Found:
    parts = path.relative_to(folder).with_suffix("").parts
    if path.parts[-2:] == SHAPENET:
        parts = parts[:-2]
    if len(parts) > 1 and category is None:
        return Found(path, parts[0], "/".join(parts[1:]))
    return Found(path, category or folder.resolve().name, "/".join(parts))


def _id(item: Found) -> str:
    """Class and instance in letters that a file name may have; no two underscores, which mark variants."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", f"{item.category}_{item.instance}").strip("_.")


def _size(mesh: trimesh.Trimesh, rotation: Floats) -> Floats:
    """Width, height, depth (3,) of a mesh turned by `rotation`. Raises SourceError where there is no area."""
    vertices = np.asarray(mesh.vertices, np.float64)
    if not mesh.area > 0:
        raise SourceError("its faces have no area")
    turned = vertices[np.unique(mesh.faces)] @ rotation.T
    size: Floats = turned.max(axis=0) - turned.min(axis=0)
    return size


def _grouped(shapes: Sequence[Shape], within: float) -> list[Shape]:
    """Shapes of one design, within their class, in one group: that of the first."""
    paths = [Path(shape.file) for shape in shapes]
    classes = [shape.category for shape in shapes]
    pairs = find_pairs(classes, lambda number: posed(load_mesh(paths[number]), shapes[number]), within)
    firsts = groups_of(len(shapes), pairs)
    return [replace(shape, group=shapes[first].id) for shape, first in zip(shapes, firsts, strict=True)]


def _apart(shapes: Sequence[Shape]) -> tuple[list[Shape], list[LeftOut]]:
    """Each design in the first of its splits alone; its shapes in the others are left out."""
    keeper: dict[str, Shape] = {}
    for shape in sorted(shapes, key=lambda shape: SPLITS.index(shape.split)):
        keeper.setdefault(shape.group, shape)
    kept, left_out = [], []
    for shape in shapes:
        first = keeper[shape.group]
        if shape.split == first.split:
            kept.append(shape)
        else:
            reason = f"same design as {first.id}, which is in {first.split}"
            left_out.append(LeftOut(Path(shape.file), reason))
    return kept, left_out


def _split(shapes: Sequence[Shape], shares: Mapping[str, float], seed: int) -> list[Shape]:
    """Shapes without a split, or in train, spread over the splits of `shares` and train, class by class."""
    chosen: dict[str, str] = {}
    for category in {shape.category for shape in shapes}:
        groups = [s.group for s in shapes if s.category == category and s.split in ("", "train")]
        chosen.update(split_groups(groups, shares, seed=seed))
    return [replace(shape, split=chosen.get(shape.group, shape.split)) for shape in shapes]


def main(arguments: Iterable[str] | None = None) -> int:
    """Write the list of one checkpoint folder; exit status 1 with a message where that fails."""
    parser = argparse.ArgumentParser(prog="python -m model.training.collect", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of meshes")
    parser.add_argument("checkpoint", type=Path, help="checkpoint folder, into which shapes.csv goes")
    for split in reversed(SPLITS):
        parser.add_argument(f"--{split}", type=Path, help=f"split file of DeepSDF with the shapes of {split}")
    parser.add_argument("--category", help="class of all files; else the first folder on the way to them")
    parser.add_argument("--up", default="y", help="axis of the files that points up: z, --up=-z …")
    parser.add_argument("--front", default="z", help="axis that the shapes face")
    parser.add_argument("--scale", type=float, default=1.0, help="metres a unit of the files")
    parser.add_argument("--within", type=float, default=WITHIN, help="see model.training.duplicates")
    parser.add_argument("--seed", type=int, default=0, help="start of the random split")
    parser.add_argument("--author", default="", help="who made the shapes")
    parser.add_argument("--licence", default="", help="their terms")
    parser.add_argument("--force", action="store_true", help="replace a shapes.csv that is there")
    options = parser.parse_args(None if arguments is None else list(arguments))
    try:
        return _run(options)
    except SourceError as error:
        print(error, file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    target = options.checkpoint / "shapes.csv"
    if target.exists() and not options.force:
        raise SourceError(f"{target} is there already: --force replaces it")
    given = {split: getattr(options, split) for split in SPLITS}
    splits = {split: read_split(path) for split, path in given.items() if path}
    found = find_meshes(options.folder, options.category)
    unfound = set().union(*splits.values()) - {(item.category, item.instance) for item in found}
    shapes, left_out = collect(
        found,
        rotation_from(options.up, options.front),
        options.scale,
        splits,
        options.within,
        options.seed,
        options.author,
        options.licence,
    )
    for item in left_out:
        print(f"left out: {item.path}: {item.reason}")
    if unfound:
        print(f"not found: {len(unfound)} shapes of the split files, such as {'/'.join(min(unfound))}")
    if not shapes:
        raise SourceError(f"{options.folder}: no file can be used")
    path = write_shapes(shapes, options.checkpoint)
    counts = Counter(shape.split for shape in shapes)
    sides = ", ".join(f"{counts[split]} {split}" for split in reversed(SPLITS))
    print(f"{path}: {len(shapes)} shapes of {len({shape.group for shape in shapes})} designs: {sides}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
