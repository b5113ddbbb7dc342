"""Geometry of mesh files as training shapes have it: triangles alone, welded, y up, front +z, metres."""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Sequence
from pathlib import Path, PurePath

import numpy as np
import trimesh
from numpy.typing import NDArray

from model.training.ac3d import Part, read_parts
from model.training.shapes import Shape, SourceError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

OURS = ("obj", "ac", "acc")
FORMATS = (*OURS, "ply", "glb", "stl", "off", "dae")
"""Suffixes of the files that can be read: AC3D and OBJ by this package, the others by trimesh."""


def read_mesh(content: bytes, name: str, drop: Collection[str] = ()) -> trimesh.Trimesh:
    """Geometry of a mesh file whose name ends in one of FORMATS, in the file's own frame.

    `drop` names objects of an AC3D file to leave out, "#3" the fourth one. Raises SourceError when the file
    is of no such format, broken, or without a triangle.
    """
    suffix = PurePath(name).suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise SourceError(f"{name}: its name must end in one of {', '.join(FORMATS)}")
    try:
        vertices, faces = _read(content, suffix, drop)
    except ImportError as error:
        raise SourceError(f"{suffix.upper()} files need the extra `train`: {error}") from error
    except Exception as error:  # trimesh's readers raise what they stumble over
        raise SourceError(f"not a readable {suffix.upper()} file: {error}") from error
    if not len(faces):
        raise SourceError(f"no face in the {suffix.upper()} file")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise SourceError("a face uses a vertex that the file does not have")
    if not np.isfinite(vertices[np.unique(faces)]).all():
        raise SourceError("a vertex is not a number")
    return trimesh.Trimesh(vertices, faces, process=False)


def _read(content: bytes, suffix: str, drop: Collection[str]) -> tuple[Floats, Ints]:
    """Vertices (V, 3) and triangles (F, 3) of a file."""
    if suffix == "obj":
        return _read_obj(content)
    if suffix in OURS:
        return _joined(_kept(read_parts(content), drop))
    mesh = trimesh.load_scene(io.BytesIO(content), file_type=suffix).to_mesh()
    return np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)


def _read_obj(content: bytes) -> tuple[Floats, Ints]:
    """Of a Wavefront OBJ: vertices and faces alone, polygons as fans."""
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
    return np.reshape(vertices, (-1, 3)), np.array(faces, np.int64).reshape(-1, 3)


def _kept(parts: Sequence[Part], drop: Collection[str]) -> list[Part]:
    return [part for i, part in enumerate(parts) if part.name not in drop and f"#{i}" not in drop]


def _joined(parts: Sequence[Part]) -> tuple[Floats, Ints]:
    offsets = np.cumsum([0, *(len(part.vertices) for part in parts)])
    faces = [part.faces + offset for part, offset in zip(parts, offsets, strict=False)]
    nothing = np.empty((0, 3))
    return (
        np.concatenate([nothing, *(part.vertices for part in parts)]),
        np.concatenate([nothing.astype(np.int64), *faces]),
    )


def posed(mesh: trimesh.Trimesh, shape: Shape) -> trimesh.Trimesh:
    """The mesh welded, y up, front +z, its bounding box of the shape's size in metres around the origin."""
    vertices = np.asarray(mesh.vertices) @ shape.rotation.T
    used = vertices[np.unique(mesh.faces)]
    low, high = used.min(axis=0), used.max(axis=0)
    extent = np.where(high > low, high - low, 1.0)
    return welded((vertices - (low + high) / 2) * shape.size / extent, np.asarray(mesh.faces))


def welded(vertices: Floats, faces: Ints, tolerance: float = 1e-6) -> trimesh.Trimesh:
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


def _fan(corners: list[int]) -> list[list[int]]:
    return [[corners[0], corners[i], corners[i + 1]] for i in range(1, len(corners) - 1)]


def _index(word: str, count: int) -> int:
    """Zero-based vertex of "7", "7/1/2", or "-1" (counted back from the `count` vertices read so far)."""
    number = int(word.partition("/")[0])
    return number - 1 if number > 0 else count + number
