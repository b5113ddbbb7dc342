"""Chairs put together at random: which seats, legs, backs and arms go together, and of which sizes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.training.drawn.arms import ARMS
from model.training.drawn.backs import BACKS, Back
from model.training.drawn.legs import LEGS
from model.training.drawn.seats import Seat, seat_parts
from model.training.drawn.solids import Floats, Random, one_of


@dataclass(frozen=True)
class Kind:
    """A sort of chair: ranges of its sizes, and how often its legs, backs and arms are of which sort."""

    width: tuple[float, float]
    depth: tuple[float, float]
    top: tuple[float, float]
    thickness: tuple[float, float]
    lean: tuple[float, float]  # of the back, radians
    back: tuple[float, float]  # height above the seat
    legs: str
    backs: str
    arms: str


KINDS = {
    "chair": Kind(
        (0.38, 0.52), (0.38, 0.5), (0.42, 0.5), (0.02, 0.09), (0.0, 0.3), (0.3, 0.65),
        "four four four four splayed splayed sled cantilever pedestal crossed",
        "panel panel slats slats ladder ladder loop shell spindles cushion", "none none none post loop",
    ),
    "armchair": Kind(
        (0.48, 0.75), (0.45, 0.65), (0.34, 0.46), (0.08, 0.2), (0.05, 0.4), (0.35, 0.7),
        "four splayed plinth plinth sled pedestal", "cushion cushion cushion panel barrel slats",
        "block block block post loop",
    ),
    "office": Kind(
        (0.44, 0.56), (0.42, 0.54), (0.42, 0.54), (0.04, 0.12), (0.0, 0.3), (0.35, 0.8),
        "star star star pedestal", "panel panel cushion shell loop", "none post tee tee loop",
    ),
    "lounge": Kind(
        (0.5, 0.75), (0.5, 0.8), (0.28, 0.4), (0.03, 0.16), (0.3, 0.8), (0.45, 0.85),
        "four splayed sled crossed plinth star", "shell shell panel slats ladder cushion",
        "none post post loop block",
    ),
    "stool": Kind(
        (0.28, 0.45), (0.28, 0.45), (0.4, 0.8), (0.02, 0.1), (0.0, 0.2), (0.1, 0.3),
        "four splayed splayed pedestal star sled three", "none none none panel ladder", "none",
    ),
}  # fmt: skip
SHARES = {"chair": 0.42, "armchair": 0.22, "office": 0.12, "lounge": 0.14, "stool": 0.1}


def chair(number: int) -> tuple[str, Floats]:
    """Kind, and triangles (T, 3, 3), of the chair of this number."""
    rng = np.random.default_rng([7, number])
    name = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    kind = KINDS[name]
    seat = _drawn_seat(name, kind, rng)
    back = _drawn_back(seat, kind, rng)
    style = {part: one_of(getattr(kind, part), rng) for part in ("legs", "backs", "arms")}
    if style["backs"] in ("none", "barrel"):
        style["arms"] = "none"
    parts = [*LEGS[style["legs"]](seat, rng), *BACKS[style["backs"]](seat, back, rng)]
    parts += ARMS[style["arms"]](seat, back, style, rng)
    if style["backs"] != "shell":
        parts += seat_parts(seat, rng)
    return name, np.concatenate(parts)


def _drawn_seat(name: str, kind: Kind, rng: Random) -> Seat:
    width, depth, top, thickness = (
        rng.uniform(*span) for span in (kind.width, kind.depth, kind.top, kind.thickness)
    )
    round_one = rng.uniform() < (0.5 if name == "stool" else 0.15)
    power = rng.uniform(2.0, 2.6) if round_one else rng.uniform(3.5, 14)
    taper = 0.0 if rng.uniform() < 0.4 or name == "stool" else rng.uniform(0.0, 0.25)
    rise = rng.uniform(0.0, 0.25) if name == "lounge" else max(rng.normal(0, 0.03), 0)
    return Seat(name, width, depth, top, thickness, power, taper, rise)


def _drawn_back(seat: Seat, kind: Kind, rng: Random) -> Back:
    z = -seat.depth / 2 + rng.uniform(0.0, 0.04)
    low = seat.half_width(z) * rng.uniform(0.85, 1.02) * (0.8 if seat.power < 3 else 1.0)
    high = low * rng.uniform(0.75, 1.15)
    foot = seat.top - seat.thickness / 2 + seat.rise * z
    height = rng.uniform(*kind.back) + seat.thickness / 2
    wrap = rng.uniform(0.0, 0.1) if rng.uniform() < 0.6 else 0.0
    bow = rng.normal(0, 0.02)
    return Back(low, high, foot, height, z, rng.uniform(*kind.lean), bow, wrap)
