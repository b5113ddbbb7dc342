"""A variant of a recipe on trial: trained on samples that all share, judged on shapes that none has seen."""

from __future__ import annotations

import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import VARIANT_MARK, Checkpoint, load_checkpoint, save_checkpoint
from model.codes import ENCODED_SAMPLES, decode, encode_rows
from model.mesh import to_trimesh
from model.metrics import CHAMFER_POINTS, chamfer_distance, sample_surface
from model.problems import rows_of_samples
from model.surface import NoSurface
from model.training.dataset import MissingSamples, SampleSet, load_sample_set, sample_files
from model.training.evaluate.inputs import normalized_mesh
from model.training.evaluate.tasks import evenly
from model.training.graphs import WARM_UP
from model.training.losses import clamped_l1
from model.training.recipe import Recipe, load_recipe
from model.training.samples import read_samples
from model.training.shapes import DRAWN, read_shapes
from model.training.trainer import NothingLearnt, Trainer, run

KNOWN_MOST = 12
"""Training shapes that are decoded and compared with their originals."""

UNCOUNTED_STEPS, PROBE_STEPS = WARM_UP + 7, 20
"""Steps that tell how long one takes, and those before, in which a GPU's is compiled and recorded."""


@dataclass(frozen=True)
class Given:
    """What all trials share, on one device."""

    device: str
    samples: SampleSet
    unseen: dict[Path, Path]  # samples of each validation shape, and its original
    known: dict[str, Path]  # name of some training shapes, and the original


@dataclass(frozen=True)
class Trial:
    """A variant, and what is known of it before it is trained."""

    variant: str
    recipe: Recipe
    step_ms: float  # time of a step, nothing else on the device
    beside: int = 1  # trials at once on the device


@dataclass(frozen=True)
class Row:
    """What is known of a variant. Errors in canonical units, Chamfer distances ×10³ in the unit ball."""

    variant: str
    error: float  # mean |clamp(f, δ) − clamp(s, δ)| of the validation shapes' other samples
    chamfer_mean: float  # of the validation shapes, from samples of the whole
    chamfer_median: float
    known_median: float  # Chamfer distance of training shapes, from their own codes
    loss: float  # of the last steps of training
    steps: int
    samples: int  # seen in training
    step_ms: float  # nothing else on the device
    seconds: float  # of training, `beside` trials at once
    beside: int
    errors: dict[str, float]  # of each validation shape
    chamfers: dict[str, float]


def given(folder: Path, data: Path, device: str) -> Given:
    """Samples and originals of a checkpoint's shapes. Raises MissingSamples, SourceError, ValueError."""
    recipe = load_recipe(folder)
    validation, files = sample_files(folder, data, recipe, "val"), sample_files(folder, data, recipe)
    shapes = {shape.id: shape for shape in read_shapes(folder)}
    names = [file.stem for file in files if VARIANT_MARK not in file.stem]
    people = [name for name in names if shapes[name].package != DRAWN]
    known = {name: shapes[name].path(data) for name in evenly(people, KNOWN_MOST)}
    unseen = {file: shapes[file.stem].path(data) for file in validation}
    if missing := [mesh for mesh in (*known.values(), *unseen.values()) if not mesh.exists()]:
        raise MissingSamples(
            f"{len(missing)} originals are missing ({missing[0]}): "
            f"run `python -m model.training.sources {folder} --data {data}`"
        )
    samples = load_sample_set(files, recipe.samples.points)
    return Given(device, SampleSet(samples.names, samples.samples.to(device)), unseen, known)


# How long it takes


def step_seconds(recipe: Recipe, of: Given) -> float:
    """Mean time of a step of a recipe, in all its precisions; without a curriculum."""
    share = recipe.training.float32_share
    parts = [(1 - share, 0.0), (share, 1.0)]
    return sum(part * _step_seconds(recipe, last, of) for part, last in parts if part)


def _step_seconds(recipe: Recipe, float32_share: float, of: Given) -> float:
    settings = recipe.training.model_copy(update={"float32_share": float32_share, "curriculum": []})
    trainer = Trainer(recipe.model_copy(update={"training": settings}), of.samples, of.device)
    for _ in range(UNCOUNTED_STEPS):
        trainer.step()
    start = _now(of.device)
    for _ in range(PROBE_STEPS):
        trainer.step()
    return (_now(of.device) - start) / PROBE_STEPS


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


# How good it is


def measure(trial: Trial, of: Given) -> Row:
    """Train a variant and judge it, also one that stops learning: its meshes are empty."""
    trainer, start, loss = Trainer(trial.recipe, of.samples, of.device), _now(of.device), math.inf
    try:
        for logged in run(trainer):
            loss = logged.loss
    except NothingLearnt as error:
        print(f"{trial.variant}: {error}", file=sys.stderr)
    seconds = _now(of.device) - start
    checkpoint, settings = checkpoint_of(trainer), trial.recipe.training
    errors, chamfers = {}, {}
    for file, original in of.unseen.items():
        code, errors[file.stem] = fitted(checkpoint, file)
        chamfers[file.stem] = chamfer(checkpoint, code, original)
    own = {name: checkpoint.codes[checkpoint.shapes.index(name)] for name in of.known}
    known = [chamfer(checkpoint, code, of.known[name]) for name, code in own.items()]
    return Row(
        variant=trial.variant,
        error=float(np.mean(list(errors.values()))),
        chamfer_mean=float(np.mean(list(chamfers.values()))),
        chamfer_median=median(chamfers.values()),
        known_median=median(known),
        loss=loss,
        steps=settings.steps,
        samples=settings.steps * settings.shapes_per_step * settings.points_per_shape,
        step_ms=trial.step_ms,
        seconds=seconds,
        beside=trial.beside,
        errors=errors,
        chamfers=chamfers,
    )


def checkpoint_of(trainer: Trainer) -> Checkpoint:
    """What has been trained, ready to fit codes to."""
    decoder, codes = trainer.trained()
    recipe = trainer.recipe
    card = {"name": recipe.name, "skin": recipe.samples.skin}
    card["clamping_distance"] = recipe.training.clamping_distance
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), decoder, codes, trainer.data.extents(), trainer.names, card)
        return load_checkpoint(Path(folder), trainer.device)


def fitted(checkpoint: Checkpoint, file: Path, seed: int = 0) -> tuple[Tensor, float]:
    """The code (L,) fitted to `ENCODED_SAMPLES` of a shape's samples, or to half; its error at the others."""
    arrays = [torch.from_numpy(array).to(checkpoint.device) for array in read_samples(file)]
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(arrays[0]))).to(checkpoint.device)
    count = min(ENCODED_SAMPLES, len(order) // 2)
    some, others = order[:count], order[count:]
    points, distances = arrays
    delta = checkpoint.clamping_distance
    code = encode_rows(checkpoint, rows_of_samples(points[None, some], distances[None, some], delta))
    with torch.no_grad():
        predicted = checkpoint.decoder(code[None], points[None, others])
        return code, float(clamped_l1(predicted[0], distances[others], delta))


def chamfer(checkpoint: Checkpoint, code: Tensor, original: Path) -> float:
    """Chamfer distance ×10³ of a code's (L,) mesh to the original; infinite if it has none."""
    try:
        made = to_trimesh(decode(checkpoint, code))
    except NoSurface:
        return math.inf
    true, _ = normalized_mesh(original)
    surfaces = [sample_surface(mesh, CHAMFER_POINTS, seed)[0] for mesh, seed in ((made, 1), (true, 2))]
    return 1000 * chamfer_distance(*surfaces)
