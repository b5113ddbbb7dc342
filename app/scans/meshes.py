"""Mesh files as scans: their vertices are the points. OBJ, OFF, STL and GLB.

Many scanners and phones save a partial surface as a mesh. Its faces say nothing that we would use.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np

from app.scans.clouds import colors_of, table
from app.scans.scan import Floats, ScanRefused, ScanView, too_many_points

STL_HEAD, STL_ROW = 84, 50


def read_obj(data: bytes, max_points: int) -> tuple[ScanView, list[str]]:
    """Vertices `v x y z`, maybe with `r g b`; normals `vn` where there is one for each vertex."""
    lines = data.replace(b"\r", b"\n").split(b"\n")
    vertices = _numbers([line[2:] for line in lines if line.startswith((b"v ", b"v\t"))], max_points)
    normals = _numbers([line[3:] for line in lines if line.startswith((b"vn ", b"vn\t"))], max_points)
    if vertices.shape[1] < 3:
        raise ScanRefused("invalid_obj", "The OBJ has no vertices: lines such as `v 0.1 0.2 0.3`.")
    colors = colors_of(vertices[:, 3:6], shares=True) if vertices.shape[1] in (6, 7) else None
    same = len(normals) == len(vertices) and normals.shape[1] == 3
    return ScanView(vertices[:, :3], normals if same else None, colors=colors), []


def _numbers(lines: list[bytes], max_points: int) -> Floats:
    if len(lines) > max_points:
        raise too_many_points(len(lines), max_points)
    return table(b"\n".join(lines), max_points, "invalid_obj") if lines else np.empty((0, 0))


def read_off(data: bytes, max_points: int) -> tuple[ScanView, list[str]]:
    """Vertices of an OFF in text, with normals (NOFF) and colours (COFF) as the first word tells."""
    words = data[:4096].split(None, 4)
    kind = words[0]
    body = data[len(kind) :].lstrip()
    lines = [line for line in body.split(b"\n") if line.strip() and not line.lstrip().startswith(b"#")]
    try:
        count = int(lines[0].split()[0])
    except (ValueError, IndexError):
        raise ScanRefused("invalid_off", "The OFF must begin with OFF and its three counts.") from None
    if count > max_points:
        raise too_many_points(count, max_points)
    if not 0 <= count < len(lines):
        told = f"The OFF promises {count} vertices; {len(lines) - 1} lines follow."
        raise ScanRefused("truncated_off", f"{told} Send the whole file.")
    rows = table(b"\n".join(lines[1 : count + 1]), max_points, "invalid_off") if count else np.empty((0, 3))
    at = 6 if b"N" in kind else 3
    if rows.shape[1] < at:
        raise ScanRefused("invalid_off", f"The rows of a {kind.decode()} have {rows.shape[1]} numbers.")
    colors = rows[:, at : at + 3] if b"C" in kind and rows.shape[1] >= at + 3 else None
    shares = colors is not None and float(colors.max(initial=0)) <= 1
    return ScanView(
        rows[:, :3],
        rows[:, 3:6] if at == 6 else None,
        colors=None if colors is None else colors_of(colors, shares),
    ), []


def read_stl(data: bytes, max_points: int) -> tuple[ScanView, list[str]]:
    """The corners of the triangles, each once; binary or text."""
    corners = _binary_stl(data, max_points)
    if corners is None:
        lines = [line.split(None, 1) for line in data.replace(b"\r", b"\n").split(b"\n") if b"vertex" in line]
        rows = [line[1] for line in lines if len(line) == 2 and line[0] == b"vertex"]
        if not rows:
            raise ScanRefused("invalid_stl", "The STL is neither whole binary nor text with `vertex` lines.")
        if len(rows) > 6 * max_points:
            raise too_many_points(len(rows), max_points)
        corners = table(b"\n".join(rows), 6 * max_points, "invalid_stl")
        if corners.shape[1] != 3:
            raise ScanRefused("invalid_stl", "Each `vertex` of the STL must have three numbers.")
    points = np.unique(corners.astype(np.float64), axis=0)
    if len(points) > max_points:
        raise too_many_points(len(points), max_points)
    return ScanView(points), []


def _binary_stl(data: bytes, max_points: int) -> np.ndarray[Any, Any] | None:
    """Corners (3 T, 3) of a binary STL whose size is what its count says; None if it is none."""
    if len(data) < STL_HEAD:
        return None
    (count,) = struct.unpack_from("<I", data, 80)
    if len(data) != STL_HEAD + STL_ROW * count:
        return None
    if count > 2 * max_points:  # of a closed surface there are twice as many triangles as corners
        raise too_many_points(count, max_points)
    row = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    return np.frombuffer(data, row, count, STL_HEAD)["corners"].reshape(-1, 3)


def read_glb(data: bytes, max_points: int) -> tuple[ScanView, list[str]]:
    """Vertices of every mesh and point set in a binary glTF 2.0, moved as its nodes say."""
    import trimesh

    try:
        # No resolver: what the file has not inside is not fetched from anywhere.
        scene = trimesh.load_scene(io.BytesIO(data), file_type="glb", skip_materials=True, process=False)
        parts = [_placed(scene, name) for name in scene.graph.nodes_geometry]
    except MemoryError:
        raise
    except Exception as error:  # of its parser: nearly any
        told = f"{type(error).__name__}: {str(error)[:150]}"
        raise ScanRefused("invalid_glb", f"The GLB cannot be read: {told}.") from None
    if not parts:
        raise ScanRefused("invalid_glb", "The GLB has neither meshes nor points in its scene.")
    points = np.concatenate(parts)
    if len(points) > max_points:
        raise too_many_points(len(points), max_points)
    return ScanView(points), []


def _placed(scene: Any, node: str) -> Floats:
    move, geometry = scene.graph[node]
    vertices = np.asarray(scene.geometry[geometry].vertices, dtype=np.float64).reshape(-1, 3)
    return np.asarray(vertices @ move[:3, :3].T + move[:3, 3])
