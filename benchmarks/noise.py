"""How completions suffer from the noise of the sensor: the paper's figure, Chamfer distance against α.

Held-out shapes are seen from one place each time, with Gaussian noise of standard deviation α, in 1/metre,
on 1/depth, the shapes in their own metres: `benchmarks.held_out` says what that moves. The same draws are
scaled by each α. The completions, with `refine` and without, have the orientation given (`--pose`), as the
paper's have; place and size are unknown. Beside their Chamfer distance (×10³, unit ball, squared, both
ways) stands that of the scan itself to the true surface: both ways, which a scan from one side loses
whatever its noise, and from the scan's points alone, which is the noise.

Whether the growth is at most linear: a parabola is fitted to the medians over the scans, and its curvature
is what its quadratic term adds at the largest α, in Chamfer distance: 0 of a line, negative where growth
slows down. Shapes are drawn with replacement 1,000 times; growth counts as faster than linear if the
curvature is above 0 in 95 % of the draws. The scan's own distance to the surface, which is quadratic in
noise that is small beside the shape, shows what the test can see.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from benchmarks import common
from benchmarks.held_out import (
    Noise,
    Setup,
    Subject,
    add_options,
    compared,
    mean_of_finite,
    setup,
    subjects,
    thousandfold_chamfer,
    with_and_without_refinement,
    work_through,
)
from model.metrics import CHAMFER_POINTS, Comparison, sample_surface
from model.training.views import DISTANCE

Array = NDArray[np.float64]

ALPHAS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05)
QUICK_ALPHAS = (0.0, 0.02, 0.05)
DRAWS = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Noisy:
    """One scan at one α. Squared distances in the unit ball."""

    shape: str
    view: int
    alpha: float
    displaced: float  # standard deviation of a point as far away as the shape's centre, radii of the shape
    refined: Comparison
    unrefined: Comparison
    scan_both_ways: float
    scan_to_surface: float


@dataclass(frozen=True)
class Line:
    """All scans at one α: Chamfer distances ×10³ in the unit ball, medians unless said."""

    alpha: float
    displaced: float  # radii of the shape
    cd: float
    cd_mean: float
    cd_without_refine: float
    completeness: float  # mean
    scan_both_ways: float
    scan_to_surface: float
    failed: int


@dataclass(frozen=True)
class Growth:
    """How a Chamfer distance grows from the smallest to the largest α, ×10³; one shape has no bounds."""

    growth: float
    curvature: float  # the quadratic term's part of it; within these bounds in 90 % of the draws
    low: float
    high: float

    @property
    def faster_than_linear(self) -> bool:
        """Whether the draws exclude a line."""
        return self.low > 0

    def __str__(self) -> str:
        """In words."""
        if np.isinf(self.low):
            return f"{self.growth:.2f}; one shape does not tell whether that is linear"
        verdict = "faster than linear" if self.faster_than_linear else "at most linear"
        return (
            f"{self.growth:.2f}, {verdict}: by curvature {self.curvature:.2f} of it "
            f"({self.low:.2f} to {self.high:.2f} in 90 % of draws)"
        )


def noisy(setup: Setup, task: tuple[Subject, str]) -> Noisy:
    """Complete one scan with noise in this pose mode."""
    subject, pose = task
    scan = subject.scan(setup.data).known_as(pose)
    refined, unrefined = (compared(mesh, scan) for mesh in with_and_without_refinement(setup, scan, pose))
    surface, _ = sample_surface(scan.true, CHAMFER_POINTS, seed=2)
    to_surface, to_scan = _squared(scan.points_in_ball(), surface), _squared(surface, scan.points_in_ball())
    alpha = subject.noise.inverse_depth
    displaced = alpha * DISTANCE**2 * scan.radius
    return Noisy(
        scan.shape, scan.number, alpha, displaced, refined, unrefined, to_surface + to_scan, to_surface
    )


def _squared(points: Array, others: Array) -> float:
    """Mean squared distance from (N, 3) points to the nearest of the others."""
    return float(np.mean(cKDTree(others).query(points)[0] ** 2))


def line_of(some: Sequence[Noisy]) -> Line:
    """What is said of one α."""
    chamfer = thousandfold_chamfer(one.refined for one in some)
    return Line(
        some[0].alpha,
        float(np.median([one.displaced for one in some])),
        cd=float(np.median(chamfer)),
        cd_mean=mean_of_finite(chamfer),
        cd_without_refine=float(np.median(thousandfold_chamfer(one.unrefined for one in some))),
        completeness=float(np.mean([one.refined.completeness for one in some])),
        scan_both_ways=1000 * float(np.median([one.scan_both_ways for one in some])),
        scan_to_surface=1000 * float(np.median([one.scan_to_surface for one in some])),
        failed=int(np.isinf(chamfer).sum()),
    )


def growth(results: Sequence[Noisy], value: Callable[[Noisy], float], seed: int = 0) -> Growth:
    """How the medians of a value over the scans grow with α."""
    alphas = np.array(sorted({one.alpha for one in results}))
    names = sorted({one.shape for one in results})
    by_shape = [  # of each shape (scans, alphas)
        np.array([[value(o) for o in results if (o.shape, o.alpha) == (name, alpha)] for alpha in alphas]).T
        for name in names
    ]
    medians = np.median(np.concatenate(by_shape), axis=0)
    grown, curved = float(medians[-1] - medians[0]), curvature(alphas, medians)
    if len(names) == 1:
        return Growth(grown, curved, -np.inf, np.inf)
    rng = np.random.default_rng(seed)
    draws = [
        curvature(alphas, np.median(np.concatenate([by_shape[pick] for pick in picks]), axis=0))
        for picks in rng.integers(len(names), size=(DRAWS, len(names)))
    ]
    low, high = np.quantile(draws, [1 - CONFIDENCE, CONFIDENCE])
    return Growth(grown, curved, float(low), float(high))


def curvature(alphas: Array, values: Array) -> float:
    """What the quadratic term of the least-squares parabola adds at the largest α."""
    return float(np.polyfit(alphas / alphas.max(), values, 2)[0])


def draw(lines: Sequence[Line], path: Path) -> None:
    """Write the figure as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    alphas = [line.alpha for line in lines]
    axes.plot(alphas, [line.cd for line in lines], "o-", color="tab:blue", label="completion")
    axes.plot(
        alphas, [line.cd_without_refine for line in lines], "o--", color="tab:blue", label="without refine"
    )
    axes.plot(
        alphas, [line.scan_both_ways for line in lines], "s-", color="tab:orange", label="the scan itself"
    )
    one_way = [line.scan_to_surface for line in lines]
    axes.plot(alphas, one_way, "s--", color="tab:orange", label="the scan to the surface, one way")
    axes.set(xlabel="noise α of the inverse depth, 1/m", ylabel="Chamfer distance ×10³, median")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(arguments: Iterable[str] | None = None) -> int:
    """Run the benchmark; exit status 1 if Chamfer distance grows faster than linearly, which --quick may."""
    parser = common.parser(__doc__, "one view of one shape at three α, a coarse mesh: an impression")
    add_options(parser, views=3)
    parser.add_argument("--pose", choices=["canonical", "upright"], default="canonical")
    parser.add_argument("--png", type=Path, default=Path("out/noise.png"), help="where the figure goes")
    options = parser.parse_args(None if arguments is None else list(arguments))
    alphas = QUICK_ALPHAS if options.quick else ALPHAS
    todo = [(one, options.pose) for a in alphas for one in subjects(options, Noise(inverse_depth=a))]
    results = work_through(noisy, todo, setup(options), options.jobs)
    lines = [line_of([one for one in results if one.alpha == alpha]) for alpha in alphas]
    draw(lines, options.png)
    ours, scans = growth(results, _chamfer), growth(results, lambda one: 1000 * one.scan_to_surface)
    print(f"growth of the completion's Chamfer distance: {ours}")
    print(f"growth of the scan's distance to the surface: {scans}")
    print(f"figure in {options.png}")
    ratio = lines[-1].cd / lines[0].cd
    more = {"growth": asdict(ours), "growth_of_scans": asdict(scans), "scans": [asdict(o) for o in results]}
    unit = f"times the Chamfer distance at alpha {alphas[-1]:g}"
    common.tell(options, "noise", ratio, unit, lines, **more)
    return 1 if ours.faster_than_linear and not options.quick else 0


def _chamfer(one: Noisy) -> float:
    """What a completion counts in the growth; without a mesh, as much as the scan itself."""
    return 1000 * (one.scan_both_ways if np.isnan(one.refined.chamfer) else one.refined.chamfer)


if __name__ == "__main__":
    sys.exit(main())
