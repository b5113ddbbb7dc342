"""Chairs that a program draws, as shapes to train on."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import trimesh

from model.training.drawn.chairs import chair
from model.training.shapes import DRAWN, Shape, SourceError


def draw(file: str) -> trimesh.Trimesh:
    """The chair that a row of shapes.csv calls `file`: "chair/17". Raises SourceError."""
    category, _, number = file.partition("/")
    if category != "chair" or not number.isdecimal():
        raise SourceError(f"{file}: what is drawn is called chair/NUMBER")
    _, triangles = chair(int(number))
    return trimesh.Trimesh(triangles.reshape(-1, 3), np.arange(3 * len(triangles)).reshape(-1, 3))


def rows(numbers: Iterable[int]) -> list[Shape]:
    """Training shapes of the chairs of these numbers."""
    return [_row(number) for number in numbers]


def _row(number: int) -> Shape:
    kind, triangles = chair(number)
    size = np.ptp(triangles.reshape(-1, 3), axis=0)
    name, file = f"drawn_chair_{number:04d}", f"chair/{number}"
    words = (name, f"Drawn {kind} {number}", "chair", kind, "train", name, DRAWN, file)
    return Shape(*words, np.eye(3), size, "this project", "CC0-1.0")
