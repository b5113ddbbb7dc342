"""Reads AC3D, the format of flight and racing simulators (`.ac`; `.acc` has triangle strips beside polygons).

A file is a tree of objects. Each has a name, a turn and a place within its parent, vertices, surfaces and
children.
The format: https://www.inivis.com/ac3d/man/ac3dfileformat.html
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

POLYGON, STRIP = 0, 4  # low four bits of a surface's flags; 1 and 2 are lines, which have no area


class Ac3dError(ValueError):
    """A file is no AC3D, or ends early; the message says where."""


@dataclass
class Part:
    """One object of the file."""

    name: str
    vertices: Floats  # (V, 3) in the file's frame
    faces: Ints  # (F, 3)


@dataclass
class _Frame:
    """Where an object stands: v ↦ v·turn + place."""

    turn: Floats = field(default_factory=lambda: np.eye(3))
    place: Floats = field(default_factory=lambda: np.zeros(3))

    def within(self, parent: _Frame) -> _Frame:
        return _Frame(self.turn @ parent.turn, self.place @ parent.turn + parent.place)


def read_parts(content: bytes) -> list[Part]:
    """The objects with surfaces, in the order of the file; polygons as fans, lines left out.

    Raises Ac3dError.
    """
    lines = _Lines(content)
    try:
        if not lines.next().startswith("AC3D"):
            raise ValueError("no AC3D file: the first line must begin with AC3D")
        while not lines.peek().startswith("OBJECT"):
            lines.next()  # materials
        return list(_parts(lines, _Frame()))
    except (ValueError, IndexError) as error:
        raise Ac3dError(f"line {lines.number} of the AC3D file: {error}") from error


class _Lines:
    """The lines that say something, one after the other."""

    def __init__(self, content: bytes) -> None:
        # Names are not always UTF-8; in Latin-1 one byte is one character, as `data` counts them.
        self._lines = content.decode("latin-1").splitlines()
        self.number = 0

    def ended(self) -> bool:
        while self.number < len(self._lines) and not self._lines[self.number].strip():
            self.number += 1
        return self.number == len(self._lines)

    def peek(self) -> str:
        if self.ended():
            raise ValueError("the file ends early")
        return self._lines[self.number].strip()

    def next(self) -> str:
        line = self.peek()
        self.number += 1
        return line

    def skip(self, characters: int) -> None:
        """Pass over a block of free text, which may look like anything."""
        passed = 0
        while passed < characters:
            passed += len(self._lines[self.number]) + 1
            self.number += 1


def _parts(lines: _Lines, parent: _Frame) -> Iterator[Part]:
    """One object and its children; `kids` is always an object's last line."""
    lines.next()
    name, frame = "", _Frame()
    vertices = np.empty((0, 3))
    faces: list[list[int]] = []
    while True:
        key, _, rest = lines.next().partition(" ")
        if key == "name":
            name = rest.strip().strip('"')
        elif key == "loc":
            frame.place = np.array(rest.split(), float)
        elif key == "rot":
            frame.turn = np.array(rest.split(), float).reshape(3, 3)
        elif key == "data":
            lines.skip(int(rest))
        elif key == "numvert":
            rows = [lines.next().split()[:3] for _ in range(int(rest))]  # .acc: normals follow
            vertices = np.array(rows, float).reshape(-1, 3)
        elif key == "numsurf":
            faces = [face for _ in range(int(rest)) for face in _surface(lines)]
        elif key == "kids":
            break
    here = frame.within(parent)
    if faces:
        corners = np.array(faces)
        if corners.min() < 0 or corners.max() >= len(vertices):
            raise ValueError(f'the object "{name}" uses a vertex that it does not have')
        yield Part(name, vertices @ here.turn + here.place, corners)
    for _ in range(int(rest)):
        if lines.ended():  # some exporters promise more children than they write
            return
        yield from _parts(lines, here)


def _surface(lines: _Lines) -> list[list[int]]:
    """Triangles of the next surface."""
    kind = POLYGON
    while True:
        key, _, rest = lines.next().partition(" ")
        if key == "SURF":
            kind = int(rest, 16) & 0xF
        elif key == "refs":
            break
    corners = [int(lines.next().split()[0]) for _ in range(int(rest))]
    if kind == POLYGON:
        return [[corners[0], *pair] for pair in pairwise(corners[1:])]
    if kind == STRIP:
        # Every other triangle of a strip turns the other way round.
        triples = zip(corners, corners[1:], corners[2:], strict=False)
        return [list(triple) if i % 2 == 0 else list(triple[::-1]) for i, triple in enumerate(triples)]
    return []
