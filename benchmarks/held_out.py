"""Held-out shapes as a depth camera sees them, in any place: what pose, noise and peers complete.

Each scan is one of 16 views of a shape of the split `val` or `test` (`model.training.evaluate.inputs`,
`one_view`: 160 × 120 pixels from 2.5 radii away, 10° to 50° above), with noise, and then moved by a random
similarity: a yaw, uniform; a scale from 0.3 to 3, its logarithm uniform; an offset of up to 3 of the
shape's radii along each axis. The same scan has the same noise and move in every benchmark. No scan depends
on `--jobs`.

Errors are measured in the true shape's unit-ball frame (radius 1/1.03), against the original mesh.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from rich.progress import Progress

from benchmarks import common
from model.checkpoint import load_checkpoint
from model.completion import Completer, Completion, CompletionError, MeshOptions
from model.frame import BALL_RADIUS, Normalization, Similarity
from model.mesh import Mesh, to_trimesh
from model.metrics import FAILED, Comparison, compare
from model.observation import UnusableScan, View, observe
from model.training.evaluate.inputs import VIEWS, one_view, true_shape
from model.training.evaluate.methods import RESOLUTION
from model.training.shapes import Shape, SourceError, read_shapes
from model.training.views import Camera, with_inverse_depth_noise
from model.training.views import View as CameraView

Array = NDArray[np.float64]
Task = TypeVar("Task")
Result = TypeVar("Result")

SMALLEST, LARGEST = 0.3, 3.0
FARTHEST = 3.0  # radii of the shape


@dataclass(frozen=True)
class Noise:
    """Gaussian noise of the depth camera; each kind is off at 0.

    `along_rays`: standard deviation of a point along its line of sight, in radii of the shape.
    `inverse_depth`: α, the standard deviation of 1/depth in 1/metre, the shape in its own metres (the paper's
    model, as stereo and structured light have it). At depth z it moves a point by α·z² along the camera's
    axis: at 1.4 m, where a camera 2.5 radii from a chair stands, α = 0.01 is 2 cm.
    """

    along_rays: float = 0.0
    inverse_depth: float = 0.0

    def added(self, view: CameraView, radius: float, rng: np.random.Generator) -> Array:
        """Points (N, 3) of a view with noise, in its frame and unit; `radius` of the shape in that unit."""
        camera = Camera(view.intrinsics, view.camera_to_world)
        depth = view.depth
        if self.inverse_depth:
            depth = with_inverse_depth_noise(depth, self.inverse_depth, rng)
        points = camera.unproject(depth)
        rays = points - camera.eye
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        return points + self.along_rays * radius * rng.normal(size=(len(points), 1)) * rays


@dataclass(frozen=True)
class Scan:
    """One view of a held-out shape, somewhere."""

    shape: str
    number: int  # of the view
    view: View  # in the scan's frame
    to_scan: Similarity  # from the true shape's unit-ball frame
    true: trimesh.Trimesh  # in its unit-ball frame
    radius: float  # of the true shape, metres

    def in_canonical_orientation(self) -> Scan:
        """The same scan turned so that the shape's axes are the frame's; place and scale stay unknown."""
        turn = Similarity(1.0, self.to_scan.rotation.T, np.zeros(3))
        return replace(self, view=_moved(self.view, turn), to_scan=turn.after(self.to_scan))

    def known_as(self, pose: str) -> Scan:
        """The scan as this pose mode expects it: turned for `canonical`, else as it is."""
        return self.in_canonical_orientation() if pose == "canonical" else self

    def points_in_ball(self) -> Array:
        """The scan's points (N, 3) in the true shape's unit-ball frame."""
        return self.to_scan.inverse().apply(self.view.points)


def _moved(view: View, to: Similarity) -> View:
    assert view.viewpoint is not None and view.background is not None
    return View(
        to.apply(view.points), None, to.apply(view.viewpoint[None])[0], to.turn(view.background), view.colors
    )


@dataclass(frozen=True)
class Subject:
    """Which scan, before it is taken: small enough to send to another process."""

    shape: Shape
    number: int
    noise: Noise
    seed: int

    def scan(self, data: Path) -> Scan:
        """Take it of the shape that `model.training.sources` brought to `data`."""
        name = zlib.crc32(self.shape.id.encode())
        of_noise, of_move = (np.random.default_rng([self.seed, name, self.number, use]) for use in (0, 1))
        true, normalization = true_shape(self.shape, data)
        taken = one_view(true, normalization, self.number, VIEWS)
        radius = BALL_RADIUS / normalization.scale
        move = random_similarity(of_move, radius)
        points = self.noise.added(taken, radius, of_noise)
        view = _moved(View(points, None, taken.viewpoint, taken.background), move)
        to_scan = move.after(_out_of_ball(normalization))
        return Scan(self.shape.id, self.number, view, to_scan, true, radius)


def random_similarity(rng: np.random.Generator, radius: float) -> Similarity:
    """A yaw, a scale and an offset for a shape of this radius."""
    yaw = rng.uniform(0, 2 * np.pi)
    scale = float(np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST))))
    offset = FARTHEST * radius * scale * rng.uniform(-1, 1, 3)
    return Similarity(scale, about_y(yaw), offset)


def about_y(angle: float) -> Array:
    """The rotation (3, 3) about the vertical by an angle in radians; +z turns towards +x."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def _out_of_ball(normalization: Normalization) -> Similarity:
    return Similarity(1 / normalization.scale, np.eye(3), -normalization.offset)


# What is completed, and how well


@dataclass(frozen=True)
class Setup:
    """What every process needs to know."""

    checkpoint: Path
    data: Path
    device: str
    resolution: int = RESOLUTION

    def completer(self) -> Completer:
        """Loaded once a process."""
        return _completer(self.checkpoint, self.device)


@cache
def _completer(checkpoint: Path, device: str) -> Completer:
    return Completer(load_checkpoint(checkpoint, device))


def completed(setup: Setup, scan: Scan, **options: Any) -> Completion | None:
    """What `Completer.complete` makes of the scan with these options; None if it makes no mesh."""
    try:
        return setup.completer().complete(scan.view, resolution=setup.resolution, **options)
    except CompletionError:
        return None


def with_and_without_refinement(setup: Setup, scan: Scan, pose: str) -> tuple[Mesh | None, Mesh | None]:
    """The completed mesh as it is served and the one without `refine`, from one and the same fit."""
    completer = setup.completer()
    try:
        observation = observe(scan.view)
        fit = completer.fit(observation, pose)
        sure, options = completer.posterior(fit), MeshOptions(setup.resolution)
        code, placement = fit.best.code, fit.problem.placements
        with_, without = (
            completer.finish(
                completer.shape(code, placement, observation, refine), sure, observation, options
            ).mesh
            for refine in (True, False)
        )
    except (CompletionError, UnusableScan):
        return None, None
    return with_, without


def compared(made: Completion | Mesh | None, scan: Scan) -> Comparison:
    """How near a mesh in the scan's frame is to the true shape; `FAILED` if there is none."""
    if made is None:
        return FAILED
    mesh = made.mesh if isinstance(made, Completion) else made
    return compare(to_trimesh(mesh.moved(scan.to_scan.inverse())), scan.true)


def thousandfold_chamfer(comparisons: Iterable[Comparison]) -> Array:
    """Chamfer distances ×10³; infinite where there is no mesh, so that medians count it as the worst."""
    return 1000 * np.nan_to_num([one.chamfer for one in comparisons], nan=np.inf)


def mean_of_finite(values: Iterable[float]) -> float:
    """The mean of what was measured; infinite if nothing was."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("inf")


# Options and processes


def add_options(parser: argparse.ArgumentParser, views: int) -> None:
    """Options of a benchmark that completes scans of held-out shapes; `views` of each by default."""
    parser.add_argument("--data", type=Path, default=Path("data"), help="where the shapes are")
    parser.add_argument("--split", choices=["val", "test"], default="test", help="tune on val, publish test")
    parser.add_argument("--views", type=int, default=views, help=f"views of each shape, {VIEWS} at most")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes, one thread of torch each"
    )
    parser.add_argument("--seed", type=int, default=0, help="of noise and moves")


def setup(options: argparse.Namespace) -> Setup:
    """What the options say; a --quick mesh is coarse."""
    resolution = RESOLUTION // 2 if options.quick else RESOLUTION
    return Setup(options.checkpoint, options.data, options.device, resolution)


def held_out_shapes(options: argparse.Namespace) -> list[Shape]:
    """Shapes of the split, the first alone if `--quick`. Ends the program where one is missing."""
    try:
        shapes = [shape for shape in read_shapes(options.checkpoint) if shape.split == options.split]
    except SourceError as error:
        raise SystemExit(str(error)) from error
    if not shapes:
        raise SystemExit(f"{options.checkpoint}/shapes.csv lists no {options.split} shapes")
    if missing := [shape for shape in shapes if not shape.path(options.data).exists()]:
        where = "" if options.data == Path("data") else f" --data {options.data}"
        raise SystemExit(
            f"{len(missing)} of {len(shapes)} {options.split} shapes are not under {options.data}/shapes: "
            "run\n"
            f"  python -m model.training.sources {options.checkpoint}{where}"
        )
    return shapes[:1] if options.quick else shapes


def subjects(options: argparse.Namespace, noise: Noise) -> list[Subject]:
    """Every scan of a benchmark: of the first `--views` of the 16 views, or of one if `--quick`.

    Azimuths go by the golden angle: the views that come first look from well-spread sides, however many.
    """
    count = 1 if options.quick else min(options.views, VIEWS)
    shapes = held_out_shapes(options)
    return [Subject(shape, number, noise, options.seed) for shape in shapes for number in range(count)]


def work_through(
    work: Callable[[Setup, Task], Result], tasks: Sequence[Task], setup: Setup, jobs: int
) -> list[Result]:
    """Results of `work` in the order of the tasks; over processes if there is more than one job.

    `work` and the tasks travel to fresh processes: `work` must be a function of a module.
    """
    with Progress(console=common.progress) as progress:
        bar = progress.add_task(work.__name__.strip("_"), total=len(tasks))
        if jobs == 1:
            results = []
            for task in tasks:
                results.append(work(setup, task))
                progress.advance(bar)
            return results
        context = multiprocessing.get_context("spawn")
        with _one_thread_a_process(), ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,)) as pool:
            running = [pool.submit(work, setup, task) for task in tasks]
            for _ in as_completed(running):
                progress.advance(bar)
            return [future.result() for future in running]


@contextmanager
def _one_thread_a_process() -> Iterator[None]:
    """Libraries of linear algebra read this as they are loaded: it counts for processes started meanwhile."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
