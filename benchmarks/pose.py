"""How well the place of a scan is found: yaw, scale and position of held-out shapes from one noisy view.

Each scan is a single view with noise of 1 % of the shape's radius along the rays, at a random yaw, scale
(0.3 to 3) and offset: `benchmarks.held_out`. It is completed with `pose="upright"`, which knows the
vertical alone. What is found is compared with the truth: the yaw of the report's `scan_to_canonical`, the
radius of the completed object as a share of the true one, less one, and how far apart their centres are, in
radii of the shape. A success is a yaw off by less than 10° and a scale by less than 10 %. Centre and radius
are those of the bounding box along the shape's axes, which define the canonical frame. The scale in
`scan_to_canonical` says less: a code may decode to a shape somewhat smaller than the unit ball, and the scan
is then scaled into that.

Yaws are counted modulo the symmetry of the shape. A shape is n-fold about the vertical through its centre
if the Chamfer distance between it and itself, turned by any multiple of 360°/n, is below 1.0 (×10³, unit
ball, 30,000 points: less than completions are off by, and about ten times what two samples of one surface
are apart). Of the n that are looked at, 2, 3, 4, 6, 8, 12 and 24, the largest counts; 24-fold, every 15°,
is round, and any yaw of it is right.

Beside it stands the Chamfer distance of the completed meshes, with `refine` and without, and of what
`pose="canonical"` makes of the same scans turned into canonical orientation: the price of not knowing the
yaw.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import trimesh

from benchmarks import common
from benchmarks.held_out import (
    Noise,
    Scan,
    Setup,
    Subject,
    about_y,
    add_options,
    compared,
    completed,
    setup,
    subjects,
    thousandfold_chamfer,
    work_through,
)
from model.frame import BALL_RADIUS
from model.metrics import Comparison, chamfer_distance, sample_surface
from model.report import CompletionReport
from model.training.evaluate.inputs import true_shape

NOISE = Noise(along_rays=0.01)
YAW_MARGIN, SCALE_MARGIN = 10.0, 0.1  # degrees; share
FOLDS = (24, 12, 8, 6, 4, 3, 2)
ROUND = FOLDS[0]
SYMMETRIC = 1.0  # Chamfer distance ×10³
GOAL_SUCCESS, GOAL_RATIO = 0.9, 1.3


@dataclass(frozen=True)
class Errors:
    """How far a similarity found is from the true one. Infinite where none was found."""

    yaw: float  # degrees, modulo the shape's symmetry
    scale: float  # |found / true − 1|
    translation: float  # radii of the shape

    @property
    def success(self) -> bool:
        """Near enough in yaw and scale."""
        return self.yaw < YAW_MARGIN and self.scale < SCALE_MARGIN


NOT_FOUND = Errors(np.inf, np.inf, np.inf)


@dataclass(frozen=True)
class Posed:
    """One scan: its errors, and what completions of it are like."""

    shape: str
    view: int
    errors: Errors
    upright: Comparison
    upright_unrefined: Comparison
    canonical: Comparison


@dataclass(frozen=True)
class Line:
    """One shape. Medians over its views; Chamfer distances ×10³ in its unit ball."""

    shape: str
    symmetry: str
    views: int
    success: float  # share
    yaw_degrees: float
    scale_error: float
    translation_radii: float
    cd: float
    cd_without_refine: float
    cd_pose_given: float


def fold_of(true: trimesh.Trimesh) -> int:
    """n of the n-fold symmetry that the shape (unit ball) has about its vertical; 1 if it has none."""
    points, _ = sample_surface(true, 30_000)
    steps = {
        step: 1000 * chamfer_distance(points, points @ about_y(2 * np.pi * step / ROUND).T)
        for step in range(1, ROUND // 2 + 1)  # turned the other way it is the same distance
    }
    for fold in FOLDS:
        turns = (turn * ROUND // fold for turn in range(1, fold // 2 + 1))
        if all(steps[step] < SYMMETRIC for step in turns):
            return fold
    return 1


def said(fold: int) -> str:
    """The symmetry in words."""
    return "round" if fold == ROUND else f"{fold}-fold" if fold > 1 else "none"


def errors_of(found: CompletionReport, scan: Scan, fold: int) -> Errors:
    """Where a completion stands and how large it is, against where the shape does."""
    turn = np.asarray(found.scan_to_canonical)[:3, :3] @ scan.to_scan.rotation
    yaw = np.degrees(np.arctan2(turn[0, 2] - turn[2, 0], turn[0, 0] + turn[2, 2]))
    radius = scan.to_scan.scale * BALL_RADIUS
    apart = np.linalg.norm(np.asarray(found.center) - scan.to_scan.translation)
    return Errors(_yaw_error(float(yaw), fold), abs(found.radius / radius - 1), float(apart) / radius)


def _yaw_error(yaw: float, fold: int) -> float:
    if fold == ROUND:
        return 0.0
    period = 360 / fold
    return abs((yaw + period / 2) % period - period / 2)


def posed(setup: Setup, task: tuple[Subject, int]) -> Posed:
    """Complete one scan of a shape with this symmetry, its pose unknown and given."""
    subject, fold = task
    scan = subject.scan(setup.data)
    turned = scan.in_canonical_orientation()
    upright = completed(setup, scan, pose="upright", refine=True)
    return Posed(
        scan.shape,
        scan.number,
        NOT_FOUND if upright is None else errors_of(upright.report, scan, fold),
        upright=compared(upright, scan),
        upright_unrefined=compared(completed(setup, scan, pose="upright", refine=False), scan),
        canonical=compared(completed(setup, turned, pose="canonical", refine=True), turned),
    )


def line_of(posed: Sequence[Posed], fold: int) -> Line:
    """What is said of one shape."""
    errors = [one.errors for one in posed]
    return Line(
        posed[0].shape,
        said(fold),
        len(posed),
        success=float(np.mean([one.success for one in errors])),
        yaw_degrees=median(one.yaw for one in errors),
        scale_error=median(one.scale for one in errors),
        translation_radii=median(one.translation for one in errors),
        cd=float(np.median(thousandfold_chamfer(one.upright for one in posed))),
        cd_without_refine=float(np.median(thousandfold_chamfer(one.upright_unrefined for one in posed))),
        cd_pose_given=float(np.median(thousandfold_chamfer(one.canonical for one in posed))),
    )


def folds_of(todo: Sequence[Subject], data: Path) -> dict[str, int]:
    """The symmetry of every shape, by its id."""
    shapes = {one.shape.id: one.shape for one in todo}
    return {name: fold_of(true_shape(shape, data)[0]) for name, shape in shapes.items()}


def summary(results: Sequence[Posed]) -> dict[str, float]:
    """Figures over all scans."""
    errors = [one.errors for one in results]
    found, unrefined, given = (
        float(np.median(thousandfold_chamfer(some)))
        for some in (
            [one.upright for one in results],
            [one.upright_unrefined for one in results],
            [one.canonical for one in results],
        )
    )
    return {
        "success": float(np.mean([one.success for one in errors])),
        "yaw_degrees": median(one.yaw for one in errors),
        "scale_error": median(one.scale for one in errors),
        "translation_radii": median(one.translation for one in errors),
        "cd": found,
        "cd_without_refine": unrefined,
        "cd_pose_given": given,
        "cd_ratio": found / given,
    }


def main(arguments: Iterable[str] | None = None) -> int:
    """Run the benchmark; exit status 1 if success or Chamfer distance miss the goal, which --quick may."""
    parser = common.parser(__doc__, "one view of one shape, a coarse mesh: an impression")
    add_options(parser, views=4)
    options = parser.parse_args(None if arguments is None else list(arguments))
    todo = subjects(options, NOISE)
    folds = folds_of(todo, options.data)
    tasks = [(one, folds[one.shape.id]) for one in todo]
    results = work_through(posed, tasks, setup(options), options.jobs)
    lines = [line_of([one for one in results if one.shape == shape], fold) for shape, fold in folds.items()]
    figures = summary(results)
    _print(figures, folds)
    more = {"summary": figures, "scans": [asdict(one) for one in results]}
    common.tell(options, "pose", 100 * figures["success"], "% success", lines, **more)
    met = figures["success"] >= GOAL_SUCCESS and figures["cd_ratio"] <= GOAL_RATIO
    return 0 if options.quick or met else 1


def _print(figures: dict[str, float], folds: dict[str, int]) -> None:
    symmetric = [f"{shape} ({said(fold)})" for shape, fold in folds.items() if fold > 1]
    print(f"scored modulo their symmetry: {', '.join(symmetric) or 'none of the shapes'}")
    print(
        f"median yaw error {figures['yaw_degrees']:.1f} degrees, scale {100 * figures['scale_error']:.1f} %, "
        f"translation {figures['translation_radii']:.3f} radii of the shape"
    )
    print(
        f"median Chamfer distance x10^3 {figures['cd']:.2f}, "
        f"without refine {figures['cd_without_refine']:.2f}; "
        f"with the pose given {figures['cd_pose_given']:.2f}: {figures['cd_ratio']:.2f} times that"
    )


if __name__ == "__main__":
    sys.exit(main())
