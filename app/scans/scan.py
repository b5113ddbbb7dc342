"""What a scan is, and what every scan must satisfy."""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MIN_POINTS = 64
MAX_COORDINATE = 1e9
"""Beyond it float64 can no longer hold a millimetre beside the square of a coordinate."""


class ScanRefused(Exception):
    """The upload cannot become a scan. `status` is the HTTP status that fits."""

    def __init__(self, code: str, detail: str, status: int = 422) -> None:
        super().__init__(detail)
        self.code, self.detail, self.status = code, detail, status


@dataclass(frozen=True)
class Scan:
    """Points of a partly seen object, all in the scan's own frame and unit."""

    points: Floats  # (N, 3)
    normals: Floats | None = None  # (N, 3) unit
    viewpoint: Floats | None = None  # (3,) where the sensor stood
    background: Floats | None = None  # (M, 3) unit directions from the viewpoint that met nothing
    colors: NDArray[np.uint8] | None = None  # (N, 3) RGB
    up: str = "+y"  # what "auto" means for this kind of scan
    warnings: list[str] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        """The scan as an NPZ without pickles, which `from_bytes` reads back exactly."""
        names = ("points", "normals", "viewpoint", "background", "colors")
        arrays = {name: value for name in names if (value := getattr(self, name)) is not None}
        buffer = io.BytesIO()
        np.savez(buffer, up=np.array(self.up), warnings=np.array(self.warnings, dtype=str), **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Scan:
        """Read what `to_bytes` wrote; not for bytes from outside."""
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            fields: dict[str, Any] = {name: stored[name] for name in stored.files}
        fields["up"], fields["warnings"] = str(fields["up"]), [str(text) for text in fields["warnings"]]
        return cls(**fields)


def checked(scan: Scan, max_points: int) -> Scan:
    """The scan without unusable rows; each thing left out is told in `warnings`.

    Raises ScanRefused when what remains is not a surface seen by a sensor.
    """
    scan = _with_sound_normals(_without_holes(scan))
    if len(scan.points) < MIN_POINTS:
        found = f"The scan has {len(scan.points)} usable points"
        raise ScanRefused("too_few_points", f"{found}; a completion needs at least {MIN_POINTS}.")
    if len(scan.points) > max_points:
        raise too_many_points(len(scan.points), max_points)
    if np.abs(scan.points).max() > MAX_COORDINATE:
        raise ScanRefused("out_of_range", "Coordinates exceed 1e9. Move the scan nearer to the origin.")
    if np.ptp(scan.points, axis=0).max() <= 1e-9 * np.abs(scan.points).max():
        raise ScanRefused("no_extent", "All points lie at one place. Send points spread over an object.")
    return scan


def too_many_points(count: int, limit: int) -> ScanRefused:
    """More points than this service takes."""
    detail = f"The scan has {count} points and the limit is {limit}. Send every n-th point."
    return ScanRefused("too_many_points", detail, status=413)


def _without_holes(scan: Scan) -> Scan:
    finite = np.asarray(np.isfinite(scan.points).all(axis=1))
    if finite.all():
        return scan
    told = f"{int((~finite).sum())} of {len(finite)} points left out: not finite."
    return replace(
        scan,
        points=scan.points[finite],
        normals=None if scan.normals is None else scan.normals[finite],
        colors=None if scan.colors is None else scan.colors[finite],
        warnings=[*scan.warnings, told],
    )


def _with_sound_normals(scan: Scan) -> Scan:
    if scan.normals is None:
        return scan
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(scan.normals, axis=1, keepdims=True)
    if np.isfinite(lengths).all() and (lengths > 1e-12).all():
        return replace(scan, normals=scan.normals / lengths)
    return replace(
        scan, normals=None, warnings=[*scan.warnings, "Normals ignored: some are zero or not finite."]
    )
