"""From single measurements to figures: section → method → mean or median of each metric."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from model.training.evaluate.measuring import ENDS, IN_BETWEEN, Measured
from model.training.evaluate.methods import METHODS, OURS
from model.training.evaluate.tasks import SECTIONS

Figures = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Column:
    """One figure of a table."""

    title: str
    metric: str  # of `Measured.figures`
    median: bool = False
    digits: int = 3
    kinds: bool = False  # whether there is a mean and a median of this metric

    @property
    def name(self) -> str:
        """Of the figure, in card.json."""
        return f"{self.metric}_{'median' if self.median else 'mean'}" if self.kinds else self.metric

    def of(self, values: Sequence[float]) -> float:
        """The figure. What was not made (NaN) is the worst in a median, and left out of a mean."""
        known = np.asarray(values, float)
        if self.median:
            return float(np.median(np.nan_to_num(known, nan=np.inf)))
        known = known[~np.isnan(known)]
        return float(known.mean()) if len(known) else float("nan")


COMPARED = (
    Column("CD median", "chamfer", median=True, digits=2, kinds=True),
    Column("CD mean", "chamfer", digits=2, kinds=True),
    Column("EMD median", "emd", median=True, kinds=True),
    Column("EMD mean", "emd", kinds=True),
    Column("accuracy", "accuracy"),
    Column("completeness", "completeness"),
    Column("cosine", "cosine"),
    Column("F 0.01", "strict_f_score"),
    Column("F 0.02", "loose_f_score"),
    Column("IoU", "iou"),
)
BETWEEN = (
    Column("closed", "closed"),
    Column("one part", "one_part"),
    Column("CD to the nearest training shape, median", "nearest", median=True, digits=2),
    Column("longest step", "longest_step"),
)


def columns_of(section: str) -> tuple[Column, ...]:
    """Which figures a section has."""
    return BETWEEN if section == "interpolation" else COMPARED


def summary(measured: Iterable[Measured]) -> Figures:
    """The figures of every section and method, with how many there are and how many made no mesh."""
    groups: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for one in measured:
        groups[one.section, one.method].append(one.figures)
    figures: Figures = defaultdict(dict)
    for section, method in sorted(groups, key=_order):
        some, columns = groups[section, method], columns_of(section)
        row = {column.name: column.of([one.get(column.metric, np.nan) for one in some]) for column in columns}
        failed = sum(bool(np.isnan(one[_made_by(section)])) for one in some)
        figures[section][method] = {"count": len(some), "failed": failed, **row}
    return dict(figures)


def by_category(measured: Sequence[Measured]) -> dict[str, Figures]:
    """Category → the figures of ours; empty where there is one category only."""
    categories = sorted({one.category for one in measured})
    if len(categories) < 2:
        return {}
    return {
        category: summary(one for one in measured if one.category == category and one.method == OURS)
        for category in categories
    }


def rows_of(section: str, methods: dict[str, dict[str, float]]) -> list[list[str]]:
    """A section as a table: its head, then one row a method."""
    columns = columns_of(section)
    head = ["method", *(column.title for column in columns), "failed", "n"]
    return [head, *([method, *cells(section, row)] for method, row in methods.items())]


def cells(section: str, row: dict[str, float]) -> list[str]:
    """One row's figures as text."""
    shown = [_shown(row[column.name], column.digits) for column in columns_of(section)]
    return [*shown, f"{row['failed']:.0f}", f"{row['count']:.0f}"]


def print_tables(figures: Figures) -> None:
    """The figures as a person reads them."""
    for section, methods in figures.items():
        head, *rows = rows_of(section, methods)
        table = Table(*head, title=f"{section}: unit-ball frame, Chamfer distances (CD) ×10³")
        for row in rows:
            table.add_row(*row)
        Console(width=150).print(table)


def _shown(value: float, digits: int) -> str:
    return "" if np.isnan(value) else f"{value:.{digits}f}"


def _made_by(section: str) -> str:
    """The metric that is NaN where there is no mesh."""
    return "nearest" if section == "interpolation" else "chamfer"


def _order(group: tuple[str, str]) -> tuple[int, int, str]:
    section, method = group
    known = [*METHODS, IN_BETWEEN, ENDS]
    return SECTIONS.index(section), known.index(method) if method in known else len(known), method
