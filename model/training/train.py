"""Train a checkpoint from its recipe: `python -m model.training.train checkpoints/chairs`.

Stop it at any time; the same command resumes. On several GPUs or processes:
`torchrun --nproc-per-node 2 -m model.training.train checkpoints/chairs`.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from model.checkpoint import choose_device, own_rows, save_checkpoint, start_rows
from model.training.dataset import MissingSamples, load_sample_set, sample_files
from model.training.lipschitz import steepness
from model.training.logs import Log, draw_log
from model.training.ranks import ALONE, Ranks, joined
from model.training.recipe import Recipe, TrainingRecipe, load_recipe
from model.training.shapes import DRAWN, SourceError, read_shapes
from model.training.states import States
from model.training.trainer import Trainer, run


def loaded(folder: Path, data: Path, device: str, step: int | None = None, ranks: Ranks = ALONE) -> Trainer:
    """A trainer of the recipe in `folder` on the samples under `data`, where a former run stopped.

    With a `step`, where its snapshot was taken. Raises MissingSamples, or ValueError where nothing fits.
    """
    recipe = load_recipe(folder)
    files = ranks.own(sample_files(folder, data, recipe))
    trainer = Trainer(recipe, load_sample_set(list(files), recipe.samples.points), device, ranks)
    if state := States(folder / "training").load(step, device):
        trainer.restore(state)
    return trainer


def train(trainer: Trainer, work: Path, tensorboard: bool = False) -> None:
    """Train to the end; log and states go into the folder `work`."""
    work.mkdir(exist_ok=True)
    if trainer.ranks.first:
        with Log(work, trainer.step_count, tensorboard) as log:
            _train(trainer, States(work), log)
        draw_log(work)
    else:
        _train(trainer, States(work), None)


def _train(trainer: Trainer, states: States, log: Log | None) -> None:
    recipe = trainer.recipe.training
    columns = [
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.5f}"),
    ]
    with Progress(*columns, TimeRemainingColumn(), disable=log is None) as progress:
        task = progress.add_task("train", total=recipe.steps, completed=trainer.step_count, loss=math.nan)
        for line in run(trainer):
            progress.update(task, completed=line.step, loss=line.loss)
            if log:
                log.write(line)
            snapshot = is_snapshot(line.step, recipe)
            if snapshot or line.step % recipe.save_every == 0 or line.step == recipe.steps:
                state = trainer.state()
                if log:
                    states.save(state, snapshot)


def is_snapshot(step: int, recipe: TrainingRecipe) -> bool:
    """Whether the state after a step is kept for good."""
    often = recipe.snapshot_every and step % recipe.snapshot_every == 0
    return bool(often) or step in recipe.extra_snapshots


def export(trainer: Trainer, folder: Path) -> None:
    """Write the served files of a checkpoint into its folder; all processes must call it.

    Raises ValueError while the network still grows.
    """
    recipe, (decoder, codes) = trainer.recipe, trainer.trained()
    extents = trainer.ranks.gathered(trainer.data.extents(), len(trainer.names))
    if not trainer.ranks.first:
        return
    own = own_rows(trainer.names)
    card = {
        "name": recipe.name,
        "description": recipe.description,
        "category": recipe.category,
        **_terms(folder, recipe),
        "training_shapes": len(own),
        "variants": len(trainer.names) - len(own),
        "skin": recipe.samples.skin,
        "clamping_distance": recipe.training.clamping_distance,
        "code_length": recipe.decoder.code_length,
        "parameters": sum(part.numel() for part in decoder.parameters()),
        "trained": {"device": trainer.device, "steps": trainer.step_count, "torch": torch.__version__},
    }
    card |= steepness(decoder, codes, own).card()
    starts = start_rows(trainer.names, first=_made_by_people(folder, recipe))
    # Rounded so, codes move distances by 1e-4 at most, and thousands of them take half of the place.
    save_checkpoint(folder, decoder, codes.half(), extents, trainer.names, card, starts)


def _made_by_people(folder: Path, recipe: Recipe) -> set[str]:
    """Training shapes that no program drew: a fit starts from these first."""
    if recipe.samples.source is not None:
        return set()
    return {shape.id for shape in read_shapes(folder) if shape.package != DRAWN}


def _terms(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Under which terms the training shapes came: DeepSDF's files do not say."""
    if recipe.samples.source is not None:
        return {"licences": ["unknown"]}
    licences = {shape.licence for shape in read_shapes(folder) if shape.split == "train"}
    return {"licences": sorted(licences), "attribution": "ATTRIBUTION.md"}


def main() -> int:
    """Train and export one checkpoint folder; exit status 1 with a message where that cannot be."""
    parser = argparse.ArgumentParser(prog="python -m model.training.train", description=__doc__)
    parser.add_argument("folder", type=Path, help="checkpoint folder with recipe.toml and shapes.csv")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where samples are")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--resume", type=int, metavar="STEP", help="go on from the snapshot of this step")
    parser.add_argument("--export", action="store_true", help="only write the files of the state there is")
    parser.add_argument("--tensorboard", action="store_true", help="write training/tensorboard/ as well")
    options = parser.parse_args()
    device = choose_device(options.device)
    try:
        with joined(device) as ranks:
            trainer = loaded(options.folder, options.data, device, options.resume, ranks)
            if not options.export:
                train(trainer, options.folder / "training", options.tensorboard)
            export(trainer, options.folder)
    except (MissingSamples, SourceError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    if ranks.first:
        print(f"{options.folder}: {trainer.step_count} steps, {len(trainer.names)} codes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
