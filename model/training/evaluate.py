"""Measure a checkpoint: `python -m model.training.evaluate checkpoints/chairs`.

Three questions, each with the paper's metrics: how well are known shapes represented, how well unseen
ones from full samples, and how well unseen ones are completed from one view of a depth camera, with
the scan's place and size unknown. What is measured is the `Completer` that is served. Beside it, on
the same inputs: the nearest training code, the mean code, and the published Adam recipe.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from model.checkpoint import load_checkpoint, read_card, write_card
from model.codes import decode, encode_rows, nearest_codes
from model.completion import Completer, CompletionError, MeshOptions
from model.fitting import Fit, Starts
from model.frame import Normalization, Similarity, normalization_of
from model.latent import Adam, CodePrior, Rows, rows_of_samples
from model.mesh import Mesh, to_trimesh
from model.metrics import Comparison, compare
from model.observation import Observation, observe
from model.observation import View as SensorView
from model.placement import Placements
from model.starts import StartShapes
from model.training.calibration import coverage, draw_reliability
from model.training.report import Row, in_rows, save_sheet, write_report
from model.training.samples import read_samples, sample_path
from model.training.shapes import Shape, read_shapes
from model.training.views import View, depth_view, viewpoints

Array = NDArray[np.float64]

RESOLUTION = 128
POSE = "canonical"
"""The completions of the report have their orientation given, place and size unknown."""

FIT_SAMPLES = 8000
METHODS = ("ours", "ours, not refined", "nearest training code", "mean code", "Adam recipe")
FAILED = Comparison(chamfer=float("nan"), accuracy=float("nan"), completeness=0.0, cosine=0.0)


@dataclass(frozen=True)
class Task:
    """One measurement: a section of the report, a shape, and which view of it."""

    section: str  # "known", "unseen", "completion"
    shape: Shape
    view: int = 0


@dataclass(frozen=True)
class Measured:
    """What one method made of one task."""

    section: str
    shape: str
    view: int
    method: str
    comparison: Comparison
    coverage: tuple[float, ...] = ()  # of a completion by ours: `calibration.coverage`


@cache
def _completer(folder: Path, device: str) -> Completer:
    torch.set_num_threads(1)
    return Completer(load_checkpoint(folder, device))


def true_shape(shape: Shape, data: Path) -> tuple[trimesh.Trimesh, Normalization]:
    """The original mesh in the unit-ball frame, and the way into it."""
    mesh = trimesh.load_mesh(shape.path(data), process=False)
    normalization = normalization_of(np.asarray(mesh.vertices))
    mesh.vertices = normalization.apply(mesh.vertices)
    return mesh, normalization


def measure(task: Task, folder: Path, data: Path, device: str, quick: bool) -> list[Measured]:
    """All methods on one task; `quick` leaves out Adam, which takes longer than all others together."""
    completer = _completer(folder, device)
    true, normalization = true_shape(task.shape, data)
    methods: dict[str, Callable[[], Mesh]]
    if task.section == "known":
        index = completer.checkpoint.shapes.index(task.shape.id)
        methods = {"ours": lambda: _decoded(completer, completer.checkpoint.codes[index])}
    elif task.section == "unseen":
        methods = full_sample_methods(completer, sample_path(data / "samples" / folder.name, task.shape))
    else:
        view = one_view(true, normalization, task.view)
        methods = completion_methods(completer, view, normalization)
    return [
        Measured(task.section, task.shape.id, task.view, name, *_compared(method, true))
        for name, method in methods.items()
        if not (quick and name == "Adam recipe")
    ]


def _compared(method: Callable[[], Mesh], true: trimesh.Trimesh) -> tuple[Comparison, tuple[float, ...]]:
    try:
        mesh = method()
    except CompletionError:
        return FAILED, ()
    covered = () if mesh.deviation is None else tuple(coverage(mesh, true))
    return compare(to_trimesh(mesh), true), covered


def _decoded(completer: Completer, code: Tensor) -> Mesh:
    return decode(completer.checkpoint, code, RESOLUTION)


def full_sample_methods(completer: Completer, file: Path) -> dict[str, Callable[[], Mesh]]:
    """What each method makes of the samples of a whole shape, its frame known."""
    checkpoint = completer.checkpoint
    points, distances = read_samples(file)
    picks = np.random.default_rng(0).permutation(len(points))[:FIT_SAMPLES]
    rows = rows_of_samples(
        torch.from_numpy(points[picks])[None].to(checkpoint.device),
        torch.from_numpy(distances[picks])[None].to(checkpoint.device),
        checkpoint.clamping_distance,
    )
    ranked = nearest_codes(checkpoint, rows)
    return {
        "ours": lambda: _decoded(completer, encode_rows(checkpoint, rows)),
        "nearest training code": lambda: _decoded(completer, ranked[0]),
        "mean code": lambda: _decoded(completer, checkpoint.prior.mean),
        "Adam recipe": lambda: _decoded(completer, _full_adam(completer, rows)),
    }


def _full_adam(completer: Completer, rows: Rows) -> Tensor:
    checkpoint = completer.checkpoint
    known = Placements.identity(1, checkpoint.device)
    solver = Adam(checkpoint.decoder, rows, checkpoint.codes.shape[1], known, checkpoint.clamping_distance)
    while not solver.finished:
        solver.step()
    return solver.codes[0].detach()


def one_view(true: trimesh.Trimesh, normalization: Normalization, view: int, views: int = 16) -> View:
    """One frame of a depth camera looking at the shape in its own metres, by number."""
    raw = true.copy()
    raw.vertices = normalization.invert(true.vertices)
    centre = -normalization.offset
    eye = centre + viewpoints(views, seed=1, radius=1 / normalization.scale)[view]
    return depth_view(raw, eye, target=centre, width=160, height=120)


def completion_methods(
    completer: Completer, view: View, normalization: Normalization
) -> dict[str, Callable[[], Mesh]]:
    """What each method makes of one view whose place and size are unknown, in the unit-ball frame."""
    to_ball = Similarity(normalization.scale, np.eye(3), normalization.offset * normalization.scale)
    observation = observe(SensorView(view.points, None, view.viewpoint, view.background))
    shapes = completer.checkpoint.starts
    mean = completer.fitter.start_shapes(completer.checkpoint.prior.mean).of(torch.tensor([0]))

    def of_fit(fit: Fit, refine: bool = False) -> Mesh:
        shape = completer.shape(fit.best.code, fit.problem.placements, observation, refine)
        made = completer.finish(shape, completer.posterior(fit), observation, MeshOptions(RESOLUTION))
        return made.mesh.moved(to_ball)

    return {
        "ours": lambda: of_fit(completer.fit(observation, POSE), refine=True),
        "ours, not refined": lambda: of_fit(completer.fit(observation, POSE)),
        "nearest training code": lambda: of_fit(placed_only(completer, observation, shapes)),
        "mean code": lambda: of_fit(placed_only(completer, observation, mean)),
        "Adam recipe": lambda: of_fit(completer.fit(observation, POSE, "adam")),
    }


def placed_only(
    completer: Completer, observation: Observation, shapes: StartShapes, pose: str = POSE, tried: int = 4
) -> Fit:
    """The best of the start shapes as it is, with its placement fitted as ours is."""
    best = completer.fitter.screen(observation, pose, 0, shapes)
    fits = [
        _with_code_held(completer, observation, best.of(torch.tensor([index])), pose)
        for index in range(min(tried, len(best.codes)))
    ]
    return min(fits, key=lambda fit: fit.best.residual)


def _with_code_held(completer: Completer, observation: Observation, start: Starts, pose: str) -> Fit:
    length = start.codes.shape[1]
    held = CodePrior(start.codes[0], 1e9 * torch.eye(length, device=start.codes.device))
    return completer.fitter.fit_starts(observation, start, held, pose, seed=2)


def tasks(shapes: list[Shape], known: list[str], sampled: set[str], views: int) -> Iterator[Task]:
    """Every measurement of the report."""
    for shape in shapes:
        if shape.id in known:
            yield Task("known", shape)
    unseen = [shape for shape in shapes if shape.id not in known]
    for shape in unseen:
        if shape.id in sampled:
            yield Task("unseen", shape)
        for view in range(views):
            yield Task("completion", shape, view)


def summary(measured: list[Measured]) -> dict[str, dict[str, dict[str, float]]]:
    """Section → method → figures. A method that made no mesh counts as the worst in the median."""
    groups: dict[tuple[str, str], list[Comparison]] = defaultdict(list)
    for one in measured:
        groups[one.section, one.method].append(one.comparison)
    figures: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for (section, method), comparisons in sorted(groups.items()):
        chamfer = 1000 * np.array([c.chamfer for c in comparisons])
        figures[section][method] = {
            "count": len(comparisons),
            "failed": int(np.isnan(chamfer).sum()),
            "chamfer_median": float(np.median(np.nan_to_num(chamfer, nan=np.inf))),
            "chamfer_mean": float(np.nanmean(chamfer)),
            "accuracy": float(np.nanmean([c.accuracy for c in comparisons])),
            "completeness": float(np.mean([c.completeness for c in comparisons])),
            "cosine": float(np.mean([c.cosine for c in comparisons])),
        }
    return dict(figures)


def print_tables(figures: dict[str, dict[str, dict[str, float]]]) -> None:
    """The figures as a person reads them."""
    for section, methods in figures.items():
        table = Table(title=f"{section}: Chamfer distance ×10³, unit-ball frame")
        columns = ["chamfer_median", "chamfer_mean", "accuracy", "completeness", "cosine", "failed", "count"]
        for column in ["method", *columns]:
            table.add_column(column)
        for method in METHODS:
            if method in methods:
                table.add_row(method, *(f"{methods[method][column]:.3g}" for column in columns))
        Console().print(table)


def evaluate(
    folder: Path, data: Path, split: str, views: int, device: str, jobs: int, quick: bool
) -> list[Measured]:
    """Measure everything over processes."""
    shapes = [shape for shape in read_shapes(folder) if shape.split in ("train", split)]
    checkpoint = load_checkpoint(folder, "cpu")
    known = [checkpoint.shapes[row] for row in checkpoint.own_shapes]
    samples = data / "samples" / folder.name
    sampled = {shape.id for shape in shapes if sample_path(samples, shape).exists()}
    unseen = [shape.id for shape in shapes if shape.split == split]
    if not all(shape.path(data).exists() for shape in shapes) or not sampled.intersection(unseen):
        commands = f"sources {folder}` and `python -m model.training.samples {folder} --split {split}"
        raise SystemExit(f"the {split} shapes are not all there: run `python -m model.training.{commands}`")
    todo = list(tasks(shapes, known, sampled, views))
    if quick:
        todo = [_middle(todo, section) for section in ("known", "unseen", "completion")]
    measured = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool, Progress() as progress:
        bar = progress.add_task("measure", total=len(todo))
        running = [pool.submit(measure, task, folder, data, device, quick) for task in todo]
        for future in as_completed(running):
            measured += future.result()
            progress.advance(bar)
    return measured


def _middle(todo: list[Task], section: str) -> Task:
    some = [task for task in todo if task.section == section]
    return some[len(some) // 2]


def draw_pictures(folder: Path, data: Path, shapes: list[Shape], device: str) -> dict[str, tuple[str, Path]]:
    """Sheets of known, unseen and completed shapes beside the true ones; title → (caption, file)."""
    completer = _completer(folder, device)
    known = [shape for shape in shapes if shape.id in completer.checkpoint.shapes][::4]
    unseen = [shape for shape in shapes if shape.id not in completer.checkpoint.shapes]
    captions = {
        "Known shapes": ("Pairs: the original, and what its code decodes to.", known, _known_cells, 6),
        "Unseen shapes": (
            "Pairs: the original, and the fit to its samples.",
            unseen,
            _unseen_cells,
            6,
        ),
        "Completions": ("Threes: one depth view, its completion, the original.", unseen, _view_cells, 6),
    }
    pictures = {}
    for title, (caption, some, draw, width) in captions.items():
        cells = [cell for shape in some for cell in draw(completer, data, shape)]
        file = folder / "report" / f"{title.lower().replace(' ', '_')}.png"
        save_sheet(in_rows(cells, width), file)
        pictures[title] = (caption, file)
    return pictures


def _known_cells(completer: Completer, data: Path, shape: Shape) -> Row:
    code = completer.checkpoint.codes[completer.checkpoint.shapes.index(shape.id)]
    return [(shape.id, true_shape(shape, data)[0]), ("decoded", _decoded(completer, code))]


def _unseen_cells(completer: Completer, data: Path, shape: Shape) -> Row:
    file = sample_path(data / "samples" / completer.checkpoint.name, shape)
    if not file.exists():
        return []
    fitted = full_sample_methods(completer, file)["ours"]()
    return [(shape.id, true_shape(shape, data)[0]), ("fitted", fitted)]


def _view_cells(completer: Completer, data: Path, shape: Shape) -> Row:
    true, normalization = true_shape(shape, data)
    view = one_view(true, normalization, 0)
    completed = completion_methods(completer, view, normalization)["ours"]()
    return [(shape.id, normalization.apply(view.points)), ("completed", completed), ("true", true)]


def reliability(measured: list[Measured], file: Path) -> tuple[str, Path]:
    """The reliability plot of the completions by ours, and its caption with the figures."""
    covered = [
        m.coverage for m in measured if m.section == "completion" and m.method == "ours" and m.coverage
    ]
    draw_reliability(covered, file)
    one, two = np.mean(covered, axis=0)[[1, 3]]
    caption = f"Of the true surface {one:.0%} lies within one standard deviation of the completed mesh and "
    caption += (
        f"{two:.0%} within two (a Gaussian promises 68 % and 95 %), mean of {len(covered)} completions."
    )
    return caption, file


def rows_as_json(measured: list[Measured]) -> list[dict[str, Any]]:
    """One plain record a measurement, in a stable order."""
    ordered = sorted(measured, key=lambda one: (one.section, one.shape, one.view, METHODS.index(one.method)))
    return [
        {"section": one.section, "shape": one.shape, "view": one.view, "method": one.method}
        | one.comparison.to_dict()
        | ({"within_1_std": one.coverage[1], "within_2_std": one.coverage[3]} if one.coverage else {})
        for one in ordered
    ]


def main() -> int:
    """Measure, print, and write the figures into card.json and report.md."""
    parser = argparse.ArgumentParser(prog="python -m model.training.evaluate", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--split", choices=["val", "test"], default="test", help="tune on val, publish test")
    parser.add_argument("--views", type=int, default=6, help="views of each unseen shape")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--quick", action="store_true", help="one measurement a section, no Adam, nothing written"
    )
    parser.add_argument("--json", type=Path, help="write every single measurement here")
    options = parser.parse_args()
    measured = evaluate(
        options.folder,
        options.data,
        options.split,
        options.views,
        options.device,
        options.jobs,
        options.quick,
    )
    figures = summary(measured)
    print_tables(figures)
    if options.json:
        options.json.write_text(json.dumps(rows_as_json(measured), indent=1))
    if not options.quick and options.split == "test":
        write_card(options.folder, {**read_card(options.folder), "evaluation": figures})
        shapes = [shape for shape in read_shapes(options.folder) if shape.split in ("train", "test")]
        pictures = draw_pictures(options.folder, options.data, shapes, options.device)
        pictures["Uncertainty"] = reliability(measured, options.folder / "report" / "reliability.png")
        write_report(options.folder, rows_as_json(measured), figures, pictures)
    print(f"evaluate: {figures['completion']['ours']['chamfer_median']:.3f} median Chamfer distance x10^3")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
