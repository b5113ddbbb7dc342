"""What one leans against: all of it lies on one curved sheet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from model.training.drawn.seats import Seat
from model.training.drawn.solids import (
    AROUND,
    SQUARE,
    Floats,
    Parts,
    Random,
    bent,
    both,
    rod,
    section,
    slab,
    superellipse,
)


@dataclass(frozen=True)
class Back:
    """The curved sheet on which a back lies: u from -1 (left) to 1, v from 0 (seat) to 1 (top)."""

    low: float  # half widths below and at the top
    high: float
    foot: float  # height of v = 0
    height: float
    z: float
    lean: float
    bow: float  # how far the middle of its height lies behind a straight line
    wrap: float  # how far its sides come forward

    def __call__(self, at: Floats) -> Floats:
        """Places (N, 3) of (u, v, distance in front of the sheet)."""
        u, v, ahead = at.T
        x = u * (self.low + (self.high - self.low) * v)
        up, out = np.cos(self.lean), np.sin(self.lean)
        z = self.z - v * self.height * out - 4 * self.bow * v * (1 - v) + self.wrap * u**2
        return np.column_stack([x, self.foot + v * self.height * up + ahead * out, z + ahead * up])

    def path(self, u: ArrayLike, v: ArrayLike, ahead: float = 0.0) -> Floats:
        """Places (N, 3) of the points (u, v)."""
        u, v = np.broadcast_arrays(np.asarray(u, float), np.asarray(v, float))
        return self(np.column_stack([u, v, np.full(len(u), ahead)]))


ALONG = np.linspace(0, 1, 11)
ACROSS = np.linspace(-1, 1, 13)


def _posts(back: Back, rng: Random, top: float = 1.0) -> Parts:
    first, second, power = section(rng, 0.009, 0.022)
    return both([rod(back.path(np.ones(11), top * ALONG), (first, second), power)])


def _panel(seat: Seat, back: Back, rng: Random, thick: tuple[float, float] = (0.012, 0.05)) -> Parts:
    """A board, from the seat up or held above it by bars."""
    gap = rng.uniform(0.15, 0.5) if rng.uniform() < 0.5 and seat.kind != "armchair" else 0.0
    power = rng.uniform(2.2, 4) if rng.uniform() < 0.3 else rng.uniform(4, 12)
    thickness = rng.uniform(*thick)
    outline = superellipse(power, AROUND) * [1.0, (1 - gap) / 2] + [0, (1 + gap) / 2]
    parts = [_board(back, outline, thickness, rng)]
    if gap or power < 4:
        half = rng.uniform(0.008, 0.018)
        u = 0.0 if rng.uniform() < 0.3 else rng.uniform(0.3, 0.85)
        wide = (half * rng.uniform(1, 3), half) if u == 0.0 else (half, half)
        bars = [rod(back.path(np.full(11, u), (gap + 0.4) * ALONG, -thickness / 2), wide, 4.0)]
        parts += bars if u == 0.0 else both(bars)
    return parts


def _board(back: Back, outline: Floats, thickness: float, rng: Random) -> Floats:
    """A slab on the back: its outline is in (u, v), its edges are in metres."""
    size = np.array([(back.low + back.high) / 2, back.height])

    def places(at: Floats) -> Floats:
        return back(np.column_stack([at[:, :2] / size, at[:, 2]]))

    return slab(outline * size, thickness, thickness * rng.uniform(0.2, 0.5), places)


def _cushion(seat: Seat, back: Back, rng: Random) -> Parts:
    return _panel(seat, back, rng, (0.06, 0.2))


def _rail(back: Back, v: float, tall: float, thick: float, power: float, arch: float = 0.0) -> Floats:
    """A bar from left to right at the height v."""
    return rod(back.path(ACROSS, v + arch * (1 - ACROSS**2)), (thick, tall), power, (0, 0, 1))


def _ladder(seat: Seat, back: Back, rng: Random) -> Parts:
    count, thick = int(rng.integers(1, 6)), rng.uniform(0.006, 0.015)
    tall = rng.uniform(0.2, 0.42) * back.height * 0.7 / count
    arch = rng.uniform(0, 0.06) if rng.uniform() < 0.4 else 0.0
    low = rng.uniform(0.15, 0.5)
    heights = np.linspace(low, 0.95, count) if count > 1 else [rng.uniform(0.7, 0.9)]
    rails = [_rail(back, v, min(tall, 0.07), thick, SQUARE, arch) for v in heights]
    return _posts(back, rng) + rails


def _slats(seat: Seat, back: Back, rng: Random) -> Parts:
    """Flat upright bars between two rails."""
    count, thick = int(rng.integers(2, 8)), rng.uniform(0.005, 0.012)
    wide = rng.uniform(0.25, 0.75) * back.low / count
    low = rng.uniform(0.1, 0.3) if rng.uniform() < 0.7 else 0.0
    tall, arch = rng.uniform(0.015, 0.06), rng.uniform(0, 0.08) if rng.uniform() < 0.4 else 0.0
    rails = [_rail(back, 0.95, tall, thick * 1.3, 6.0, arch)]
    if low:
        rails.append(_rail(back, low, 0.02, thick * 1.2, SQUARE))
    uprights = [
        rod(back.path(np.full(11, u), low + (0.95 - low) * ALONG), (wide, thick), SQUARE)
        for u in (np.arange(count) + 0.5) / count * 1.8 - 0.9
    ]
    return _posts(back, rng) + rails + uprights


def _spindles(seat: Seat, back: Back, rng: Random) -> Parts:
    """Round sticks up to a rail or a hoop."""
    count, half = int(rng.integers(4, 10)), rng.uniform(0.005, 0.01)
    hoop = rng.uniform() < 0.5
    places = (np.arange(count) + 0.5) / count * 1.8 - 0.9
    tops = np.sqrt(1 - 0.95 * places**2) if hoop else np.full(count, 0.95)
    sticks = [
        rod(back.path(np.full(11, u), top * ALONG), (half, half)) for u, top in zip(places, tops, strict=True)
    ]
    if hoop:
        return [*sticks, *_hoop(back, 2.0, rng)]
    return [*sticks, *_posts(back, rng), _rail(back, 0.95, rng.uniform(0.02, 0.06), 0.012, 5.0)]


def _hoop(back: Back, power: float, rng: Random) -> Parts:
    half = rng.uniform(0.009, 0.016)
    turn = np.linspace(0, np.pi, 33)
    both = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    both *= ((np.abs(both) ** power).sum(axis=1) ** (-1 / power))[:, None]
    return [rod(back.path(both[:, 0], both[:, 1]), (half, half), 2.0, (0, 0, 1))]


def _loop(seat: Seat, back: Back, rng: Random) -> Parts:
    """A bent tube with a panel or bars in it."""
    parts = _hoop(back, rng.uniform(2.5, 8), rng)
    low, high = sorted(rng.uniform(0.15, 0.9, size=2))
    outline = superellipse(8, AROUND) * [0.98, max(high - low, 0.15) / 2] + [0, (low + high) / 2]
    return [*parts, _board(back, outline, rng.uniform(0.008, 0.03), rng)]


def _shell(seat: Seat, back: Back, rng: Random) -> Parts:
    """Seat and back in one bent sheet; or, of a deck chair, a row of bars along it."""
    front, knee = seat.depth / 2, rng.uniform(0.04, 0.14)
    top = (0, back.foot + back.height * np.cos(back.lean), back.z - back.height * np.sin(back.lean))
    corners = [(0, seat.top + seat.rise * front, front), (0, seat.top + seat.rise * back.z, back.z), top]
    path = bent(corners, knee, 9)
    lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    whole, wrap = lengths[-1], rng.uniform(0, 0.12) if rng.uniform() < 0.6 else 0.0

    def on_path(s: Floats) -> Floats:
        return np.column_stack([np.interp(s, lengths, path[:, axis]) for axis in range(3)])

    def places(at: Floats) -> Floats:
        x, s, above = at.T
        step = on_path(s + 0.01) - on_path(s - 0.01)
        along = step / np.linalg.norm(step, axis=1, keepdims=True)
        normal = np.cross([1.0, 0, 0], along)  # up on the seat, forwards on the back
        normal *= np.where(normal[:, 1:2] + normal[:, 2:] < 0, -1, 1)
        lifted = above + wrap * (2 * x / seat.width) ** 2
        wide = np.interp(s / whole, [0, 0.5, 1], [1, 1, back.high / back.low])
        place: Floats = on_path(s) + lifted[:, None] * normal + np.column_stack([x * wide, 0 * x, 0 * x])
        return place

    if seat.kind == "lounge" and rng.uniform() < 0.4:
        return _bars_along(places, whole, seat, rng)
    outline = superellipse(rng.uniform(3, 12), AROUND) * [seat.width / 2, whole / 2] + [0, whole / 2]
    outline = _finer(outline)
    thickness = rng.uniform(0.012, 0.04) if rng.uniform() < 0.6 else rng.uniform(0.04, 0.12)
    return [slab(outline, thickness, thickness * 0.45, places)]


def _finer(outline: Floats) -> Floats:
    """The same outline with three points for one: what is bent needs them."""
    after = np.roll(outline, -1, axis=0)
    return np.stack([outline, (2 * outline + after) / 3, (outline + 2 * after) / 3], axis=1).reshape(-1, 2)


def _bars_along(places: Callable[[Floats], Floats], whole: float, seat: Seat, rng: Random) -> Parts:
    count, thick = int(rng.integers(10, 20)), rng.uniform(0.006, 0.012)
    wide, x = 0.32 * whole / count, np.linspace(-0.5, 0.5, 9) * seat.width

    def bar(s: float) -> Floats:
        path = places(np.column_stack([x, np.full(9, s), np.zeros(9)]))
        step = places(np.array([[0, s + 0.01, 0]])) - places(np.array([[0, s - 0.01, 0]]))
        return rod(path, (wide, thick), SQUARE, step[0] / np.linalg.norm(step))

    s = np.linspace(0, whole, 24)
    beam = rod(
        places(np.column_stack([np.full(24, 0.42 * seat.width), s, np.full(24, -0.02)])),
        (0.012, 0.02),
        SQUARE,
    )
    return [*(bar(at) for at in np.linspace(0.02, 0.98, count) * whole), *both([beam])]


def _barrel(seat: Seat, back: Back, rng: Random) -> Parts:
    """Back and arms in one curved wall."""
    x, z = seat.width / 2, seat.depth / 2
    half, low = rng.uniform(0.02, 0.06), seat.under - rng.uniform(0, 0.1)
    turn = np.linspace(-0.1, np.pi + 0.1, 30)
    plan = np.stack([np.cos(turn), -np.sin(turn)], axis=1) * [x, z]
    front = np.clip(plan[:, 1] / z * 0.5 + 0.5, 0, 1)
    tall = seat.top + back.height * (1 - rng.uniform(0.2, 0.7) * front)
    path = np.column_stack([plan[:, 0], (tall + low) / 2, plan[:, 1]])
    widths = np.column_stack([np.full(30, half), (tall - low) / 2])
    level = rod(path * [1, 0, 1], widths[:, ::-1], 8.0, (0, 1, 0))
    return [_raised(level, path, widths)]


def _raised(level: Floats, path: Floats, widths: Floats) -> Floats:
    """A wall drawn around height 0, lifted to the path's heights."""
    flat = level.reshape(-1, 3)
    nearest = ((flat[:, None, ::2] - path[None, :, ::2]) ** 2).sum(axis=2).argmin(axis=1)
    raised: Floats = flat + np.column_stack([0 * nearest, path[nearest, 1], 0 * nearest])
    return raised.reshape(level.shape)


def _no_back(seat: Seat, back: Back, rng: Random) -> Parts:
    return []


BACKS: dict[str, Callable[[Seat, Back, Random], Parts]] = {
    "none": _no_back, "panel": _panel, "cushion": _cushion, "ladder": _ladder, "slats": _slats,
    "spindles": _spindles, "loop": _loop, "shell": _shell, "barrel": _barrel,
}  # fmt: skip
