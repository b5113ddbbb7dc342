"""What the arms rest on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from model.training.drawn.backs import Back
from model.training.drawn.seats import Seat
from model.training.drawn.solids import (
    AROUND,
    Floats,
    Parts,
    Random,
    bent,
    both,
    line,
    rod,
    slab,
    superellipse,
)


def _arm(seat: Seat, back: Back, rng: Random) -> tuple[float, float, float, float]:
    """Of an arm: x, height, and z of its front and back end."""
    height = seat.top + rng.uniform(0.16, 0.27)
    v = (height - back.foot) / (back.height * np.cos(back.lean))
    rear = float(back.path([1.0], [min(v, 1.0)])[0, 2])
    x = max(seat.width / 2, back.low) + rng.uniform(-0.01, 0.02)
    return x, height, seat.depth / 2 - rng.uniform(-0.02, 0.12), rear


def _post_arms(seat: Seat, back: Back, style: dict[str, str], rng: Random) -> Parts:
    x, height, front, rear = _arm(seat, back, rng)
    wide, thick = rng.uniform(0.015, 0.045), rng.uniform(0.008, 0.02)
    drop = rng.uniform(-0.03, 0.05)
    rest = line((x, height, rear - 0.02), (x, height - drop, front), bow=(0, rng.normal(0, 0.01), 0))
    half, lean = rng.uniform(0.009, 0.02), rng.uniform(0, 0.08)
    foot = 0.0 if style["legs"] in ("four", "sled") and rng.uniform() < 0.4 else seat.under
    post = line((x, foot, front - 0.03 - lean), (x, height - drop, front - 0.03))
    return both([rod(rest, (wide, thick), 6.0), rod(post, (half, half), 4.0)])


def _loop_arms(seat: Seat, back: Back, style: dict[str, str], rng: Random) -> Parts:
    x, height, front, rear = _arm(seat, back, rng)
    half, y = rng.uniform(0.009, 0.018), seat.top - seat.thickness / 2
    corners = [(x, y, front - 0.02), (x, height, front), (x, height, rear), (x, y, rear + 0.1)]
    if rng.uniform() < 0.5:
        corners = corners[:3]
    return both([rod(bent(corners, rng.uniform(0.02, 0.1)), (half, half))])


def _tee_arms(seat: Seat, back: Back, style: dict[str, str], rng: Random) -> Parts:
    """A pad on a single post beside the seat."""
    x, height, _, _ = _arm(seat, back, rng)
    middle, reach = rng.uniform(-0.1, 0.05), rng.uniform(0.1, 0.16)
    pad = line((x, height, middle - reach), (x, height, middle + reach))
    y = seat.top - seat.thickness / 2
    post = bent([(0.6 * x, y, middle), (x, y, middle), (x, height, middle)], 0.05)
    return both([rod(pad, (rng.uniform(0.02, 0.045), 0.014), 4.0), rod(post, (0.014, 0.022), 4.0)])


def _block_arms(seat: Seat, back: Back, style: dict[str, str], rng: Random) -> Parts:
    """Padded walls beside the seat."""
    x, height, front, rear = _arm(seat, back, rng)
    half = rng.uniform(0.03, 0.1)
    low = rng.uniform(0.0, 0.12) if style["legs"] == "plinth" else seat.under - rng.uniform(0, 0.05)
    length = max(front - rear, 0.25)
    outline = superellipse(rng.uniform(4, 12), AROUND) * [length / 2, (height - low) / 2]

    def places(at: Floats) -> Floats:
        return np.column_stack([x + at[:, 2], (height + low) / 2 + at[:, 1], (front + rear) / 2 + at[:, 0]])

    return both([slab(outline, 2 * half, half * rng.uniform(0.2, 0.95), places)])


def _no_arms(seat: Seat, back: Back, style: dict[str, str], rng: Random) -> Parts:
    return []


ARMS: dict[str, Callable[[Seat, Back, dict[str, str], Random], Parts]] = {
    "none": _no_arms, "post": _post_arms, "loop": _loop_arms, "tee": _tee_arms, "block": _block_arms,
}  # fmt: skip
