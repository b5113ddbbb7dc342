"""Solids whose signed distance is known exactly, and a tiny checkpoint trained on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.checkpoint import save_checkpoint
from model.training.dataset import SampleSet
from model.training.recipe import DecoderRecipe, Recipe, SamplesRecipe, TrainingRecipe
from model.training.trainer import Trainer, run

Array = NDArray[np.float64]
SignedDistance = Callable[[Array], Array]


def sphere(radius: float) -> SignedDistance:
    """Signed distance of (N, 3) points to a sphere at the origin."""
    return lambda points: np.linalg.norm(points, axis=1) - radius


def box(x: float, y: float, z: float) -> SignedDistance:
    """Signed distance of (N, 3) points to a box at the origin with these half extents."""

    def distance(points: Array) -> Array:
        beyond = np.abs(points) - np.array([x, y, z])
        outside = np.linalg.norm(np.maximum(beyond, 0), axis=1)
        return np.asarray(outside + np.minimum(beyond.max(axis=1), 0))

    return distance


def torus(ring: float, tube: float) -> SignedDistance:
    """Signed distance of (N, 3) points to a torus around the y axis."""

    def distance(points: Array) -> Array:
        from_ring = np.hypot(points[:, 0], points[:, 2]) - ring
        return np.asarray(np.hypot(from_ring, points[:, 1]) - tube)

    return distance


def ball_points(count: int, rng: np.random.Generator) -> Array:
    """Uniform (count, 3) points of the unit ball."""
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return np.asarray(directions * rng.random((count, 1)) ** (1 / 3))


def surface_points(solid: SignedDistance, count: int, rng: np.random.Generator) -> Array:
    """(count, 3) points of a solid's surface: random points walked down their own distance."""
    points = ball_points(count, rng)
    for _ in range(20):
        points = points - 0.8 * solid(points)[:, None] * gradient(solid, points)
    return points


def gradient(solid: SignedDistance, points: Array, step: float = 1e-5) -> Array:
    """Central differences of the signed distance, (N, 3): outward normals near the surface."""
    axes = np.eye(3) * step
    return np.stack([(solid(points + a) - solid(points - a)) / (2 * step) for a in axes], axis=1)


TINY_SOLIDS: dict[str, SignedDistance] = {
    **{f"sphere_{radius}": sphere(radius) for radius in (0.5, 0.65, 0.8, 0.95)},
    **{f"box_{x}_{y}": box(x, y, 0.5) for x in (0.35, 0.5) for y in (0.35, 0.5, 0.65)},
}
"""What the tiny checkpoint is trained on."""

TINY_RECIPE = Recipe(
    name="tiny",
    description="spheres and boxes, for tests",
    category="solid",
    samples=SamplesRecipe(skin=0.0, points=8000, variants=0),
    decoder=DecoderRecipe(code_length=4, width=64, depth=4, skip_layer=2, octaves=1),
    training=TrainingRecipe(
        steps=900,
        shapes_per_step=5,
        points_per_shape=128,
        decoder_rate=1e-2,
        code_rate=2e-2,
        float32_share=1.0,
    ),
)


def tiny_samples(points: int = 8000, seed: int = 0) -> SampleSet:
    """Exact signed distances of all tiny solids, most of them near the surface."""
    rng = np.random.default_rng(seed)
    rows = [_half_and_half(solid, points, rng) for solid in TINY_SOLIDS.values()]
    return SampleSet(list(TINY_SOLIDS), torch.from_numpy(np.stack(rows).astype(np.float32)))


def _half_and_half(solid: SignedDistance, count: int, rng: np.random.Generator) -> Array:
    near = surface_points(solid, 2 * count, rng) + 0.05 * rng.normal(size=(2 * count, 3))
    points = np.concatenate([near, ball_points(count, rng)])
    rows = np.column_stack([points, solid(points)])
    sides = [rows[rows[:, 3] >= 0], rows[rows[:, 3] < 0]]
    return np.stack([side[rng.choice(len(side), count // 2)] for side in sides])


def train_tiny_checkpoint(folder: Path) -> None:
    """Train on the tiny solids and write a checkpoint that can be served."""
    folder.mkdir(parents=True, exist_ok=True)
    data = tiny_samples(4000)
    trainer = Trainer(TINY_RECIPE, data, "cpu")
    for _ in run(trainer):
        pass
    card = {
        "name": TINY_RECIPE.name,
        "description": TINY_RECIPE.description,
        "category": TINY_RECIPE.category,
        "licences": ["CC0-1.0"],
        "training_shapes": len(data.names),
        "skin": 0.0,
        "clamping_distance": TINY_RECIPE.training.clamping_distance,
        "code_length": TINY_RECIPE.decoder.code_length,
        "parameters": sum(part.numel() for part in trainer.decoder.parameters()),
    }
    save_checkpoint(folder, trainer.decoder, trainer.codes, data.extents(), data.names, card)
