"""What a chair stands on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from model.training.drawn.seats import Seat
from model.training.drawn.solids import (
    AROUND,
    SQUARE,
    Floats,
    Parts,
    Random,
    bent,
    both,
    line,
    one_of,
    rod,
    section,
    slab,
    superellipse,
)


def _leg_height(seat: Seat, z: float) -> float:
    return seat.top - seat.thickness / 2 + seat.rise * z


def _four(seat: Seat, rng: Random, splay: float = 0.0) -> Parts:
    first, second, power = section(rng)
    slimmer, inset = rng.uniform(0.5, 1.0), rng.uniform(0.01, 0.06)
    bow = rng.normal(0, 0.02) if rng.uniform() < 0.3 else 0.0
    feet, parts = {}, []
    for front in (True, False):
        x, z = seat.corner(front, inset + first)
        way = 1 if front else -1
        foot = (x + splay * rng.uniform(0.3, 1.0), 0.0, z + way * splay * rng.uniform(0.3, 1.2))
        head = (x, _leg_height(seat, z), z)
        path = line(foot, head, bow=(0, 0, bow * way))
        widths = np.linspace(slimmer, 1, len(path))[:, None] * [first, second]
        parts.append(rod(path, widths, power))
        feet[front] = (np.array(foot), np.array(head))
    return both(parts) + _stretchers(feet, first, power, rng)


def _stretchers(feet: dict[bool, tuple[Floats, Floats]], half: float, power: float, rng: Random) -> Parts:
    """Bars between the legs, low down or just below the seat."""
    style = one_of("none none sides h ring", rng)
    if style == "none":
        return []
    share = rng.uniform(0.15, 0.6)
    at = {front: foot + share * (head - foot) for front, (foot, head) in feet.items()}
    mirror = np.array([-1, 1, 1])
    wide = (half * 0.6, half * rng.uniform(0.6, 1.2))
    parts = both([rod(line(at[False], at[True]), wide, power)])
    if style == "h":
        middle = (at[True] + at[False]) / 2
        parts.append(rod(line(middle * mirror, middle), wide, power, (0, 0, 1)))
    if style == "ring":
        parts += [rod(line(end * mirror, end), wide, power, (0, 0, 1)) for end in at.values()]
    return parts


def _splayed(seat: Seat, rng: Random) -> Parts:
    return _four(seat, rng, rng.uniform(0.03, 0.14) * seat.top / 0.45)


def _three(seat: Seat, rng: Random) -> Parts:
    half, splay, parts = rng.uniform(0.01, 0.025), rng.uniform(0, 0.12), []
    for angle in 2 * np.pi * (np.arange(3) / 3 + rng.choice([0.25, 0.75])):
        way = np.array([np.cos(angle), 0, np.sin(angle)])
        head = way * 0.33 * min(seat.width, seat.depth) + [0, seat.top - seat.thickness / 2, 0]
        foot = (head + way * splay) * [1, 0, 1]
        parts.append(rod(line(foot, head), (half, half)))
    return parts


def _sled(seat: Seat, rng: Random) -> Parts:
    first, second, power = section(rng, 0.008, 0.018)
    x = seat.width / 2 - rng.uniform(0.0, 0.05)
    front, back = seat.depth / 2 - rng.uniform(0, 0.08), -seat.depth / 2 + rng.uniform(-0.05, 0.08)
    low = max(first, second)
    lean = rng.uniform(-0.03, 0.08)
    y = (_leg_height(seat, front), _leg_height(seat, back))
    corners = [(x, y[0], front), (x, low, front + lean), (x, low, back - lean), (x, y[1], back)]
    return both([rod(bent(corners, rng.uniform(0.01, 0.12)), (first, second), power)])


def _cantilever(seat: Seat, rng: Random) -> Parts:
    half, x = rng.uniform(0.009, 0.016), seat.width / 2 - rng.uniform(0, 0.03)
    front, back = seat.depth / 2 + rng.uniform(-0.03, 0.03), -seat.depth / 2 + rng.uniform(-0.05, 0.1)
    y = _leg_height(seat, 0)
    corners = [(x, y, -seat.depth / 2), (x, y, front), (x, half, front), (x, half, back), (0, half, back)]
    return both([rod(bent(corners, rng.uniform(0.03, 0.1)), (half, half))])


def _crossed(seat: Seat, rng: Random) -> Parts:
    first, second, power = section(rng, 0.01, 0.02)
    x, z = seat.half_width(0) - rng.uniform(0.0, 0.04), seat.depth / 2
    y, bow = _leg_height(seat, 0), rng.normal(0, 0.04)
    ways = [
        line((x, 0, z), (x, y, -z), bow=(0, bow, 0)),
        line((x - first, 0, -z), (x - first, y, z), bow=(0, bow, 0)),
    ]
    across = rod(line((-x, y / 2, 0), (x, y / 2, 0)), (first, first), 2.0, (0, 0, 1))
    return [*both([rod(path, (first, second), power) for path in ways]), across]


def _column(seat: Seat, rng: Random, foot: float) -> Parts:
    half = rng.uniform(0.018, 0.04)
    path = line((0, foot, 0), (0, seat.top - seat.thickness / 2, 0))
    widths = np.full((len(path), 2), half)
    widths[len(path) // 2 :] *= rng.uniform(0.6, 1.2)
    return [rod(path, widths)]


def _pedestal(seat: Seat, rng: Random) -> Parts:
    radius, thick = rng.uniform(0.36, 0.55) * seat.width, rng.uniform(0.015, 0.04)
    outline = superellipse(_power_of_foot(rng), AROUND) * radius

    def disc(at: Floats) -> Floats:
        cone = 0.15 * (radius - np.linalg.norm(at[:, :2], axis=1)).clip(0)
        return np.column_stack([at[:, 0], thick / 2 + at[:, 2] + cone * (at[:, 2] > 0), at[:, 1]])

    return [slab(outline, thick, thick * 0.4, disc), *_column(seat, rng, thick / 2)]


def _power_of_foot(rng: Random) -> float:
    return 2.0 if rng.uniform() < 0.7 else SQUARE


def _star(seat: Seat, rng: Random) -> Parts:
    arms, reach = int(rng.choice([4, 5, 5, 5])), rng.uniform(0.5, 0.68) * seat.width
    hub, wheel, half = rng.uniform(0.08, 0.14), rng.uniform(0.02, 0.03), rng.uniform(0.012, 0.022)
    castors, parts = rng.uniform() < 0.7, _column(seat, rng, 0.06)
    for angle in 2 * np.pi * np.arange(arms) / arms + np.pi / 2:
        way = np.array([np.cos(angle), 0, np.sin(angle)])
        end = way * reach + [0, (2.2 * wheel if castors else half), 0]
        path = line((0, hub, 0), end)
        widths = np.linspace(1.3, 0.8, len(path))[:, None] * [half, half]
        parts.append(rod(path, widths, 4.0, np.cross(way, [0, 1, 0])))
        if castors:
            axle, side = way * reach + [0, wheel, 0], np.cross(way, [0, 1, 0]) * 0.022
            parts.append(rod(line(axle - side, axle + side), (wheel, wheel), 2.0, (0, 1, 0)))
    return parts


def _plinth(seat: Seat, rng: Random) -> Parts:
    """A box down to the floor or onto stubs."""
    stub = rng.uniform(0.03, 0.14) if rng.uniform() < 0.6 else 0.0
    outline = superellipse(SQUARE, AROUND) * [seat.width / 2, seat.depth / 2]
    thick = max(seat.top - seat.thickness / 2 - stub, 0.05)
    parts = [slab(outline, thick, rng.uniform(0.005, 0.02), _flat(stub + thick / 2))]
    if stub:
        half = rng.uniform(0.015, 0.03)
        corners = [(0.85 * seat.width / 2, sign * 0.85 * seat.depth / 2) for sign in (-1, 1)]
        parts += both([rod(line((x, 0, z), (x, stub + 0.02, z)), (half, half)) for x, z in corners])
    return parts


def _flat(height: float) -> Callable[[Floats], Floats]:
    """Places of (x, z, height above) over a level plane."""

    def places(at: Floats) -> Floats:
        return np.column_stack([at[:, 0], height + at[:, 2], at[:, 1]])

    return places


LEGS: dict[str, Callable[[Seat, Random], Parts]] = {
    "four": _four, "splayed": _splayed, "three": _three, "sled": _sled, "cantilever": _cantilever,
    "crossed": _crossed, "pedestal": _pedestal, "star": _star, "plinth": _plinth,
}  # fmt: skip
