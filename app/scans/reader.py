"""One door for every format: recognise it by its first bytes, then read it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import numpy as np

from app.scans import clouds, depth
from app.scans.scan import Floats, Scan, ScanRefused, checked

FORMATS = "PLY, XYZ, NPY or NPZ point clouds, or a 16-bit depth PNG with `intrinsics`"


@dataclass(frozen=True)
class Limits:
    """What this service takes at most."""

    points: int = 2_000_000
    pixels: int = 16_000_000


@dataclass(frozen=True)
class Attachments:
    """What came beside the scan, as it came: JSON texts and the bytes of the mask."""

    viewpoint: str | None = None
    intrinsics: str | None = None
    depth_scale: str | None = None
    camera_to_world: str | None = None
    mask: bytes | None = None


def read_scan(
    data: bytes, name: str, beside: Attachments | None = None, limits: Limits | None = None
) -> Scan:
    """Read an upload called `name`.

    Raises ScanRefused: 415 for an unknown format, 413 for one too large, 422 for one that cannot be read.
    """
    beside, limits = beside or Attachments(), limits or Limits()
    if not data:
        raise ScanRefused("empty_file", "The file is empty. Send a scan in the field `scan`.")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return checked(_depth_map(data, beside, limits), limits.points)
    for given in ("intrinsics", "depth_scale", "camera_to_world", "mask"):
        if getattr(beside, given) is not None:
            raise ScanRefused("not_a_depth_map", f"`{given}` belongs to a depth map, and this is none.")
    scan = checked(_cloud(data, name, limits), limits.points)
    return replace(scan, viewpoint=_viewpoint(beside.viewpoint))


def _cloud(data: bytes, name: str, limits: Limits) -> Scan:
    if data.startswith((b"ply\n", b"ply\r")):
        return clouds.read_ply(data, limits.points)
    if data.startswith(b"\x93NUMPY"):
        return clouds.read_npy(data, limits.points)
    if data.startswith(b"PK\x03\x04"):
        return clouds.read_npz(data, limits.points)
    if PurePath(name).suffix.lower() in (".xyz", ".txt"):
        return clouds.read_xyz(data, limits.points)
    raise ScanRefused(
        "unknown_format", f"The format of {name!r} is not known here. Send {FORMATS}.", status=415
    )


def _depth_map(data: bytes, beside: Attachments, limits: Limits) -> Scan:
    if beside.viewpoint is not None:
        raise ScanRefused("viewpoint_twice", "A depth map is seen from its camera. Leave `viewpoint` out.")
    if beside.intrinsics is None:
        raise ScanRefused("intrinsics_missing", 'A depth map needs `intrinsics`: {"fx", "fy", "cx", "cy"}.')
    intrinsics = parse_json("intrinsics", beside.intrinsics)
    pose = beside.camera_to_world
    return depth.read_depth_map(
        data,
        depth.intrinsics_of(intrinsics),
        scale=depth.scale_of(intrinsics, beside.depth_scale),
        mask=beside.mask,
        camera_to_world=None if pose is None else depth.pose_of(parse_json("camera_to_world", pose)),
        max_pixels=limits.pixels,
        max_points=limits.points,
    )


def parse_json(field: str, text: str) -> Any:
    """The value of a JSON form field; NaN and Infinity are not JSON."""

    def refuse(_: str) -> float:
        raise ValueError("not a finite number")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ScanRefused(f"invalid_{field}", f"`{field}` is not valid JSON: {error}.") from None


def _viewpoint(text: str | None) -> Floats | None:
    if text is None:
        return None
    value = parse_json("viewpoint", text)
    numbers = isinstance(value, list) and len(value) == 3 and all(map(depth.is_number, value))
    if not numbers or not all(math.isfinite(x) and abs(x) <= 1e9 for x in value):
        raise ScanRefused("invalid_viewpoint", "`viewpoint` must be three numbers: [x, y, z].")
    return np.array(value, dtype=np.float64)
