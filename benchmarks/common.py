"""What the benchmarks share: their options, the shapes the model has never seen, and how a result is told."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import torch
import trimesh
from rich.console import Console
from rich.table import Table

from model.checkpoint import Checkpoint, load_checkpoint
from model.observation import View
from model.training.samples import read_quality, read_samples, sample_path
from model.training.shapes import Shape, SourceError, read_shapes

State = TypeVar("State")
progress = Console(stderr=True)

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@dataclass(frozen=True)
class Figure:
    """One line of a table."""

    what: str
    value: float
    unit: str


def parser(description: str | None, quick: str) -> argparse.ArgumentParser:
    """The options of every benchmark; `quick` says what --quick leaves out."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("checkpoints/chairs"), help="folder of a model"
    )
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    return parser


def load(options: argparse.Namespace) -> Checkpoint:
    """The checkpoint asked for, on the CPU: all times are a CPU's."""
    checkpoint = load_checkpoint(options.checkpoint, "cpu")
    progress.print(f"{options.checkpoint} on {torch.get_num_threads()} threads")
    return checkpoint


def example() -> View:
    """The shipped scan of a held-out chair."""
    told = json.loads((EXAMPLES / "chair.json").read_text())
    return View(trimesh.load(EXAMPLES / "chair.ply").vertices, viewpoint=told["viewpoint"])


@dataclass(frozen=True)
class UnseenShape:
    """Signed-distance samples of a shape that no training has seen, in random order."""

    name: str
    points: torch.Tensor  # (N, 3) canonical frame
    distances: torch.Tensor  # (N,) the trained ones, ±d − τ


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Options of a benchmark that needs samples of unseen shapes."""
    parser.add_argument("--data", type=Path, default=Path("data"), help="where the samples of shapes are")
    parser.add_argument("--prepare", action="store_true", help="download and sample what is missing first")
    parser.add_argument(
        "--split", choices=["val", "test"], default="test", help="val: what the settings were chosen on"
    )


def unseen_shapes(options: argparse.Namespace, name: str, seed: int = 0) -> list[UnseenShape]:
    """Accepted shapes of the split in shapes.csv that belongs to the model called `name`.

    Ends the program with the commands that make the samples where they are missing.
    """
    if options.prepare:
        for command in _preparation(options):
            subprocess.run(command, check=True, stdout=sys.stderr)
    try:
        shapes = [shape for shape in read_shapes(options.checkpoint) if shape.split == options.split]
    except SourceError as error:
        raise SystemExit(str(error)) from error
    folder = options.data / "samples" / name
    quality = read_quality(folder)
    accepted = [shape for shape in shapes if shape.id not in quality or not quality[shape.id].rejected]
    if missing := [shape for shape in accepted if not sample_path(folder, shape).exists()]:
        commands = "\n".join("  " + " ".join(["python", *command[1:]]) for command in _preparation(options))
        raise SystemExit(
            f"{len(missing)} of {len(shapes)} {options.split} shapes have no samples under {folder}. "
            f"Add --prepare, or run (one to two minutes in all)\n{commands}"
        )
    return [_unseen(shape, folder, seed) for shape in accepted]


def _unseen(shape: Shape, folder: Path, seed: int) -> UnseenShape:
    points, distances = map(torch.from_numpy, read_samples(sample_path(folder, shape)))
    # The files hold the points outside first.
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))
    return UnseenShape(shape.id, points[order], distances[order])


def _preparation(options: argparse.Namespace) -> list[list[str]]:
    where = [
        str(options.checkpoint),
        *([] if options.data == Path("data") else ["--data", str(options.data)]),
    ]
    run = [sys.executable, "-m"]
    return [
        [*run, "model.training.sources", *where],
        [*run, "model.training.samples", *where, "--split", options.split],
    ]


def timed(states: Iterator[State]) -> Iterator[tuple[float, State]]:
    """Each state with the seconds its iterator has worked so far: what the caller does meanwhile is free."""
    seconds = 0.0
    while True:
        start = perf_counter()
        state = next(states, None)
        seconds += perf_counter() - start
        if state is None:
            return
        yield seconds, state


def tell(
    options: argparse.Namespace, name: str, number: float, unit: str, figures: Sequence[Any], **more: Any
) -> None:
    """Print one row of a table for each of the `figures` (dataclasses), then the result on a line of its own.

    With --json the same goes to a file, with whatever `more` there is to say.
    """
    rows = [asdict(figure) for figure in figures]
    table = Table(*rows[0], box=None, header_style="bold")
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    Console(width=150).print(table)
    if options.json:
        facts = {"name": name, "number": number, "unit": unit, "quick": options.quick}
        facts |= {"checkpoint": str(options.checkpoint), "threads": torch.get_num_threads()}
        options.json.write_text(json.dumps({**facts, **more, "shapes": rows}, indent=2) + "\n")
    print(f"{name}: {number:.1f}{unit}" if unit == "x" else f"{name}: {number:.1f} {unit}")


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
