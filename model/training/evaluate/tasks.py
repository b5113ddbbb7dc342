"""What there is to measure of a checkpoint: sections of the report, and the tasks of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from model.training.shapes import Shape

Item = TypeVar("Item")

SECTIONS = ("known", "unseen", "completion", "several", "noise", "interpolation")
OF_UNSEEN_SHAPES = ("unseen", "completion", "several", "noise")

KNOWN_MOST = 60
"""Training shapes that are decoded and measured; of more, so many are drawn."""

FEW_VIEWS = 2
"""Most scans of a shape in the sections `several` and `noise`, which ask one question each."""

NOISE = (0.01, 0.02, 0.05)
"""Standard deviations α of the inverse depth, in radii of the unit ball: the paper's range."""

PAIRS = 24
"""Pairs of training shapes between which shapes are interpolated."""


@dataclass(frozen=True)
class Task:
    """One measurement."""

    section: str
    shape: Shape
    view: int = 0  # its number; the first of them in the section `several`
    noise: float = 0.0  # α of the section `noise`
    other: Shape | None = None  # where the way leads in the section `interpolation`

    @property
    def subject(self) -> str:
        """The shape, or the two ends of an interpolation."""
        return self.shape.id if self.other is None else f"{self.shape.id}..{self.other.id}"

    @property
    def key(self) -> str:
        """What tells this task from all others of a checkpoint."""
        return f"{self.section}/{self.subject}/{self.view}/{self.noise:g}"


@dataclass(frozen=True)
class Selection:
    """Which part of the report is asked for."""

    sections: Sequence[str] = SECTIONS
    views: int = 6
    limit: int | None = None  # shapes or pairs of a section

    @property
    def whole(self) -> bool:
        """Whether that is all of it."""
        return set(self.sections) == set(SECTIONS) and self.limit is None


def tasks(
    known: Sequence[Shape], unseen: Sequence[Shape], sampled: set[str], selection: Selection
) -> list[Task]:
    """Every measurement that is asked for: of training shapes, and of those the model has not seen.

    `sampled` are the ids that have signed-distance samples: the section `unseen` needs them.
    """
    listed = {
        "known": [Task("known", shape) for shape in _drawn(known, KNOWN_MOST)],
        "unseen": [Task("unseen", shape) for shape in unseen if shape.id in sampled],
        "completion": list(_views("completion", unseen, selection.views)),
        "several": list(_views("several", unseen, min(FEW_VIEWS, selection.views))),
        "noise": [
            Task("noise", task.shape, task.view, alpha)
            for task in _views("noise", unseen, min(FEW_VIEWS, selection.views))
            for alpha in NOISE
        ],
        "interpolation": [Task("interpolation", first, other=last) for first, last in pairs(known)],
    }
    return [task for section in selection.sections for task in _limited(listed[section], selection.limit)]


def pairs(known: Sequence[Shape]) -> list[tuple[Shape, Shape]]:
    """At most `PAIRS` pairs of training shapes, each of one category and every shape in one pair at most."""
    by_category: dict[str, list[Shape]] = defaultdict(list)
    for shape in _drawn(known, len(known)):
        by_category[shape.category].append(shape)
    every = [pair for shapes in by_category.values() for pair in zip(shapes[::2], shapes[1::2], strict=False)]
    return evenly(every, PAIRS)


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """So many of the items at even intervals, the first and the last among them; all if there are fewer."""
    if count >= len(items):
        return list(items)
    return [items[index] for index in np.linspace(0, len(items) - 1, count).round().astype(int)]


def _drawn(shapes: Sequence[Shape], count: int) -> list[Shape]:
    """So many of the shapes, at random but always the same, whatever their order in the list."""
    ordered = sorted(shapes, key=lambda shape: shape.id)
    return [ordered[index] for index in np.random.default_rng(0).permutation(len(ordered))[:count]]


def _views(section: str, shapes: Sequence[Shape], count: int) -> Iterator[Task]:
    for shape in shapes:
        for view in range(count):
            yield Task(section, shape, view)


def _limited(listed: Sequence[Task], limit: int | None) -> list[Task]:
    """The tasks of `limit` subjects, at even intervals."""
    subjects = list(dict.fromkeys(task.subject for task in listed))
    kept = set(evenly(subjects, limit or len(subjects)))
    return [task for task in listed if task.subject in kept]
