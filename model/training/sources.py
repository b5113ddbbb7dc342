"""Brings a checkpoint's shapes from the packages that ship them: `python -m model.training.sources FOLDER`.

FOLDER/shapes.csv lists them, one a row; what the package's catalogue says of pose and size stands in the row.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray
from rich.progress import Progress

Floats = NDArray[np.float64]


class SourceError(Exception):
    """A shape cannot be brought; the message says which and what would help."""


@dataclass(frozen=True)
class Shape:
    """One row of shapes.csv."""

    id: str
    name: str
    category: str
    kind: str  # within the category: chair, armchair, stool …
    split: str  # train, val, test
    group: str  # shapes of one design share it, and a group stays on one side of the split
    package: str  # Debian package
    file: str  # path in the package; after "!", a path in the zip archive before it
    rotation: Floats  # (3, 3), v ↦ v·Rᵀ makes y up and +z the front
    size: Floats  # (3,) width, height, depth in metres
    author: str
    licence: str

    def path(self, data: Path) -> Path:
        """Where the shape's PLY lies under the data folder."""
        return data / "shapes" / self.category / f"{self.id}.ply"


def read_shapes(folder: Path) -> list[Shape]:
    """Rows of FOLDER/shapes.csv.

    Raises SourceError when the file is missing or a row cannot be read.
    """
    path = folder / "shapes.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [_shape(row) for row in csv.DictReader(file)]
    except FileNotFoundError as error:
        raise SourceError(f"{path}: no such file") from error
    except (KeyError, ValueError) as error:
        raise SourceError(f"{path}: a row cannot be read: {error}") from error


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
        root = unpacked(package, data / "packages")
        for shape in (s for s in missing if s.package == package):
            write_ply(posed(read_obj(read_member(root, shape.file)), shape), shape.path(data))
            progress.advance(task)
    return [shape.path(data) for shape in shapes]


def unpacked(package: str, folder: Path) -> Path:
    """Folder of a Debian package's files under `folder`, downloaded and unpacked there unless it was before.

    A file `folder`/PACKAGE_*.deb is used in place of a download. Raises SourceError.
    """
    root = folder / package
    if root.is_dir():
        return root
    folder.mkdir(parents=True, exist_ok=True)
    archive = _archive(package, folder) or _downloaded(package, folder)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        files = Path(scratch).resolve() / "files"
        _call(["dpkg-deb", "-x", str(archive.resolve()), str(files)], folder, f"{archive} cannot be unpacked")
        files.rename(root)
    return root


def read_member(root: Path, file: str) -> bytes:
    """Bytes of `file` under `root`; "archive.zip!/a/b" names member a/b of a zip archive.

    Raises SourceError when there is no such file.
    """
    archive, _, member = file.partition("!")
    try:
        if not member:
            return (root / archive).read_bytes()
        with zipfile.ZipFile(root / archive) as container:
            return container.read(member.lstrip("/"))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise SourceError(f"{root}: no {file}: {error}") from error


def read_obj(content: bytes) -> trimesh.Trimesh:
    """Geometry of a Wavefront OBJ: vertices and faces alone, polygons as fans, in the file's own frame.

    Raises SourceError when the file holds no face.
    """
    vertices: list[list[float]] = []
    faces: list[list[int]] = []
    for line in io.StringIO(content.decode("latin-1")):  # names in these files are not always UTF-8
        words = line.split()
        if not words:
            continue
        if words[0] == "v":
            vertices.append([float(word) for word in words[1:4]])
        elif words[0] == "f":
            faces += _fan([_index(word, len(vertices)) for word in words[1:]])
    if not faces:
        raise SourceError("an OBJ file without faces")
    return trimesh.Trimesh(vertices, faces, process=False)


def posed(mesh: trimesh.Trimesh, shape: Shape) -> trimesh.Trimesh:
    """The mesh welded, y up, front +z, its bounding box of the shape's size in metres around the origin."""
    vertices = np.asarray(mesh.vertices) @ shape.rotation.T
    used = vertices[np.unique(mesh.faces)]
    low, high = used.min(axis=0), used.max(axis=0)
    extent = np.where(high > low, high - low, 1.0)
    return welded((vertices - (low + high) / 2) * shape.size / extent, np.asarray(mesh.faces))


def welded(vertices: Floats, faces: NDArray[np.int64], tolerance: float = 1e-6) -> trimesh.Trimesh:
    """The same surface with corners within `tolerance` made one, and no empty or doubled face."""
    cells = np.rint(vertices / tolerance).astype(np.int64)
    _, first, cell = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    faces = cell.reshape(-1)[faces]
    distinct = (faces != np.roll(faces, 1, axis=1)).all(axis=1)
    mesh = trimesh.Trimesh(vertices[first], faces[distinct], process=False)
    mesh.update_faces(mesh.unique_faces())
    mesh.remove_unreferenced_vertices()
    return mesh


def write_ply(mesh: trimesh.Trimesh | trimesh.PointCloud, path: Path) -> None:
    """Write a binary PLY; a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.part")
    partial.write_bytes(mesh.export(file_type="ply"))  # type: ignore[arg-type]
    partial.replace(path)


def _shape(row: dict[str, str]) -> Shape:
    rotation = [float(word) for word in row["rotation"].split()] or np.eye(3)
    size = [float(row[key]) for key in ("width", "height", "depth")]
    numbers = {"rotation": np.reshape(rotation, (3, 3)), "size": np.array(size)}
    words = ("id", "name", "category", "kind", "split", "group", "package", "file", "author", "licence")
    return Shape(**{key: row[key] for key in words}, **numbers)  # type: ignore[arg-type]


def _fan(corners: list[int]) -> list[list[int]]:
    return [[corners[0], corners[i], corners[i + 1]] for i in range(1, len(corners) - 1)]


def _index(word: str, count: int) -> int:
    """Zero-based vertex of "7", "7/1/2", or "-1" (counted back from the `count` vertices read so far)."""
    number = int(word.partition("/")[0])
    return number - 1 if number > 0 else count + number


def _archive(package: str, folder: Path) -> Path | None:
    return max(folder.glob(f"{package}_*.deb"), default=None)


def _downloaded(package: str, folder: Path) -> Path:
    hint = f"put {package}_*.deb into {folder} by hand, or run `apt-get update` and try again"
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _call(["apt-get", "download", package], Path(scratch), f"{package} cannot be downloaded; {hint}")
        archive = _archive(package, Path(scratch))
        if archive is None:
            raise SourceError(f"apt-get brought no {package}; {hint}")
        return archive.rename(folder / archive.name)


def _call(command: list[str], folder: Path, trouble: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise SourceError(
            f"{trouble} ({command[0]} is not installed: this needs Debian or Ubuntu)"
        ) from error
    except subprocess.CalledProcessError as error:
        raise SourceError(f"{trouble} ({error.stderr.strip()})") from error


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
