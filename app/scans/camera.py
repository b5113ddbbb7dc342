"""The pinhole camera of a depth map: intrinsics in every form that people have them in, and its pose.

The camera looks along +z with x to the right and y down (REP 118).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.scans.fields import is_number, numbers
from app.scans.scan import Floats, ScanRefused

WANTED = 'Send {"fx", "fy", "cx", "cy"} in pixels, a 3x3 camera matrix, or an intrinsic of Open3D.'
FOCAL = {"fx", "fy", "cx", "cy"}
SIZE = {"width", "height"}


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

    def check(self, shape: tuple[int, int]) -> None:
        """Raises ScanRefused unless this can be the camera of an image of `shape` (height, width)."""
        height, width = shape
        if self.fx <= 0 or self.fy <= 0:
            raise refused("The focal lengths fx and fy must be positive pixels.")
        if max(self.fx, self.fy) > 100 * max(shape) or min(self.fx, self.fy) < max(shape) / 100:
            focal = f"Focal lengths of {self.fx:g} and {self.fy:g} pixels"
            raise refused(f"{focal} do not fit {width} x {height} pixels.")
        if not (-width <= self.cx <= 2 * width and -height <= self.cy <= 2 * height):
            raise refused("The principal point (cx, cy) is far outside the image.")
        if (self.width or width, self.height or height) != (width, height):
            stated = f"`intrinsics` are for {self.width} x {self.height} pixels"
            raise refused(f"{stated}; the depth map has {width} x {height}.")


def refused(detail: str) -> ScanRefused:
    """No camera of this depth map."""
    return ScanRefused("invalid_intrinsics", detail)


def intrinsics_of(value: Any) -> Intrinsics:
    """{"fx", "fy", "cx", "cy"}, the rows of a 3x3 matrix, or Open3D's JSON. Raises ScanRefused."""
    if isinstance(value, list):
        return _of_matrix(numbers(value, (3, 3)), None, None)
    if not isinstance(value, dict):
        raise refused(f"`intrinsics` must be an object or a list. {WANTED}")
    if isinstance(value.get("intrinsic"), dict):  # Open3D's PinholeCameraParameters
        _check_keys(value, {"intrinsic", "extrinsic"})
        return _of_open3d(value["intrinsic"])
    if "intrinsic_matrix" in value:
        return _of_open3d(value)
    if not all(is_number(value.get(key)) for key in FOCAL):
        raise refused(f"Numbers are missing in `intrinsics`. {WANTED}")
    _check_keys(value, FOCAL | SIZE)
    return Intrinsics(**{key: value[key] for key in FOCAL | SIZE if key in value})


def _of_open3d(value: dict[str, Any]) -> Intrinsics:
    """Open3D's PinholeCameraIntrinsic, which writes its matrix column by column."""
    _check_keys(value, {"intrinsic_matrix", *SIZE})
    columns = numbers(value.get("intrinsic_matrix"), (3, 3))
    return _of_matrix(None if columns is None else columns.T, value.get("width"), value.get("height"))


def _check_keys(value: dict[str, Any], known: set[str]) -> None:
    """Lens distortion, say, must not be passed over in silence."""
    beside = {"depth_scale", "class_name", "version_major", "version_minor"}
    if unknown := value.keys() - known - beside:
        raise refused(f"Unknown in `intrinsics`: {sorted(unknown)}. {WANTED}")


def _of_matrix(matrix: Floats | None, width: Any, height: Any) -> Intrinsics:
    if matrix is None or tuple(matrix[2]) != (0, 0, 1) or matrix[1, 0] or matrix[0, 1]:
        order = "A matrix goes row by row, the `intrinsic_matrix` of Open3D column by column."
        raise refused(f"This is no 3x3 pinhole matrix without skew. {order}")
    return Intrinsics(matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2], width, height)


def scale_of(intrinsics: Any, field: str | None) -> float | None:
    """Depth units per metre: from the form field, else from inside `intrinsics`, else None."""
    inside = intrinsics.get("depth_scale") if isinstance(intrinsics, dict) else None
    given = inside if field is None else field
    if given is None:
        return None
    try:
        scale = float(given)
    except (TypeError, ValueError):
        scale = math.nan
    if not 1e-3 <= scale <= 1e6:
        raise ScanRefused(
            "invalid_depth_scale", "`depth_scale` must be units per metre, such as 1000 for mm."
        )
    return scale


def pose_of(value: Any) -> Floats:
    """A rigid 4x4 matrix, row by row: 4 rows of 4 numbers, or 16 numbers. Raises ScanRefused."""
    pose = numbers(value, (4, 4))
    if pose is None:
        raise _no_pose("`camera_to_world` must be 16 numbers, row by row.")
    turn = pose[:3, :3]
    with np.errstate(over="ignore", invalid="ignore"):
        rigid = np.abs(turn @ turn.T - np.eye(3)).max() < 1e-3 and np.linalg.det(turn) > 0
    if not rigid or tuple(pose[3]) != (0, 0, 0, 1) or np.abs(pose).max() > 1e9:
        raise _no_pose("`camera_to_world` must be a rotation and a translation, with the last row 0 0 0 1.")
    return pose


def extrinsic_of(intrinsics: Any) -> Floats | None:
    """The pose that Open3D's camera parameters hold, which is world to camera, column by column."""
    if not isinstance(intrinsics, dict) or "extrinsic" not in intrinsics:
        return None
    columns = numbers(intrinsics["extrinsic"], (4, 4))
    if columns is None:
        raise _no_pose("`extrinsic` in `intrinsics` must be 16 numbers, column by column.")
    to_camera = pose_of(columns.T.tolist())
    pose = np.eye(4)
    pose[:3, :3] = to_camera[:3, :3].T
    pose[:3, 3] = -to_camera[:3, :3].T @ to_camera[:3, 3]
    return pose


def _no_pose(detail: str) -> ScanRefused:
    return ScanRefused("invalid_camera_to_world", detail)
