"""Brings a checkpoint's shapes from the packages that ship them: `python -m model.training.sources FOLDER`.

FOLDER/shapes.csv lists them, one a row; what the package's catalogue says of pose and size stands in the row.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import trimesh
from rich.progress import Progress

from model.training.drawn import draw
from model.training.meshes import posed, read_mesh, write_ply
from model.training.packages import read_member, unpacked
from model.training.shapes import DRAWN, Shape, SourceError, read_shapes


def bring(
    shapes: Sequence[Shape], data: Path, *, force: bool = False, progress: Progress | None = None
) -> list[Path]:
    """Write the PLY of every shape under `data` and return their paths; those that exist are kept.

    Packages are downloaded and unpacked under `data`/packages, without root. Raises SourceError.
    """
    missing = [shape for shape in shapes if force or not shape.path(data).exists()]
    progress = progress or Progress(disable=True)
    task = progress.add_task("shapes", total=len(missing), visible=bool(missing))
    for package in sorted({shape.package for shape in missing}):
        root = unpacked(package, data / "packages") if package not in ("", DRAWN) else Path()
        for shape in (s for s in missing if s.package == package):
            write_ply(posed(_geometry(shape, root), shape), shape.path(data))
            progress.advance(task)
    return [shape.path(data) for shape in shapes]


def _geometry(shape: Shape, root: Path) -> trimesh.Trimesh:
    if shape.package == DRAWN:
        return draw(shape.file)
    try:
        return read_mesh(read_member(root, shape.file), shape.file, shape.drop)
    except SourceError as error:
        raise SourceError(f"{shape.id}: {error}") from error


def main(arguments: Iterable[str] | None = None) -> int:
    """Bring the shapes of one checkpoint folder; exit status 1 with a message where that fails."""
    parser = argparse.ArgumentParser(prog="python -m model.training.sources", description=__doc__)
    parser.add_argument("folder", type=Path, help="checkpoint folder with shapes.csv")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where shapes and packages go")
    parser.add_argument("--force", action="store_true", help="write shapes again that are there already")
    options = parser.parse_args(None if arguments is None else list(arguments))
    try:
        with Progress() as progress:
            paths = bring(read_shapes(options.folder), options.data, force=options.force, progress=progress)
    except SourceError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(paths)} shapes in {options.data / 'shapes'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
