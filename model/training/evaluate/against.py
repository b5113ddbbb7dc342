"""Two checkpoints side by side, on the same scans of shapes that neither has seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from model.checkpoint import VARIANT_MARK
from model.training.evaluate.measuring import Measured
from model.training.shapes import Shape

DRAWS = 2000
INTERVAL = (0.025, 0.975)
LOWER_IS_BETTER = {"chamfer": True, "emd": True, "strict_f_score": False, "iou": False, "completeness": False}
"""The metrics that are compared."""


@dataclass(frozen=True)
class Difference:
    """One metric of ours in one section: the first checkpoint's and the second's."""

    section: str
    metric: str
    first: float  # median over the pairs
    second: float
    difference: float  # mean of first − second
    low: float  # of it, 95 % interval
    high: float
    better: float  # share of the pairs in which the first is better
    pairs: int
    shapes: int
    failed_first: int  # scans of which it made no mesh
    failed_second: int


def unseen_by_both(
    shapes: Sequence[Shape], trained: Sequence[Sequence[str]], lists: Sequence[Sequence[Shape]]
) -> list[Shape]:
    """The shapes that neither checkpoint was trained on, nor on another of the same design.

    `trained` are the names in each checkpoint, `lists` the rows of each shapes.csv.
    """
    seen = {name.split(VARIANT_MARK)[0] for names in trained for name in names}
    groups = {shape.group for listed in lists for shape in listed if shape.id in seen}
    return [shape for shape in shapes if shape.id not in seen and shape.group not in groups]


def differences(first: Sequence[Measured], second: Sequence[Measured]) -> list[Difference]:
    """Every metric of every section and method that both measured, on the scans that both measured.

    The interval is a bootstrap over shapes: views of one shape are no independent evidence. A scan of
    which one made no mesh is not in the pairs of distances; shares and IoU are 0 there.
    """
    others = {_place(one): one.figures for one in second}
    pairs: dict[str, list[tuple[Measured, dict[str, float]]]] = defaultdict(list)
    for one in first:
        if _place(one) in others:
            label = one.section if one.method == "ours" else f"{one.section}, {one.method}"
            pairs[label].append((one, others[_place(one)]))
    return [
        _difference(section, metric, some) for section, some in pairs.items() for metric in LOWER_IS_BETTER
    ]


def _place(one: Measured) -> tuple[str, str, int, str]:
    return one.section, one.shape, one.view, one.method


def _difference(section: str, metric: str, pairs: Sequence[tuple[Measured, dict[str, float]]]) -> Difference:
    values = np.array([(one.figures[metric], other[metric]) for one, other in pairs])
    both = ~np.isnan(values).any(axis=1)
    a, b = values[both].T
    names = np.array([one.shape for one, _ in pairs])[both]
    better = a < b if LOWER_IS_BETTER[metric] else a > b
    failed = [sum(bool(np.isnan(f["chamfer"])) for f in side) for side in _sides(pairs)]
    return Difference(
        section, metric, _median(a), _median(b), float(np.mean(a - b)) if len(a) else np.nan,
        *bootstrap(a - b, names), float(better.mean()) if len(a) else np.nan,
        len(a), len(set(names)), *failed,
    )  # fmt: skip


def _sides(
    pairs: Sequence[tuple[Measured, dict[str, float]]],
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    return [one.figures for one, _ in pairs], [other for _, other in pairs]


def bootstrap(values: NDArray[np.float64], names: NDArray[np.str_]) -> tuple[float, float]:
    """The 95 % interval of the mean of values (N,), by draws of whole names (N,) with replacement."""
    if not len(values):
        return float("nan"), float("nan")
    _, index = np.unique(names, return_inverse=True)
    sums, counts = np.bincount(index, values), np.bincount(index)
    drawn = np.random.default_rng(0).integers(len(sums), size=(DRAWS, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, INTERVAL)
    return float(low), float(high)


def _median(values: NDArray[np.float64]) -> float:
    return float(np.median(values)) if len(values) else float("nan")


def print_differences(rows: Sequence[Difference], first: str, second: str) -> None:
    """The comparison as a person reads it."""
    head = ("section", "metric", f"{first}, median", f"{second}, median", "mean difference", "95 % interval")
    table = Table(*head, f"{first} better", "pairs", "shapes", "no mesh", title=f"{first} − {second}")
    for row in rows:
        medians, gap = (f"{row.first:.3f}", f"{row.second:.3f}"), f"{row.difference:+.3f}"
        interval = f"{row.low:+.3f} … {row.high:+.3f}"
        failed = f"{row.failed_first}, {row.failed_second}"
        counts = (f"{row.better:.0%}", str(row.pairs), str(row.shapes), failed)
        table.add_row(row.section, row.metric, *medians, gap, interval, *counts)
    Console(width=160).print(table)
