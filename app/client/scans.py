"""What users have, as parts of a request: paths, bytes, arrays, Open3D's clouds, trimesh's meshes."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Files = Path | bytes | Sequence[Path | bytes]
Camera = Mapping[str, float] | ArrayLike
Part = tuple[str, tuple[str, bytes]]


@runtime_checkable
class HasPoints(Protocol):
    """A point cloud as Open3D has it; with `normals` and `colors` (0 to 1) if they are as many."""

    points: Any


@runtime_checkable
class HasVertices(Protocol):
    """A mesh or a cloud as trimesh has it: its vertices are the points."""

    vertices: Any


Scan = str | Path | bytes | NDArray[Any] | HasPoints | HasVertices


def parts_of(field: str, files: Files | None, names: str | Sequence[str] | None = None) -> list[Part]:
    """The parts of a form that hold files."""
    several = [] if files is None else [files] if isinstance(files, Path | bytes) else list(files)
    own = [file.name if isinstance(file, Path) else field for file in several]
    called = own if names is None else [names] if isinstance(names, str) else list(names)
    data = [file.read_bytes() if isinstance(file, Path) else file for file in several]
    return [(field, part) for part in zip(called, data, strict=True)]


def parts_of_scans(scans: Scan | Sequence[Scan]) -> list[Part]:
    """The parts `scan` of one scan or of several views. Raises TypeError for what is none."""
    several: list[Any] = list(scans) if isinstance(scans, list | tuple) else [scans]
    return [("scan", _file_of(scan)) for scan in several]


def _file_of(scan: Scan) -> tuple[str, bytes]:
    if isinstance(scan, str | Path):
        path = Path(scan)
        return path.name, path.read_bytes()
    if isinstance(scan, bytes):
        return "scan", scan
    if isinstance(scan, np.ndarray):
        return "scan.npy", _npy(scan)
    if isinstance(scan, HasPoints):
        return "scan.npz", _npz(scan)
    if isinstance(scan, HasVertices):
        return "scan.npy", _npy(np.asarray(scan.vertices))
    raise TypeError(f"a scan is a path, bytes, an array (N, 3) or a point cloud, not {type(scan).__name__}")


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _npz(cloud: HasPoints) -> bytes:
    points = np.asarray(cloud.points, dtype=float)
    further = {name: np.asarray(getattr(cloud, name, [])) for name in ("normals", "colors")}
    kept: dict[str, Any] = {name: array for name, array in further.items() if array.shape == points.shape}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, points=points, **kept)
    return buffer.getvalue()


def form_of(
    viewpoint: ArrayLike | None,
    intrinsics: Camera | Sequence[Camera] | None,
    depth_scale: float | Sequence[float] | None,
    camera_to_world: ArrayLike | None,
) -> dict[str, list[str]]:
    """The fields beside the files, as the JSON texts that the API takes: one of all files, or one of each.

    Raises ValueError for an array of another shape than (3,), (3, 3) or (4, 4), or several of them.
    """
    given = {
        "viewpoint": _each("viewpoint", viewpoint, (3,)),
        "intrinsics": _cameras(intrinsics),
        "depth_scale": _each("depth_scale", depth_scale, ()),
        "camera_to_world": _each("camera_to_world", camera_to_world, (4, 4)),
    }
    return {name: [json.dumps(value) for value in values] for name, values in given.items() if values}


def _cameras(intrinsics: Camera | Sequence[Camera] | None) -> list[Any]:
    if isinstance(intrinsics, Mapping):
        return [dict(intrinsics)]
    if isinstance(intrinsics, list | tuple) and any(isinstance(one, Mapping) for one in intrinsics):
        return [camera for one in intrinsics for camera in _cameras(one)]
    return _each("intrinsics", intrinsics, (3, 3))


def _each(name: str, values: Any, shape: tuple[int, ...]) -> list[Any]:
    """An array of this shape as the only one, an array of such arrays one by one."""
    if values is None:
        return []
    array = np.asarray(values, dtype=float)
    if array.shape == shape:
        return [array.tolist()]
    if array.shape[1:] == shape and array.ndim > len(shape):
        return [one.tolist() for one in array]
    raise ValueError(
        f"{name} has the shape {array.shape}, not {shape}, and not (N, …) with one for each file"
    )
