"""Signed-distance samples of all training shapes, held in one tensor."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from model.checkpoint import VARIANT_MARK
from model.training.recipe import Recipe
from model.training.samples import read_quality, sample_path, variant_numbers
from model.training.shapes import read_shapes


class MissingSamples(Exception):
    """There are no samples to train on; the message says what would help."""


def sample_files(checkpoint: Path, data: Path, recipe: Recipe, split: str = "train") -> list[Path]:
    """Samples of all accepted shapes of a split, each followed by its variants. Raises MissingSamples."""
    if recipe.samples.source is not None and recipe.samples.train_split is not None and split == "train":
        return listed_files(recipe.samples.source, recipe.samples.train_split)
    folder = data / "samples" / recipe.name
    quality = read_quality(folder)
    shapes = [shape for shape in read_shapes(checkpoint) if shape.split == split]
    unseen = [shape.id for shape in shapes if shape.id not in quality]
    if unseen or not shapes:
        command = f"python -m model.training.samples {checkpoint} --data {data}"
        raise MissingSamples(f"{len(unseen)} of {len(shapes)} shapes have no samples: run `{command}`")
    accepted = [shape for shape in shapes if not quality[shape.id].rejected]
    if not accepted:
        raise MissingSamples(f"all {len(shapes)} shapes were rejected: see {folder / 'quality.csv'}")
    return [
        sample_path(folder, shape, variant)
        for shape in accepted
        for variant in variant_numbers(shape, recipe.samples)
    ]


def listed_files(source: Path, split: Path) -> list[Path]:
    """Samples in DeepSDF's data folder `source` of the shapes that its split file names, in that order.

    Raises MissingSamples if the split cannot be read or a file is not there.
    """
    files = [source / "SdfSamples" / f"{shape}.npz" for shape in read_split(split)]
    missing = [file for file in files if not file.is_file()]
    if marked := [file for file in files if VARIANT_MARK in file.stem]:
        raise MissingSamples(f"{marked[0]} has the mark of a variant in its name, {VARIANT_MARK}: rename it")
    if missing or not files:
        first = f": {missing[0]} …" if missing else ""
        raise MissingSamples(f"{len(missing)} of the {len(files)} shapes of {split} have no samples{first}")
    return files


def read_split(file: Path) -> list[str]:
    """Shapes of one of DeepSDF's split files, {dataset: {class: [instance]}}, as "dataset/class/instance".

    Raises MissingSamples if it cannot be read.
    """
    try:
        split = json.loads(file.read_text(encoding="utf-8"))
        return [
            f"{dataset}/{category}/{instance}"
            for dataset, categories in split.items()
            for category, instances in categories.items()
            for instance in instances
        ]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise MissingSamples(
            f"{file} is no split file ({{dataset: {{class: [instance]}}}}): {error}"
        ) from error


@dataclass(frozen=True)
class SampleSet:
    """Samples of S shapes, half of them outside and half inside, as DeepSDF draws them."""

    names: list[str]  # S shapes and variants
    samples: Tensor  # (S, 2, P, 4): x, y, z, signed distance; outside first

    def extents(self) -> Tensor:
        """Lower and upper corner (S, 2, 3) of each shape's inside."""
        inside = self.samples[:, 1, :, :3]
        return torch.stack([inside.amin(dim=1), inside.amax(dim=1)], dim=1)

    def draw(self, shapes: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random points (B, count, 3) and distances (B, count) of the B given shapes.

        One outside and one inside, in turn, so that every even part has as many of each.
        """
        half, size = count // 2, self.samples.shape[2]
        device = self.samples.device
        picks = torch.randint(size, (len(shapes), half, 2), generator=generator, device=device)
        sides = torch.arange(2, device=device)
        drawn = self.samples[shapes.view(-1, 1, 1), sides, picks].flatten(1, 2)
        return drawn[..., :3], drawn[..., 3]


def _resized(rows: NDArray[np.float32], count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """`count` rows: a random subset, or all of them and some twice where a thin shape has too few."""
    order = rng.permutation(len(rows))
    return rows[np.resize(order, count)]


def load_sample_set(files: list[Path], points: int, seed: int = 0) -> SampleSet:
    """Read DeepSDF npz files, half of `points` outside and half inside a shape.

    Raises ValueError for a shape without points on both sides: its inside is not defined.
    """
    rng = np.random.default_rng(seed)
    samples = np.empty((len(files), 2, points // 2, 4), dtype=np.float32)
    for row, file in enumerate(track(files, "reading samples", transient=True)):
        with np.load(file) as sides:
            for side, key in enumerate(("pos", "neg")):
                rows = sides[key]
                rows = rows[np.isfinite(rows).all(axis=1)]  # DeepSDF's own tools write some that are not
                if not len(rows):
                    raise ValueError(f"{file} has no '{key}' samples: sample it anew with a larger skin")
                samples[row, side] = _resized(rows, points // 2, rng)
    return SampleSet([file.stem for file in files], torch.from_numpy(samples))
