"""Depth maps: what a pinhole camera saw, as points and as rays that met nothing.

The camera looks along +z with x to the right and y down (REP 118).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.scans.camera import Intrinsics
from app.scans.images import color_pixels, depth_pixels, mask_pixels
from app.scans.scan import MAX_COORDINATE, Floats, ScanView

MAX_BACKGROUND = 4096
"""Rays that met nothing, of one depth map."""


@dataclass(frozen=True)
class DepthMap:
    """The bytes of a depth map and what came beside it."""

    data: bytes
    intrinsics: Intrinsics
    scale: float | None = None  # stored values per metre; None: millimetres, or metres if they are floats
    mask: bytes | None = None
    color_image: bytes | None = None
    camera_to_world: Floats | None = None  # (4, 4)


def read_depth_map(given: DepthMap, max_pixels: int, max_points: int) -> tuple[ScanView, list[str], int]:
    """Points (N, 3) in metres of the masked pixels, and rays past the object.

    Without `camera_to_world` the view is in the camera's frame. Returns the view, words on what was left
    out, and the number of pixels. Raises ScanRefused.
    """
    values, usual = depth_pixels(given.data, max_pixels)
    depth = _metres(values, given.scale or usual)
    height, width = depth.shape
    given.intrinsics.check((height, width))
    inside = np.ones(depth.shape, bool)
    if given.mask is not None:
        inside = mask_pixels(given.mask, depth.shape, max_pixels)
    colors = None if given.color_image is None else color_pixels(given.color_image, depth.shape, max_pixels)
    rows, columns = np.nonzero(inside & (depth > 0))
    told = []
    if len(rows) > max_points:
        told = [f"{len(rows)} pixels thinned out to {max_points} points."]
        rows, columns = _thinned(rows, columns, max_points)
    seen = depth[rows, columns]
    background = None
    if given.mask is not None:
        background = _background(depth, inside, given.intrinsics, seen.max(initial=0.0))
    pose = np.eye(4) if given.camera_to_world is None else given.camera_to_world
    view = ScanView(
        points=(given.intrinsics.rays(rows, columns) * seen[:, None]) @ pose[:3, :3].T + pose[:3, 3],
        viewpoint=pose[:3, 3].copy(),
        background=None if background is None else background @ pose[:3, :3].T,
        colors=None if colors is None else colors[rows, columns],
    )
    return view, told, depth.size


def _metres(values: NDArray[Any], scale: float) -> Floats:
    """Depth (H, W) in metres; 0 where there is no measurement, which floats say by NaN or infinity.

    Renderers also write 1e10 where nothing was hit.
    """
    depth = values.astype(np.float64) / scale
    return np.where((depth > 0) & (depth < MAX_COORDINATE), depth, 0.0)


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
