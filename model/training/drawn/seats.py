"""The seat, to which the other parts of a chair are fitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from model.training.drawn.solids import (
    AROUND,
    SQUARE,
    Floats,
    Parts,
    Random,
    line,
    rod,
    slab,
    superellipse,
)


@dataclass(frozen=True)
class Seat:
    """What the other parts are fitted to: the size and outline of the seat, and the kind of chair."""

    kind: str
    width: float  # of its front edge
    depth: float
    top: float  # height of its upper face
    thickness: float
    power: float  # of the outline's superellipse
    taper: float  # by which share the back edge is narrower
    rise: float  # slope of the seat: the front edge is higher

    @property
    def under(self) -> float:
        """Height of the lower face."""
        return self.top - self.thickness

    def half_width(self, z: float) -> float:
        """Half the width where the depth is z, of the box around the outline."""
        return self.width / 2 * (1 - self.taper * (0.5 - z / self.depth))

    def corner(self, front: bool, inset: float) -> tuple[float, float]:
        """x and z of a leg at the right: `inset` from the edges, and on the seat also where it is round."""
        z = (self.depth / 2 - inset) * (1 if front else -1)
        reach = 2 ** (-1 / self.power) * 1.08 if self.power < 6 else 1.0
        return (self.half_width(z) - inset) * min(reach, 1.0), z * min(reach, 1.0)


def _seat_surface(seat: Seat) -> Callable[[Floats], Floats]:
    """Places of (x, z, height above the middle of the seat's thickness)."""

    def places(at: Floats) -> Floats:
        narrower = 1 - seat.taper * (0.5 - at[:, 1] / seat.depth)
        height = seat.top - seat.thickness / 2 + at[:, 2] + seat.rise * at[:, 1]
        return np.column_stack([at[:, 0] * narrower, height, at[:, 1]])

    return places


def seat_parts(seat: Seat, rng: Random) -> Parts:
    """A board or cushion, or bars."""
    outline = superellipse(seat.power, AROUND) * [seat.width / 2, seat.depth / 2]
    edge = seat.thickness * rng.uniform(0.1, 0.5)
    if seat.kind in ("chair", "lounge") and seat.power > 5 and rng.uniform() < 0.15:
        return _slatted_seat(seat, rng)
    dish = rng.uniform(0, 0.02) if rng.uniform() < 0.5 else -rng.uniform(0, 0.03)
    return [slab(outline, seat.thickness, edge, _seat_surface(seat), dish)]


def _slatted_seat(seat: Seat, rng: Random) -> Parts:
    """Bars from left to right on two beams from front to back."""
    count, half = int(rng.integers(5, 11)), seat.thickness / 4
    y = seat.top - half
    parts = []
    for z in np.linspace(-0.47, 0.47, count) * seat.depth:
        x, wide = seat.half_width(z), 0.3 * seat.depth / count
        at = y + seat.rise * z
        parts.append(rod(line((-x, at, z), (x, at, z)), (wide, half), SQUARE, (0, 0, 1)))
    for side in (-1, 1):
        back, front = (
            (side * 0.85 * seat.half_width(z), y - half - 0.01 + seat.rise * z, z)
            for z in (-seat.depth / 2, seat.depth / 2)
        )
        parts.append(rod(line(back, front), (0.015, 0.02), SQUARE))
    return parts
