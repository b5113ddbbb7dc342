"""What the tests of benchmarks share: lists of shapes, and the last line that a benchmark prints."""

from __future__ import annotations

import csv
import re
from dataclasses import fields
from pathlib import Path

from model.training.shapes import Shape

COLUMNS = [field.name for field in fields(Shape) if field.name != "size"] + ["width", "height", "depth"]
"""Of shapes.csv."""


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    """Write rows with the columns of the first."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def last_number(printed: str, pattern: str) -> float:
    """The number in the last line, which the pattern must match."""
    found = re.fullmatch(pattern, printed.splitlines()[-1])
    assert found, printed
    return float(found[1])
