"""What comes beside a scan as JSON text: numbers, vectors, matrices."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from app.scans.scan import MAX_COORDINATE, Floats, ScanRefused


def parse_json(field: str, text: str) -> Any:
    """The value of a JSON form field; NaN and Infinity are not JSON."""

    def refuse(_: str) -> float:
        raise ValueError("not a finite number")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ScanRefused(f"invalid_{field}", f"`{field}` is not valid JSON: {error}.") from None


def is_number(value: Any) -> bool:
    """A finite number that is no boolean."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 2**63 if isinstance(value, int) else math.isfinite(value)


def numbers(value: Any, shape: tuple[int, ...]) -> Floats | None:
    """A list, or a list of lists, of as many numbers as `shape` has; None if it is anything else."""
    rows = value if isinstance(value, list) else []
    flat = [x for row in rows for x in (row if isinstance(row, list) else [row])]
    if len(flat) != math.prod(shape) or not all(map(is_number, flat)):
        return None
    with np.errstate(over="ignore"):
        return np.array(flat, dtype=np.float64).reshape(shape)


def viewpoint_of(value: Any) -> Floats:
    """[x, y, z] as an array (3,). Raises ScanRefused."""
    place = numbers(value, (3,)) if isinstance(value, list) and len(value) == 3 else None
    if place is None or not np.isfinite(place).all() or np.abs(place).max() > MAX_COORDINATE:
        raise ScanRefused("invalid_viewpoint", "`viewpoint` must be three numbers: [x, y, z].")
    return place
