"""Train a checkpoint from its recipe: `python -m model.training.train checkpoints/chairs`.

The auto-decoder of DeepSDF, section 4: the decoder's weights and one latent code a shape are
optimised together on clamped signed distances. Stop it at any time; the same command resumes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from model.checkpoint import choose_device, own_rows, save_checkpoint
from model.decoder import Decoder
from model.training.dataset import MissingSamples, SampleSet, load_sample_set, sample_files
from model.training.lipschitz import steepness
from model.training.recipe import Recipe, TrainingRecipe, load_recipe
from model.training.shapes import read_shapes


def clamped_l1(predicted: Tensor, true: Tensor, clamping_distance: float) -> Tensor:
    """Mean |clamp(f, δ) − clamp(s, δ)| (paper, equation 4)."""
    delta = clamping_distance
    return (predicted.clamp(-delta, delta) - true.clamp(-delta, delta)).abs().mean()


def rate_share(step: int, recipe: TrainingRecipe) -> float:
    """Share of the peak learning rate at a step: a linear rise, then half a cosine down to zero."""
    rise = max(1, round(recipe.steps * recipe.warmup_share))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, recipe.steps - rise)))


class Trainer:
    """Decoder, codes and optimiser of one run, one `step` at a time."""

    def __init__(self, recipe: Recipe, data: SampleSet, device: str) -> None:
        self.recipe, self.device = recipe, device
        settings = recipe.training
        torch.manual_seed(settings.seed)
        self.data = SampleSet(data.names, data.samples.to(device))
        self.generator = torch.Generator(device).manual_seed(settings.seed)
        self.decoder = Decoder(recipe.decoder.spec()).to(device)
        length = recipe.decoder.code_length
        codes = torch.randn(len(data.names), length) * settings.code_std / math.sqrt(length)
        self.codes = nn.Parameter(codes.to(device))
        self.optimizer = torch.optim.AdamW(
            [
                {"params": self.decoder.parameters(), "peak": settings.decoder_rate},
                {"params": [self.codes], "peak": settings.code_rate, "weight_decay": 0.0},
            ],
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.step_count = 0
        self._order = torch.empty(0, dtype=torch.long, device=device)

    def _next_shapes(self) -> Tensor:
        """The next shapes of a random order that is drawn anew when it runs out: none is left behind."""
        count = self.recipe.training.shapes_per_step
        while len(self._order) < count:
            more = torch.randperm(len(self.codes), generator=self.generator, device=self.device)
            self._order = torch.cat([self._order, more])
        shapes, self._order = self._order[:count], self._order[count:]
        return shapes

    def _loss(self) -> tuple[Tensor, Tensor]:
        settings = self.recipe.training
        shapes = self._next_shapes()
        points, distances = self.data.draw(shapes, settings.points_per_shape, self.generator)
        codes = self.codes[shapes]
        if settings.code_noise:
            noise = torch.randn(codes.shape, generator=self.generator, device=self.device)
            codes = codes + settings.code_noise * noise
        fast = self.step_count < settings.steps * (1 - settings.float32_share)
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=fast):
            predicted = self.decoder(codes, points)
        loss = clamped_l1(predicted, distances, settings.clamping_distance)
        return loss, settings.code_penalty * self.codes[shapes].square().sum(dim=1).mean()

    def step(self) -> Tensor:
        """One optimiser step; returns the clamped L1 loss."""
        share = rate_share(self.step_count, self.recipe.training)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        self.decoder.train()
        loss, penalty = self._loss()
        self.optimizer.zero_grad(set_to_none=True)
        (loss + penalty).backward()
        self.optimizer.step()
        self.step_count += 1
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """All that a later process needs to go on as if it had never stopped."""
        return {
            "step": self.step_count,
            "decoder": self.decoder.state_dict(),
            "codes": self.codes.detach(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "global_generator": torch.get_rng_state(),
            "order": self._order,
            "names": self.data.names,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`; raises ValueError if it was made from other shapes."""
        if state["names"] != self.data.names:
            raise ValueError("the saved state was trained on other shapes: remove the training folder")
        try:
            self.decoder.load_state_dict(state["decoder"])
        except RuntimeError as error:
            raise ValueError("the saved state has another decoder: remove the training folder") from error
        self.step_count = state["step"]
        with torch.no_grad():
            self.codes.copy_(state["codes"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["global_generator"].cpu())
        self._order = state["order"].to(self.device)


@dataclass(frozen=True)
class Logged:
    """One line of the training log."""

    step: int
    loss: float
    code_norm: float
    seconds: float


def run(trainer: Trainer, log_every: int = 50) -> Iterator[Logged]:
    """Train to the end, yielding the mean loss of every `log_every` steps."""
    total, losses, start = trainer.recipe.training.steps, [], time.monotonic()
    while trainer.step_count < total:
        losses.append(trainer.step())
        if trainer.step_count % log_every == 0 or trainer.step_count == total:
            loss = float(torch.stack(losses).mean())
            losses = []
            norm = float(trainer.codes.detach().norm(dim=1).mean())
            yield Logged(trainer.step_count, loss, norm, time.monotonic() - start)


def _save_state(trainer: Trainer, file: Path) -> None:
    # Written beside and renamed, so that a stop in mid-write leaves the state before it.
    part = file.with_suffix(".part")
    torch.save(trainer.state(), part)
    part.rename(file)


def train(folder: Path, data: Path, device: str) -> Trainer:
    """Train the recipe in `folder` on the samples under `data`, resuming where a former run stopped."""
    recipe = load_recipe(folder)
    files = sample_files(folder, data, recipe)
    work = folder / "training"
    work.mkdir(exist_ok=True)
    trainer = Trainer(recipe, load_sample_set(files, recipe.samples.points), device)
    state_file = work / "state.pt"
    if state_file.exists():
        trainer.restore(torch.load(state_file, map_location=device, weights_only=True))
    _run_with_progress(trainer, state_file, work / "log.jsonl")
    return trainer


def export(trainer: Trainer, folder: Path) -> None:
    """Write the served files of a checkpoint into its folder."""
    recipe = trainer.recipe
    own = own_rows(trainer.data.names)
    card = {
        "name": recipe.name,
        "description": recipe.description,
        "category": recipe.category,
        **_terms(folder, recipe),
        "training_shapes": len(own),
        "variants_per_shape": len(trainer.data.names) // len(own) - 1,
        "skin": recipe.samples.skin,
        "clamping_distance": recipe.training.clamping_distance,
        "code_length": recipe.decoder.code_length,
        "parameters": sum(part.numel() for part in trainer.decoder.parameters()),
        "trained": {"device": trainer.device, "steps": trainer.step_count, "torch": torch.__version__},
    }
    card |= steepness(trainer.decoder, trainer.codes, own).card()
    extents = trainer.data.extents()
    save_checkpoint(folder, trainer.decoder, trainer.codes, extents, trainer.data.names, card)


def _terms(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Under which terms the training shapes came: DeepSDF's files do not say."""
    if recipe.samples.source is not None:
        return {"licences": ["unknown"]}
    licences = {shape.licence for shape in read_shapes(folder) if shape.split == "train"}
    return {"licences": sorted(licences), "attribution": "ATTRIBUTION.md"}


def _run_with_progress(trainer: Trainer, state_file: Path, log_file: Path) -> None:
    recipe = trainer.recipe.training
    columns = [
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.5f}"),
    ]
    with Progress(*columns, TimeRemainingColumn()) as progress, log_file.open("a") as log:
        task = progress.add_task("train", total=recipe.steps, completed=trainer.step_count, loss=math.nan)
        for line in run(trainer):
            progress.update(task, completed=line.step, loss=line.loss)
            log.write(json.dumps(line.__dict__) + "\n")
            log.flush()
            if line.step % recipe.save_every == 0 or line.step == recipe.steps:
                _save_state(trainer, state_file)


def main() -> int:
    """Train and export one checkpoint folder; exit status 1 with a message where that cannot be."""
    parser = argparse.ArgumentParser(prog="python -m model.training.train", description=__doc__)
    parser.add_argument("folder", type=Path, help="checkpoint folder with recipe.toml and shapes.csv")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where samples are")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    options = parser.parse_args()
    try:
        trainer = train(options.folder, options.data, choose_device(options.device))
    except (MissingSamples, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    export(trainer, options.folder)
    print(f"{options.folder}: {trainer.step_count} steps, {len(trainer.codes)} codes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
