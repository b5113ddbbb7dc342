"""What a scan is, and what every scan must satisfy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import numpy as safetensors
from safetensors import safe_open

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]

MIN_POINTS = 64
MAX_COORDINATE = 1e9
"""Beyond it float64 can no longer hold a millimetre beside the square of a coordinate."""


Flaw = tuple[str, str]
"""Where something is wrong in a request, as a JSON pointer, and what."""


class ScanRefused(Exception):
    """The upload cannot become a scan. `status` is the HTTP status that fits."""

    def __init__(self, code: str, detail: str, status: int = 422, flaws: Sequence[Flaw] = ()) -> None:
        super().__init__(detail)
        self.code, self.detail, self.status, self.flaws = code, detail, status, flaws


@dataclass(frozen=True)
class ScanView:
    """What a sensor saw from one place, in the scan's own frame and unit."""

    points: Floats  # (N, 3)
    normals: Floats | None = None  # (N, 3) unit
    viewpoint: Floats | None = None  # (3,) where the sensor stood
    background: Floats | None = None  # (M, 3) unit directions from the viewpoint that met nothing
    colors: Bytes | None = None  # (N, 3) RGB

    def of(self, rows: NDArray[Any]) -> ScanView:
        """The view with some of its points: a mask (N,) or indices."""
        return replace(
            self,
            points=self.points[rows],
            normals=None if self.normals is None else self.normals[rows],
            colors=None if self.colors is None else self.colors[rows],
        )


ARRAYS = ("points", "normals", "viewpoint", "background", "colors")
ORIGINAL = "original/"


@dataclass(frozen=True)
class Scan:
    """A partly seen object: one view or several, all in one frame and unit."""

    views: list[ScanView]
    up: str = "+y"  # what "auto" means for this kind of scan
    warnings: list[str] = field(default_factory=list)

    def save(self, path: Path, originals: Mapping[str, bytes]) -> None:
        """Write a new file: the scan, as `load` reads it back exactly, and by name the files it came from.

        It is one safetensors, which is written in a tenth of an NPZ's time. Raises OSError.
        """
        told = json.dumps({"up": self.up, "warnings": self.warnings}).encode()
        arrays: dict[str, Any] = {
            f"{number}.{name}": value
            for number, view in enumerate(self.views)
            for name in ARRAYS
            if (value := getattr(view, name)) is not None
        }
        files = {f"{ORIGINAL}{name}": np.frombuffer(data, np.uint8) for name, data in originals.items()}
        data = safetensors.save({"told": np.frombuffer(told, np.uint8), **arrays, **files})
        try:
            _write(path, data)
        except FileNotFoundError:  # the first one
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, data)

    def to_ply(self) -> bytes:
        """The points of all views as a binary PLY, with normals and colours where every view has them."""
        parts: list[tuple[NDArray[Any], tuple[str, ...], str, str]] = [
            (np.concatenate([view.points for view in self.views]), ("x", "y", "z"), "double", "<f8")
        ]
        if (normals := _joined([view.normals for view in self.views])) is not None:
            parts.append((normals, ("nx", "ny", "nz"), "float", "<f4"))
        if (colors := _joined([view.colors for view in self.views])) is not None:
            parts.append((colors, ("red", "green", "blue"), "uchar", "u1"))
        columns = [(name, kind, code) for _, names, kind, code in parts for name in names]
        rows = np.empty(len(parts[0][0]), [(name, code) for name, _, code in columns])
        for values, names, _, _ in parts:
            for column, name in enumerate(names):
                rows[name] = values[:, column]
        lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
        lines += [f"property {kind} {name}" for name, kind, _ in columns]
        return "\n".join([*lines, "end_header\n"]).encode() + rows.tobytes()

    @classmethod
    def load(cls, path: Path) -> Scan:
        """Read what `save` wrote; not for files from outside. Raises FileNotFoundError."""
        views: dict[int, dict[str, Any]] = {}
        with safe_open(path, "np") as file:
            told = json.loads(file.get_tensor("told").tobytes())
            for key in file.keys():  # noqa: SIM118 (it is no mapping)
                number, _, name = key.partition(".")
                if name in ARRAYS:
                    views.setdefault(int(number), {})[name] = file.get_tensor(key)
        return cls([ScanView(**views[number]) for number in sorted(views)], told["up"], told["warnings"])


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)


def _joined(parts: list[NDArray[Any] | None]) -> NDArray[Any] | None:
    """One array of all, if there are all."""
    there = [part for part in parts if part is not None]
    return np.concatenate(there) if there and len(there) == len(parts) else None


def checked_view(view: ScanView) -> tuple[ScanView, list[str]]:
    """The view without unusable rows, and words on each thing left out."""
    told = []
    finite = np.asarray(np.isfinite(view.points).all(axis=1))
    if not finite.all():
        told.append(f"{int((~finite).sum())} of {len(finite)} points left out: not finite.")
        view = view.of(finite)
    if view.normals is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            lengths = np.linalg.norm(view.normals, axis=1, keepdims=True)
        if np.isfinite(lengths).all() and (lengths > 1e-12).all():
            view = replace(view, normals=view.normals / lengths)
        else:
            told.append("Normals ignored: some are zero or not finite.")
            view = replace(view, normals=None)
    return view, told


def checked(scan: Scan, max_points: int) -> Scan:
    """The scan, if its views together are a surface seen by a sensor. Raises ScanRefused."""
    points = np.concatenate([np.empty((0, 3)), *(view.points for view in scan.views)])
    if len(points) < MIN_POINTS:
        found = f"The scan has {len(points)} usable points"
        raise ScanRefused("too_few_points", f"{found}; a completion needs at least {MIN_POINTS}.")
    if len(points) > max_points:
        raise too_many_points(len(points), max_points)
    if np.abs(points).max() > MAX_COORDINATE:
        raise ScanRefused("out_of_range", "Coordinates exceed 1e9. Move the scan nearer to the origin.")
    if np.ptp(points, axis=0).max() <= 1e-9 * np.abs(points).max():
        raise ScanRefused("no_extent", "All points lie at one place. Send points spread over an object.")
    return scan


def too_many_points(count: int, limit: int) -> ScanRefused:
    """More points than this service takes."""
    detail = f"The scan has {count} points and the limit is {limit}. Send every n-th point."
    return ScanRefused("too_many_points", detail, status=413)
