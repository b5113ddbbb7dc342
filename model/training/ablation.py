"""Compare variants of a recipe: `python -m model.training.ablation checkpoints/chairs variants.toml`.

Each table of the TOML file is a variant, written as in a recipe: what it does not say is as in the recipe.
All are trained on the same samples, and judged on the shapes of the split `val`: a code is fitted to some of
a shape's samples, and the error is the mean |clamp(f, δ) − clamp(s, δ)| on the others. A line of JSON a
variant is added to the output as soon as it is known; variants that have one already are passed by.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from model.checkpoint import Checkpoint, choose_device, load_checkpoint, save_checkpoint
from model.codes import ENCODED_SAMPLES, encode_rows
from model.latent import rows_of_samples
from model.training.dataset import MissingSamples, SampleSet, load_sample_set, sample_files
from model.training.losses import clamped_l1
from model.training.recipe import Recipe, load_recipe
from model.training.samples import read_samples
from model.training.trainer import Trainer, run

PROBE_STEPS = 20
"""Steps that tell how many a time will do; as many go before them, uncounted."""


@dataclass(frozen=True)
class Row:
    """What is known of one variant. Errors in canonical units."""

    variant: str
    error: float  # mean over the validation shapes
    median: float
    worst: float
    loss: float  # of the last steps of training
    steps: int
    samples: int  # seen in training
    seconds: float  # of training
    errors: dict[str, float]  # of each validation shape


def variants_of(base: Recipe, tables: dict[str, dict[str, Any]]) -> dict[str, Recipe]:
    """The recipes of named tables of settings; raises ValueError for one that changes the samples."""
    made = {}
    for name, table in tables.items():
        if foreign := set(table) - {"decoder", "training"}:
            raise ValueError(f"variant {name}: only [decoder] and [training] may differ, not {foreign}")
        settings = base.model_dump(exclude_unset=True)
        for section, changed in table.items():
            settings[section] = {**settings.get(section, {}), **changed}
        made[name] = Recipe.model_validate(settings)
    return made


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """The same recipe, so many steps long."""
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"steps": steps})})


def steps_in(seconds: float, recipe: Recipe, data: SampleSet, device: str) -> int:
    """How many steps of a recipe take so long, of all its precisions together."""
    share = recipe.training.float32_share
    parts = [(1 - share, 0.0), (share, 1.0)]
    step_seconds = sum(part * _step_seconds(recipe, last, data, device) for part, last in parts if part)
    return max(PROBE_STEPS, round(seconds / step_seconds))


def _step_seconds(recipe: Recipe, float32_share: float, data: SampleSet, device: str) -> float:
    settings = recipe.training.model_copy(update={"float32_share": float32_share, "curriculum": []})
    trainer = Trainer(recipe.model_copy(update={"training": settings}), data, device)
    for _ in range(PROBE_STEPS):
        trainer.step()
    start = _now(device)
    for _ in range(PROBE_STEPS):
        trainer.step()
    return (_now(device) - start) / PROBE_STEPS


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


def checkpoint_of(trainer: Trainer) -> Checkpoint:
    """What has been trained, ready to fit codes to."""
    decoder, codes = trainer.trained()
    recipe = trainer.recipe
    card = {"name": recipe.name, "skin": recipe.samples.skin}
    card["clamping_distance"] = recipe.training.clamping_distance
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), decoder, codes, trainer.data.extents(), trainer.names, card)
        return load_checkpoint(Path(folder), trainer.device)


def validation_error(checkpoint: Checkpoint, file: Path, seed: int = 0) -> float:
    """Error of a shape's other samples when a code is fitted to `ENCODED_SAMPLES` of them, or to half."""
    arrays = [torch.from_numpy(array).to(checkpoint.device) for array in read_samples(file)]
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(arrays[0]))).to(checkpoint.device)
    count = min(ENCODED_SAMPLES, len(order) // 2)
    fitted, others = order[:count], order[count:]
    points, distances = arrays
    delta = checkpoint.clamping_distance
    code = encode_rows(checkpoint, rows_of_samples(points[None, fitted], distances[None, fitted], delta))
    with torch.no_grad():
        predicted = checkpoint.decoder(code[None], points[None, others])
        return float(clamped_l1(predicted[0], distances[others], delta))


def measure(name: str, recipe: Recipe, data: SampleSet, validation: list[Path], device: str) -> Row:
    """Train one variant and judge it."""
    trainer, start = Trainer(recipe, data, device), _now(device)
    *_, last = run(trainer)
    seconds = _now(device) - start
    checkpoint = checkpoint_of(trainer)
    errors = {file.stem: validation_error(checkpoint, file) for file in validation}
    values, settings = list(errors.values()), recipe.training
    return Row(
        variant=name,
        error=float(np.mean(values)),
        median=float(np.median(values)),
        worst=max(values),
        loss=last.loss,
        steps=settings.steps,
        samples=settings.steps * settings.shapes_per_step * settings.points_per_shape,
        seconds=seconds,
        errors=errors,
    )


def show(rows: list[Row]) -> None:
    """The rows as a person reads them."""
    columns = ["variant", "error", "median", "worst", "loss", "steps", "seconds"]
    table = Table(*columns, title="clamped error of unseen validation shapes")
    for row in rows:
        values = [getattr(row, column) for column in columns]
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values))
    Console().print(table)


def read_rows(file: Path) -> list[Row]:
    """The rows of an output file; none if there is no such file."""
    return [Row(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def main(arguments: Iterable[str] | None = None) -> int:
    """Train and judge every variant; exit status 1 with a message where that cannot be."""
    parser = argparse.ArgumentParser(prog="python -m model.training.ablation", description=__doc__)
    parser.add_argument("folder", type=Path, help="checkpoint folder with recipe.toml and shapes.csv")
    parser.add_argument("variants", type=Path, help="TOML file, a table of settings a variant")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where samples are")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="train each variant for so many steps")
    length.add_argument("--seconds", type=float, help="train each for as many steps as take about so long")
    parser.add_argument("--output", type=Path, default=Path("ablation.jsonl"), help="file to add lines to")
    options = parser.parse_args(None if arguments is None else list(arguments))
    device = choose_device(options.device)
    try:
        base = load_recipe(options.folder)
        variants = variants_of(base, tomllib.loads(options.variants.read_text()))
        validation = sample_files(options.folder, options.data, base, "val")
        files = sample_files(options.folder, options.data, base)
        data = load_sample_set(files, base.samples.points)
    except (MissingSamples, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    data = SampleSet(data.names, data.samples.to(device))
    known = {row.variant for row in read_rows(options.output)}
    for name, recipe in variants.items():
        if name in known:
            continue
        steps = options.steps or recipe.training.steps
        if options.seconds:
            steps = steps_in(options.seconds, recipe, data, device)
        row = measure(name, with_steps(recipe, steps), data, validation, device)
        with options.output.open("a") as output:
            output.write(json.dumps(asdict(row)) + "\n")
        show([row])
    show(sorted(read_rows(options.output), key=lambda row: row.error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
