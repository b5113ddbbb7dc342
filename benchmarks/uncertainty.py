"""Do the deviations of completions come true on shapes that nobody trained or tuned on?

Held-out scans in any place with noise of 1 % of the shape's radius along the rays (`benchmarks.held_out`)
are completed as served. Counted is the share of the whole true surface within one and two standard
deviations of the mesh, each point judged by the deviation at its nearest vertex. A Gaussian promises 68 %
and 95 %. What the mesh lacks counts as missed, so the tails are heavier than a Gaussian's. Beside it: the
rank correlation, over the surface of each scan, of the deviation with the actual distance: whether the
mesh knows where it is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from benchmarks import common
from benchmarks.held_out import Noise, Setup, Subject, add_options, completed, setup, subjects, work_through
from model.mesh import distances_to
from model.metrics import sample_surface
from model.training.calibration import LEVELS, POINTS, coverage, draw_reliability

NOISE = Noise(along_rays=0.01)


@dataclass(frozen=True)
class Covered:
    """One completion; shares are 0 where there is no mesh."""

    shape: str
    view: int
    within: list[float]  # of `LEVELS`
    deviation: float  # median over the mesh, radii of the unit ball
    correlation: float


def judged(setup: Setup, subject: Subject) -> Covered:
    """Complete one scan and compare its deviations with the truth."""
    scan = subject.scan(setup.data)
    done = completed(setup, scan, pose="upright")
    if done is None:
        return Covered(scan.shape, scan.number, [0.0] * len(LEVELS), float("nan"), float("nan"))
    mesh = done.mesh.moved(scan.to_scan.inverse())
    assert mesh.deviation is not None
    points, _ = sample_surface(scan.true, POINTS, seed=3)
    distance, nearest = distances_to(mesh, points)
    correlation = float(spearmanr(distance, mesh.deviation[nearest]).statistic)
    within = coverage(mesh, scan.true)
    return Covered(scan.shape, scan.number, within, float(np.median(mesh.deviation)), correlation)


@dataclass(frozen=True)
class Row:
    """One completion, as the table shows it."""

    shape: str
    view: int
    within_1_std: float
    within_2_std: float
    deviation: float
    correlation: float


def main(arguments: Iterable[str] | None = None) -> int:
    """Run the benchmark."""
    parser = common.parser(__doc__, "one view of one shape, a coarse mesh: an impression")
    add_options(parser, views=2)
    parser.add_argument("--png", type=Path, default=Path("out/reliability.png"), help="where the figure goes")
    options = parser.parse_args(None if arguments is None else list(arguments))
    results = work_through(judged, subjects(options, NOISE), setup(options), options.jobs)
    draw_reliability([one.within for one in results], options.png)
    one, two = np.mean([one.within for one in results], axis=0)[[1, 3]]
    rank = float(np.nanmedian([result.correlation for result in results]))
    print(f"{one:.0%} of the true surface within one standard deviation, {two:.0%} within two")
    print(f"rank correlation of deviation and distance, median over scans: {rank:.2f}")
    print(f"figure in {options.png}")
    rows = [Row(r.shape, r.view, r.within[1], r.within[3], r.deviation, r.correlation) for r in results]
    common.tell(options, "uncertainty", 100 * float(two), "% of the true surface within 2 std", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
