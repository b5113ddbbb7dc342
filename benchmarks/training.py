"""How much faster our training step is than the published one, in samples a second.

Both train a network of the published size (8 × 512, 256-d codes, 1.8 M parameters), on the same files, with
as many shapes and samples a step, each as its own code does:

- The published step, written plainly: the files of a step's shapes are read anew, in a second process, and
  rows drawn from them; the code is put beside every point; weight normalisation, dropout 0.2, tanh; float32.
- Ours is `model.training.trainer.Trainer` as recipes have it unless told otherwise: samples held in memory,
  the code's part of a layer computed once a shape, plain weights, no dropout; bfloat16 where the processor
  has it, fused AdamW, on a CPU parts that fit its caches, on a GPU one launch for the whole step.

A row between them says what is left when ours too has weight normalisation, dropout and tanh. The files are
made for the run: spheres, 500,000 samples a shape as the published data have. Ours reads them before its
first step, which is in no time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import common
from model.training.compute import has_bfloat16
from model.training.dataset import load_sample_set
from model.training.graphs import WARM_UP
from model.training.recipe import DecoderRecipe, Recipe, TrainingRecipe
from model.training.trainer import Trainer

CODE, WIDTH, DEPTH, SKIP = 256, 512, 8, 4
DELTA, DROPOUT = 0.1, 0.2


@dataclass(frozen=True)
class Sizes:
    """What a step sees, and how many are timed."""

    shapes: int
    points: int  # of a shape in a step
    stored: int  # of a shape in its file
    steps: int


FULL = Sizes(shapes=2, points=16_384, stored=500_000, steps=5)
QUICK = Sizes(shapes=2, points=2048, stored=50_000, steps=3)


@dataclass(frozen=True)
class Speed:
    """One way to train."""

    step: str
    samples_per_second: float
    seconds: float  # of a step, the median
    times: float  # faster than the published step


class PublishedDecoder(nn.Module):
    """DeepSDF's network as it is drawn: (z, x) in, and again at the skip."""

    def __init__(self) -> None:
        super().__init__()
        given = CODE + 3
        sizes = [given] + [WIDTH] * DEPTH
        layers = []
        for layer in range(DEPTH):
            out = sizes[layer + 1] - (given if layer + 1 == SKIP else 0)
            layers.append(nn.utils.parametrizations.weight_norm(nn.Linear(sizes[layer], out)))
        self.layers, self.last = nn.ModuleList(layers), nn.Linear(WIDTH, 1)

    def forward(self, given: Tensor) -> Tensor:
        features = given
        for index, layer in enumerate(self.layers):
            if index == SKIP:
                features = torch.cat([features, given], dim=1)
            features = nn.functional.dropout(torch.relu(layer(features)), DROPOUT, self.training)
        return torch.tanh(self.last(features))


class Files(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """A shape's file is opened, read and drawn from whenever the shape's turn comes."""

    def __init__(self, files: list[Path], points: int) -> None:
        self.files, self.points = files, points

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        sides = []
        with np.load(self.files[index]) as stored:
            for key in ("pos", "neg"):
                rows = torch.from_numpy(stored[key])
                rows = rows[~torch.isnan(rows[:, 3])]
                sides.append(rows[torch.randint(len(rows), (self.points // 2,))])
        return torch.cat(sides), index


def published(files: list[Path], sizes: Sizes, device: str) -> Callable[[], object]:
    """The published step, ready to be called again and again."""
    decoder = PublishedDecoder().to(device)
    codes = nn.Embedding(len(files), CODE, max_norm=1.0).to(device)
    nn.init.normal_(codes.weight, 0.0, 1 / CODE**0.5)
    groups = [{"params": decoder.parameters(), "lr": 5e-4}, {"params": codes.parameters(), "lr": 1e-3}]
    optimizer = torch.optim.Adam(groups)
    batches = _forever(
        torch.utils.data.DataLoader(
            Files(files, sizes.points), sizes.shapes, shuffle=True, num_workers=1, persistent_workers=True
        )
    )

    def step() -> None:
        rows, shapes = next(batches)
        rows = rows.flatten(0, 1).to(device)
        points, true = rows[:, :3], rows[:, 3:].clamp(-DELTA, DELTA)
        given = torch.cat([codes(shapes.to(device).repeat_interleave(sizes.points)), points], dim=1)
        loss = (decoder(given).clamp(-DELTA, DELTA) - true).abs().sum() / len(rows)
        loss = loss + 1e-4 * given[:, :CODE].norm(dim=1).sum() / len(rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def _forever(loader: torch.utils.data.DataLoader[tuple[Tensor, int]]) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


def ours(files: list[Path], sizes: Sizes, device: str, **network: object) -> Callable[[], object]:
    """Our step, ready to be called again and again."""
    trainer = trainer_of(files, sizes, device, network)
    return lambda: trainer.step().item()


def trainer_of(
    files: list[Path], sizes: Sizes, device: str, network: dict[str, object], **settings: object
) -> Trainer:
    """A trainer of the published network, changed as told, at the published rates."""
    shape = {"code_length": CODE, "width": WIDTH, "depth": DEPTH, "skip_layer": SKIP, "octaves": 0}
    usual = {
        "shapes_per_step": sizes.shapes,
        "points_per_shape": sizes.points,
        "float32_share": 0.0,
        "schedule": "constant",
        "warmup_share": 0.0,
        "decoder_rate": 5e-4,
        "code_rate": 1e-3,
    }
    recipe = Recipe(
        name="benchmark",
        description="the published network",
        category="sphere",
        decoder=DecoderRecipe.model_validate({**shape, **network}),
        training=TrainingRecipe.model_validate({**usual, **settings}),
    )
    return Trainer(recipe, load_sample_set(files, sizes.stored), device)


UNCOUNTED = WARM_UP + 2
"""Steps before the timed ones: a GPU's is recorded after some, and the first replay loads it."""


def seconds_of(step: Callable[[], object], steps: int) -> float:
    """The median time of a step, once it is as fast as it gets."""
    for _ in range(UNCOUNTED if torch.cuda.is_available() else 1):
        step()
    times = []
    for _ in range(steps):
        start = perf_counter()
        step()
        times.append(perf_counter() - start)
    return median(times)


def write_spheres(folder: Path, sizes: Sizes) -> list[Path]:
    """Files of spheres in DeepSDF's format, twice as many as a step sees."""
    files, random = [], np.random.default_rng(0)
    for index in range(2 * sizes.shapes):
        radius = 0.4 + 0.05 * index
        directions = random.normal(size=(sizes.stored, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        distances = np.abs(random.normal(0, 0.05, (sizes.stored, 1)))
        distances[sizes.stored // 2 :] *= -1
        rows = np.hstack([directions * (radius + distances), distances]).astype(np.float32)
        files.append(folder / f"sphere{index}.npz")
        np.savez(files[-1], pos=rows[: sizes.stored // 2], neg=rows[sizes.stored // 2 :])
    return files


def measure(options: argparse.Namespace) -> list[Speed]:
    """All three ways, one after the other."""
    sizes, device = QUICK if options.quick else FULL, options.device
    samples = sizes.shapes * sizes.points
    with tempfile.TemporaryDirectory() as folder:
        files = write_spheres(Path(folder), sizes)
        ways = {
            "published": published(files, sizes, device),
            "ours, its network": ours(files, sizes, device, weight_norm=True, dropout=DROPOUT, tanh=True),
            "ours": ours(files, sizes, device),
        }
        seconds = {}
        for name, step in ways.items():
            seconds[name] = seconds_of(step, sizes.steps)
            common.progress.print(f"{name}: {seconds[name]:.3g} s a step")
    first = seconds["published"]
    return [Speed(name, samples / each, each, first / each) for name, each in seconds.items()]


def main(arguments: Iterable[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few samples a step: the ratio is another")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args(None if arguments is None else list(arguments))
    options.checkpoint = None
    speeds = measure(options)
    precision = "bfloat16" if has_bfloat16(options.device) else "float32: the processor has no bfloat16"
    print(f"{options.device}, {torch.get_num_threads()} threads; ours in {precision}")
    common.tell(options, "training", speeds[-1].times, "x", speeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
