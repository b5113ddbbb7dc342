"""Depth maps: a 16-bit PNG and the pinhole camera that took it.

The camera looks along +z with x to the right and y down (REP 118). A depth of 0 is no measurement.
"""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.scans.scan import Floats, Scan, ScanRefused

MAX_BACKGROUND = 4096
DEFAULT_SCALE = 1000.0
"""Depth units per metre: millimetres."""


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera, in pixels; integer coordinates are centres of pixels."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int | None = None
    height: int | None = None

    def rays(self, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Floats:
        """Directions (N, 3) through pixels, in the camera's frame, with z = 1."""
        x = (columns - self.cx) / self.fx
        y = (rows - self.cy) / self.fy
        return np.stack([x, y, np.ones_like(x)], axis=1)


def read_depth_map(
    png: bytes,
    intrinsics: Intrinsics,
    *,
    scale: float = DEFAULT_SCALE,
    mask: bytes | None = None,
    camera_to_world: Floats | None = None,
    max_pixels: int = 16_000_000,
    max_points: int = 2_000_000,
) -> Scan:
    """Points (N, 3) in metres of the masked pixels, and rays past the object.

    Without `camera_to_world` (4, 4) the scan's frame is the camera's. Raises ScanRefused.
    """
    depth = _pixels(png, "depth map", ("I;16", "I;16B", "I"), max_pixels).astype(np.float64) / scale
    _check_camera(intrinsics, depth.shape)
    inside = np.ones(depth.shape, bool) if mask is None else _mask(mask, depth.shape, max_pixels)
    rows, columns = np.nonzero(inside & (depth > 0))
    told = []
    if len(rows) > max_points:
        told = [f"{len(rows)} pixels thinned out to {max_points} points."]
        rows, columns = _thinned(rows, columns, max_points)
    seen = depth[rows, columns]
    background = None if mask is None else _background(depth, inside, intrinsics, seen.max(initial=0.0))
    pose = np.eye(4) if camera_to_world is None else camera_to_world
    return Scan(
        points=(intrinsics.rays(rows, columns) * seen[:, None]) @ pose[:3, :3].T + pose[:3, 3],
        viewpoint=pose[:3, 3].copy(),
        background=None if background is None else background @ pose[:3, :3].T,
        up="-y" if camera_to_world is None else "+y",
        warnings=told,
    )


def _background(
    depth: Floats, inside: NDArray[np.bool_], camera: Intrinsics, farthest: float
) -> Floats | None:
    """Unit rays (M, 3), in the camera's frame, that did not meet the object.

    A pixel outside the mask is one only if nothing nearer than the object's far end stands in its way:
    behind something nearer the object may well go on.
    """
    rows, columns = np.nonzero(~inside & ((depth <= 0) | (depth > farthest)))
    if not len(rows):
        return None
    rays = camera.rays(*_thinned(rows, columns, MAX_BACKGROUND))
    return np.asarray(rays / np.linalg.norm(rays, axis=1, keepdims=True))


def _thinned(
    rows: NDArray[np.intp], columns: NDArray[np.intp], count: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """At most `count` pixels, drawn evenly and always the same ones."""
    if len(rows) <= count:
        return rows, columns
    chosen = np.sort(np.random.default_rng(0).choice(len(rows), count, replace=False))
    return rows[chosen], columns[chosen]


# Images


def _pixels(png: bytes, what: str, modes: tuple[str, ...], max_pixels: int) -> NDArray[Any]:
    """Decode a PNG once its header is known to be harmless."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
                _check_image(image, what, modes, max_pixels)
                return np.asarray(image)
    except ScanRefused:
        raise
    except Image.DecompressionBombError:
        raise too_many_pixels(what, max_pixels) from None
    except Image.DecompressionBombWarning:
        raise too_many_pixels(what, max_pixels) from None
    except Exception as error:  # a broken PNG raises half a dozen kinds of errors
        raise ScanRefused("invalid_png", f"The {what} cannot be decoded: {str(error)[:200]}.") from None


def too_many_pixels(what: str, limit: int) -> ScanRefused:
    """A larger image than this service takes."""
    return ScanRefused(
        "too_many_pixels", f"The {what} has more than {limit} pixels. Scale it down.", status=413
    )


def _check_image(image: Image.Image, what: str, modes: tuple[str, ...], max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise too_many_pixels(what, max_pixels)
    if image.mode not in modes:
        wanted = "8-bit greyscale" if "L" in modes else "16-bit greyscale"
        raise ScanRefused("wrong_image_kind", f"The {what} must be a {wanted} PNG; this one is {image.mode}.")


def _mask(png: bytes, shape: tuple[int, ...], max_pixels: int) -> NDArray[np.bool_]:
    mask = _pixels(png, "mask", ("L", "1"), max_pixels)
    if mask.shape != shape:
        detail = f"The mask has {mask.shape[::-1]} pixels and the depth map {shape[::-1]}. Send equal sizes."
        raise ScanRefused("mask_size", detail)
    if not mask.any():
        raise ScanRefused("empty_mask", "The mask is black everywhere. Paint the object's pixels white.")
    return np.asarray(mask > 0)


# What comes as JSON


def is_number(value: Any) -> bool:
    """A finite number that is no boolean."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 2**63 if isinstance(value, int) else math.isfinite(value)


def intrinsics_of(value: Any) -> Intrinsics:
    """{"fx", "fy", "cx", "cy"} or the rows of a 3x3 camera matrix. Raises ScanRefused."""
    wanted = 'Send {"fx", "fy", "cx", "cy"} in pixels, or a 3x3 camera matrix.'
    if isinstance(value, list):
        matrix = _numbers(value, (3, 3))
        if matrix is None or tuple(matrix[2]) != (0, 0, 1) or matrix[1, 0] or matrix[0, 1]:
            raise ScanRefused("invalid_intrinsics", f"This is no 3x3 pinhole matrix without skew. {wanted}")
        return Intrinsics(matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2])
    if not isinstance(value, dict) or not all(is_number(value.get(key)) for key in ("fx", "fy", "cx", "cy")):
        raise ScanRefused("invalid_intrinsics", f"Numbers are missing in `intrinsics`. {wanted}")
    if unknown := value.keys() - {"fx", "fy", "cx", "cy", "width", "height", "depth_scale"}:
        raise ScanRefused("invalid_intrinsics", f"Unknown in `intrinsics`: {sorted(unknown)}. {wanted}")
    return Intrinsics(**{key: value[key] for key in value if key != "depth_scale"})


def scale_of(intrinsics: Any, field: str | None) -> float:
    """Depth units per metre: from the form field, else from inside `intrinsics`, else millimetres."""
    inside = intrinsics.get("depth_scale", DEFAULT_SCALE) if isinstance(intrinsics, dict) else DEFAULT_SCALE
    try:
        scale = float(inside if field is None else field)
    except (TypeError, ValueError):
        scale = math.nan
    if not 1e-3 <= scale <= 1e6:
        raise ScanRefused(
            "invalid_depth_scale", "`depth_scale` must be units per metre, such as 1000 for mm."
        )
    return scale


def pose_of(value: Any) -> Floats:
    """A rigid 4x4 matrix, row by row: 4 rows of 4 numbers, or 16 numbers. Raises ScanRefused."""
    pose = _numbers(value, (4, 4))
    if pose is None:
        raise ScanRefused("invalid_camera_to_world", "`camera_to_world` must be 16 numbers, row by row.")
    turn = pose[:3, :3]
    rigid = np.abs(turn @ turn.T - np.eye(3)).max() < 1e-3 and np.linalg.det(turn) > 0
    if not rigid or tuple(pose[3]) != (0, 0, 0, 1) or np.abs(pose).max() > 1e9:
        detail = "`camera_to_world` must be a rotation and a translation, with the last row 0 0 0 1."
        raise ScanRefused("invalid_camera_to_world", detail)
    return pose


def _numbers(value: Any, shape: tuple[int, int]) -> Floats | None:
    rows = value if isinstance(value, list) else []
    flat = [x for row in rows for x in (row if isinstance(row, list) else [row])]
    if len(flat) != math.prod(shape) or not all(map(is_number, flat)):
        return None
    with np.errstate(over="ignore"):
        return np.array(flat, dtype=np.float64).reshape(shape)


def _check_camera(camera: Intrinsics, shape: tuple[int, ...]) -> None:
    height, width = shape
    if camera.fx <= 0 or camera.fy <= 0:
        raise ScanRefused("invalid_intrinsics", "The focal lengths fx and fy must be positive pixels.")
    if max(camera.fx, camera.fy) > 100 * max(shape) or min(camera.fx, camera.fy) < max(shape) / 100:
        detail = (
            f"Focal lengths of {camera.fx:g} and {camera.fy:g} pixels do not fit {width} x {height} pixels."
        )
        raise ScanRefused("invalid_intrinsics", detail)
    if not (-width <= camera.cx <= 2 * width and -height <= camera.cy <= 2 * height):
        raise ScanRefused("invalid_intrinsics", "The principal point (cx, cy) is far outside the image.")
    if (camera.width or width, camera.height or height) != (width, height):
        stated = f"`intrinsics` are for {camera.width} x {camera.height} pixels"
        raise ScanRefused("invalid_intrinsics", f"{stated}; the depth map has {width} x {height}.")
