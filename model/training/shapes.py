"""The list of a checkpoint's shapes, `shapes.csv`: what they are, where they come from, how they stand."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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
    package: str  # Debian package; empty: `file` is a path on this machine; or DRAWN
    file: str  # path in the package; after "!", a path in the zip archive before it
    rotation: Floats  # (3, 3), v ↦ v·Rᵀ makes y up and +z the front
    size: Floats  # (3,) width, height, depth in metres
    author: str
    licence: str
    drop: tuple[str, ...] = ()  # objects of an AC3D file that are no geometry: shadows, propeller discs …

    def path(self, data: Path) -> Path:
        """Where the shape's PLY lies under the data folder."""
        return data / "shapes" / self.category / f"{self.id}.ply"


DRAWN = "drawn"
"""The package of shapes that `model.training.drawn` draws; their file is "chair/NUMBER"."""

WORDS = ("id", "name", "category", "kind", "split", "group", "package", "file")
COLUMNS = (*WORDS, "rotation", "width", "height", "depth", "author", "licence", "drop")
"""Of shapes.csv; `drop` may be missing."""


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


def write_shapes(shapes: Sequence[Shape], folder: Path) -> Path:
    """Write FOLDER/shapes.csv and return its path; the column `drop` only where a shape has one."""
    path = folder / "shapes.csv"
    columns = COLUMNS if any(shape.drop for shape in shapes) else COLUMNS[:-1]
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(_row(shape) for shape in shapes)
    return path


def _shape(row: dict[str, str]) -> Shape:
    rotation = [float(word) for word in row["rotation"].split()] or np.eye(3)
    size = [float(row[key]) for key in ("width", "height", "depth")]
    return Shape(
        **{key: row[key] for key in (*WORDS, "author", "licence")},
        rotation=np.reshape(rotation, (3, 3)).astype(np.float64),
        size=np.array(size),
        drop=tuple(name for name in (row.get("drop") or "").split("|") if name),
    )


def _row(shape: Shape) -> dict[str, str]:
    rotation = "" if np.array_equal(shape.rotation, np.eye(3)) else " ".join(map(_short, shape.rotation.flat))
    sizes = dict(zip(("width", "height", "depth"), map(_short, shape.size), strict=True))
    words = {key: getattr(shape, key) for key in (*WORDS, "author", "licence")}
    return {**words, **sizes, "rotation": rotation, "drop": "|".join(shape.drop)}


def _short(number: float) -> str:
    return f"{number:.8g}"
