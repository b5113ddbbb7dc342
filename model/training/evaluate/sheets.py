"""Pictures of a report: from the best to the worst, the worst, ways between shapes, the reliability plot."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from model.training.calibration import draw_reliability
from model.training.evaluate.inputs import truth_of
from model.training.evaluate.ledger import worked_through
from model.training.evaluate.measuring import (
    NO_MESH,
    WITHIN,
    Measured,
    Setup,
    methods_of,
    views_of,
    way,
)
from model.training.evaluate.methods import OURS
from model.training.evaluate.tasks import Task, evenly
from model.training.pictures import Item, contact_sheet

Cells = list[tuple[str, Item]]

RANKED = "From the best to the worst, evenly chosen by rank; CD: Chamfer distance ×10³."

EMPTY = np.zeros((0, 3))


@dataclass(frozen=True)
class Picture:
    """A picture of the report."""

    title: str
    caption: str
    file: Path


@dataclass(frozen=True)
class Sheet:
    """A picture yet to be drawn: some tasks, each as a few cells side by side."""

    title: str
    caption: str
    tasks: Sequence[Task]
    width: int  # cells in a row


def sheets(tasks: Sequence[Task], measured: Sequence[Measured]) -> list[Sheet]:
    """Which pictures a report has."""
    known, unseen, completed, several = (
        _best_first(tasks, measured, section) for section in ("known", "unseen", "completion", "several")
    )
    ways = [task for task in tasks if task.section == "interpolation"]
    pairs = f"Pairs: the original, and what its code decodes to. {RANKED}"
    fits = f"Pairs: the original, and the fit to its samples. {RANKED}"
    threes = f"Threes: one depth view, its completion, the original. {RANKED}"
    more = f"Threes: all three views, their completion, the original. {RANKED}"
    return [
        Sheet("Known shapes", pairs, evenly(known, 18), 6),
        Sheet("Unseen shapes", fits, evenly(unseen, 12), 6),
        Sheet("Completions", threes, evenly(completed, 12), 6),
        Sheet("The worst completions", "The worst last.", completed[-6:], 6),
        Sheet("Completions of three views", more, evenly(several, 6), 6),
        Sheet("Ways between shapes", "The ends are training codes.", evenly(ways, 6), 5),
    ]


def draw(
    folder: Path, some: Sequence[Sheet], measured: Sequence[Measured], setup: Setup, jobs: int
) -> list[Picture]:
    """Draw the sheets that have tasks into folder/report."""
    figures = {(one.section, one.shape, one.view): one.figures for one in measured if one.method == OURS}
    wanted = {task.key: task for sheet in some for task in sheet.tasks}
    todo = list(wanted.values())
    cells = {todo[index].key: found for index, found in worked_through(cells_of, todo, setup, jobs)}
    pictures = []
    for sheet in some:
        if sheet.tasks:
            file = folder / "report" / f"{sheet.title.lower().replace(' ', '_')}.png"
            each = [_labelled(cells[task.key], task, figures) for task in sheet.tasks]
            save_sheet(in_rows([cell for found in each for cell in found], sheet.width), file)
            pictures.append(Picture(sheet.title, sheet.caption, file))
    return pictures


def cells_of(task: Task, setup: Setup) -> Cells:
    """What a task looks like: what was given, what ours made of it, what is true."""
    if task.section == "interpolation":
        ends = (task.shape.id, "", "", "", task.other.id if task.other else "")
        return [
            (label, EMPTY if mesh is None else mesh)
            for label, mesh in zip(ends, way(task, setup.completer()), strict=True)
        ]
    truth = truth_of(task.shape.path(setup.data))
    made: Item = EMPTY
    with suppress(*NO_MESH):
        made = methods_of(task, truth, setup)[OURS]()
    true = (task.shape.id, truth.mesh)
    if task.section in ("known", "unseen"):
        return [true, ("", made)]
    seen = np.concatenate([truth.normalization.apply(view.points) for view in views_of(task, truth)])
    return [("scan", seen), ("", made), true]


def reliability(measured: Sequence[Measured], file: Path) -> Picture | None:
    """The reliability plot of the completions by ours, and its caption with the figures."""
    covered = [
        [m.figures[name] for name in WITHIN]
        for m in measured
        if m.section == "completion" and m.method == OURS and WITHIN[0] in m.figures
    ]
    if not covered:
        return None
    draw_reliability(covered, file)
    one, two = np.mean(covered, axis=0)[[1, 3]]
    caption = (
        f"Of the true surface {one:.0%} lies within one standard deviation of the completed mesh and "
        f"{two:.0%} within two (a Gaussian promises 68 % and 95 %), mean of {len(covered)} completions."
    )
    return Picture("Uncertainty", caption, file)


def save_sheet(rows: Sequence[Cells], file: Path, size: int = 220) -> None:
    """A contact sheet as a PNG of 128 colours, small enough to be committed."""
    contact_sheet(rows, file, size=size)
    with Image.open(file) as picture:
        picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(file, optimize=True)


def in_rows(cells: Cells, width: int) -> list[Cells]:
    """The cells broken into rows of `width`."""
    return [cells[start : start + width] for start in range(0, len(cells), width)]


def _best_first(tasks: Sequence[Task], measured: Sequence[Measured], section: str) -> list[Task]:
    found = {
        (one.shape, one.view): one.figures["chamfer"]
        for one in measured
        if one.section == section and one.method == OURS
    }
    some = [task for task in tasks if task.section == section]
    distances = np.array([found[task.subject, task.view] for task in some])
    return [some[index] for index in np.argsort(distances, kind="stable")]  # NaN, no mesh, is last


def _labelled(cells: Cells, task: Task, figures: dict[tuple[str, str, int], dict[str, float]]) -> Cells:
    """The cells with the Chamfer distance under what ours made: the one without a label."""
    if task.section == "interpolation":
        return cells
    distance = figures[task.section, task.subject, task.view]["chamfer"]
    return [(label or f"CD {distance:.2f}", item) for label, item in cells]
