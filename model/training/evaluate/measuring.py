"""From a task to its figures: every method's mesh compared with the original, the way between two shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import load_checkpoint
from model.codes import between
from model.completion import Completer, CompletionError
from model.mesh import Mesh, parts_of, to_trimesh
from model.metrics import CHAMFER_POINTS, FAILED, NAN, chamfer_distance, compare, sample_surface
from model.observation import UnusableScan
from model.surface import NoSurface
from model.training.calibration import LEVELS, coverage
from model.training.evaluate.inputs import Floats, Truth, noisy_view, one_view, several_views, truth_of
from model.training.evaluate.methods import (
    ADAM,
    NOT_REFINED,
    OURS,
    Methods,
    decoded,
    of_known_shape,
    of_samples,
    of_views,
)
from model.training.evaluate.tasks import Task
from model.training.samples import sample_path
from model.training.shapes import Shape, read_shapes

Extent = Literal["all", "no adam", "ours"]
"""Which methods are measured: Adam takes longer than all others together."""

NO_MESH = (CompletionError, NoSurface, UnusableScan)

WITHIN = tuple(f"within_{level:g}_std" for level in LEVELS)
"""Shares of the true surface within so many deviations of the mesh."""

ENDS, IN_BETWEEN = "the ends", "in between"
STEPS = 5
"""Shapes on a way, both ends among them."""

SCREENED_POINTS, COMPARED_SHAPES = 500, 3


@dataclass(frozen=True)
class Setup:
    """What every process needs to know."""

    folder: Path  # of the checkpoint
    data: Path
    device: str
    extent: Extent = "all"

    def completer(self) -> Completer:
        """Loaded once a process."""
        return _completer(self.folder, self.device)


@cache
def _completer(folder: Path, device: str) -> Completer:
    torch.set_num_threads(1)
    return Completer(load_checkpoint(folder, device))


@dataclass(frozen=True)
class Measured:
    """What one method made of one task."""

    section: str
    category: str
    shape: str
    view: int
    method: str
    figures: dict[str, float]

    def record(self) -> dict[str, Any]:
        """One flat row."""
        row = {"section": self.section, "category": self.category, "shape": self.shape}
        return row | {"view": self.view, "method": self.method} | self.figures


def measure(task: Task, setup: Setup) -> list[Measured]:
    """All methods on one task."""
    if task.other is not None:
        return measure_between(task, setup)
    truth = truth_of(task.shape.path(setup.data))
    return [
        Measured(task.section, task.shape.category, task.shape.id, task.view, name, figures_of(method, truth))
        for name, method in methods_of(task, truth, setup).items()
    ]


def methods_of(task: Task, truth: Truth, setup: Setup) -> Methods:
    """The methods that a task's section asks for."""
    methods = _of_section(task, truth, setup)
    if task.section == "noise":
        methods = {f"{OURS}, α = {task.noise:g}": methods[OURS]}
    elif task.section == "several":
        methods = {name: methods[name] for name in (OURS, NOT_REFINED)}
    left_out = {"all": set(), "no adam": {ADAM}, "ours": set(methods) - {OURS, f"{OURS}, α = {task.noise:g}"}}
    return {name: method for name, method in methods.items() if name not in left_out[setup.extent]}


def _of_section(task: Task, truth: Truth, setup: Setup) -> Methods:
    completer = setup.completer()
    if task.section == "known":
        return of_known_shape(completer, task.shape.id)
    if task.section == "unseen":
        return of_samples(completer, sample_path(setup.data / "samples" / setup.folder.name, task.shape))
    return of_views(completer, views_of(task, truth), truth.normalization)


def views_of(task: Task, truth: Truth) -> Sequence[Any]:
    """What the depth camera saw: one frame, several, or a noisy one."""
    if task.section == "several":
        return several_views(truth, task.view)
    if task.section == "noise":
        return [noisy_view(truth, task.view, task.noise)]
    return [one_view(truth.mesh, truth.normalization, task.view)]


def figures_of(method: Callable[[], Mesh], truth: Truth) -> dict[str, float]:
    """How near a method's mesh comes to the truth; the worst there is if it makes none."""
    try:
        mesh = method()
    except NO_MESH:
        return {**FAILED.to_dict(), "iou": 0.0}
    figures = {**compare(to_trimesh(mesh), truth.mesh).to_dict(), "iou": truth.iou(mesh)}
    if mesh.deviation is not None:
        figures |= dict(zip(WITHIN, coverage(mesh, truth.mesh), strict=True))
    return figures


# Between two training shapes


def measure_between(task: Task, setup: Setup) -> list[Measured]:
    """What lies on the straight way from one training code to another, beside its ends.

    Of each shape: whether its mesh is closed, whether it is one part (a chair that falls apart is none), and
    the Chamfer distance to the nearest original of any training shape (if it is as small as that of the
    ends, the way leads over copies). Of the way: the longest of its steps as a share of all, in root
    Chamfer distance (0.25 is even; near 1 the shape jumps, and nothing lies between).
    """
    meshes = way(task, setup.completer())
    points = [_surface(mesh) for mesh in meshes]
    jump = _longest_step(points)
    measured = []
    for step, (mesh, surface) in enumerate(zip(meshes, points, strict=True)):
        at_end = step in (0, STEPS - 1)
        figures = _shape_figures(mesh, surface, setup) | ({} if at_end else {"longest_step": jump})
        method = ENDS if at_end else IN_BETWEEN
        measured.append(Measured(task.section, task.shape.category, task.subject, step, method, figures))
    return measured


def way(task: Task, completer: Completer) -> list[Mesh | None]:
    """Meshes at even steps from the one training shape to the other; None where there is no surface."""
    assert task.other is not None
    names, codes = completer.checkpoint.shapes, completer.checkpoint.codes
    first, last = (codes[names.index(shape.id)] for shape in (task.shape, task.other))
    return [_decoded_or_none(completer, code) for code in between(first, last, STEPS)]


def _decoded_or_none(completer: Completer, code: Tensor) -> Mesh | None:
    try:
        return decoded(completer, code)
    except NoSurface:
        return None


def _surface(mesh: Mesh | None) -> Floats | None:
    return None if mesh is None else sample_surface(to_trimesh(mesh), CHAMFER_POINTS, seed=1)[0]


def _longest_step(points: Sequence[Floats | None]) -> float:
    if any(some is None for some in points):
        return 1.0
    surfaces = [some for some in points if some is not None]
    steps = [chamfer_distance(a, b) ** 0.5 for a, b in pairwise(surfaces)]
    return float(max(steps) / sum(steps))


def _shape_figures(mesh: Mesh | None, surface: Floats | None, setup: Setup) -> dict[str, float]:
    if mesh is None or surface is None:
        return {"closed": 0.0, "one_part": 0.0, "nearest": NAN}
    return {
        "closed": float(to_trimesh(mesh).is_watertight),
        "one_part": float(parts_of(mesh) == 1),
        "nearest": 1000 * nearest_training_shape(surface, setup),
    }


@torch.no_grad()
def nearest_training_shape(surface: Floats, setup: Setup) -> float:
    """Chamfer distance of a surface's points (N, 3) to the original of the nearest training shape.

    Nearest of the few whose decoded fields are smallest at some of the points.
    """
    checkpoint = setup.completer().checkpoint
    listed = _listed(setup.folder)
    own = [row for row in checkpoint.own_shapes if checkpoint.shapes[row] in listed]
    some = np.asarray(surface[:SCREENED_POINTS], np.float32)
    points = torch.from_numpy(some).to(checkpoint.device).expand(len(own), -1, -1)
    fields = checkpoint.decoder(checkpoint.codes[own], points).abs().mean(dim=1)
    files = [
        listed[checkpoint.shapes[own[row]]].path(setup.data)
        for row in fields.argsort()[:COMPARED_SHAPES].tolist()
    ]
    return min(chamfer_distance(surface, _original(file)) for file in files)


@cache
def _listed(folder: Path) -> dict[str, Shape]:
    return {shape.id: shape for shape in read_shapes(folder)}


def _original(file: Path) -> Floats:
    return sample_surface(truth_of(file).mesh, CHAMFER_POINTS, seed=2)[0]
