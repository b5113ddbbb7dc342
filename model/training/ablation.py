"""Compare variants of a recipe: `python -m model.training.ablation checkpoints/chairs`.

Each table of a TOML file is a variant, written as in a recipe: what it does not say is as in the recipe.
Unless told, the file is `switches.toml` beside this module: every switch of a recipe, one at a time. All are
trained on the same samples, and judged on the shapes of the split `val`: a code is fitted to some of a
shape's samples, the clamped error is that of the others, and its mesh is compared with the original. Some
training shapes are compared too, from their own codes. First a step of each is timed, nothing else on the
device; then several may be trained at once. A line of JSON a variant is added to the output as soon as it is
known; variants that have one already are passed by. At the end all are printed as a table of Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import choose_device
from model.training.dataset import MissingSamples
from model.training.recipe import Recipe, load_recipe
from model.training.shapes import SourceError
from model.training.trials import Given, Row, Trial, given, measure, step_seconds

SWITCHES = Path(__file__).with_name("switches.toml")
FEWEST_STEPS = 20

Tables = dict[str, dict[str, Any]]
"""By the name of a variant: what it changes of [decoder] and [training]."""


def chosen(file: Path, rows: str | None) -> Tables:
    """The tables of a file, of several only those that are named, separated by commas.

    Raises ValueError for a name that is not there.
    """
    tables = tomllib.loads(file.read_text(encoding="utf-8"))
    if rows is None:
        return tables
    names = [name.strip() for name in rows.split(",")]
    if unknown := [name for name in names if name not in tables]:
        raise ValueError(f"{file} has no {unknown}, only {list(tables)}")
    return {name: tables[name] for name in names}


def variants_of(base: Recipe, tables: Tables) -> dict[str, Recipe]:
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


def trials_of(variants: dict[str, Recipe], of: Given, options: argparse.Namespace) -> Iterator[Trial]:
    """The variants, each as long as the options say, timed one after the other."""
    for name, recipe in variants.items():
        seconds = step_seconds(recipe, of)
        steps = options.steps or recipe.training.steps
        if options.seconds:
            steps = max(FEWEST_STEPS, round(options.seconds / seconds))
        print(f"{name}: {1000 * seconds:.3g} ms a step, {steps} steps", file=sys.stderr)
        training = recipe.training.model_copy(update={"steps": steps})
        yield Trial(name, recipe.model_copy(update={"training": training}), 1000 * seconds, options.jobs)


# Several at once

_given: list[Given] = []
"""What a process of the pool has loaded."""


def _begin(folder: Path, data: Path, device: str, places: Queue[int]) -> None:
    """A process of the pool takes its place: the number of its GPU."""
    torch.set_num_threads(1)
    place = places.get()
    if device == "cuda":
        torch.cuda.set_device(place)
    _given.append(given(folder, data, device))


def _row(trial: Trial, until: float) -> Row | None:
    """The row of a trial; None where it is too late to begin."""
    return measure(trial, _given[0]) if time.time() < until else None


def side_by_side(trials: list[Trial], options: argparse.Namespace, device: str) -> Iterator[Row | None]:
    """The rows of the trials as they come, `jobs` at once on each GPU, or on the CPU."""
    spawn = get_context("spawn")
    places: Queue[int] = spawn.Queue()
    devices = torch.cuda.device_count() if device == "cuda" else 1
    count = min(options.jobs * devices, len(trials))
    for number in range(count):
        places.put(number % devices)
    begun = (options.folder, options.data, device, places)
    with ProcessPoolExecutor(count, mp_context=spawn, initializer=_begin, initargs=begun) as pool:
        running = [pool.submit(_row, trial, options.until) for trial in trials]
        try:
            yield from (future.result() for future in as_completed(running))
        finally:
            pool.shutdown(cancel_futures=True)


def rows_of(variants: dict[str, Recipe], options: argparse.Namespace, device: str) -> Iterator[Row | None]:
    """The rows of the variants as they come; None for each that is not begun in time."""
    of = given(options.folder, options.data, device)
    trials = list(trials_of(variants, of, options))
    if options.jobs == 1 and (device == "cpu" or torch.cuda.device_count() == 1):
        yield from (measure(trial, of) if time.time() < options.until else None for trial in trials)
        return
    del of  # each process loads its own
    if device == "cuda":
        torch.cuda.empty_cache()
    yield from side_by_side(trials, options, device)


# What is told

COLUMNS = {
    "error": "error ×10³",
    "chamfer_mean": "unseen: CD mean",
    "chamfer_median": "median",
    "known_median": "known: CD median",
    "loss": "loss ×10³",
    "step_ms": "ms a step",
    "seconds": "seconds",
}
THOUSANDTHS = ("error", "loss")


def table(rows: list[Row], tables: Tables) -> str:
    """The rows in Markdown, in the order of the tables."""
    lines = [
        "| variant | changed | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    order = list(tables)
    for row in sorted(rows, key=lambda row: order.index(row.variant) if row.variant in order else len(order)):
        values = [getattr(row, name) * (1000 if name in THOUSANDTHS else 1) for name in COLUMNS]
        cells = [row.variant, changes(tables.get(row.variant, {})), *(f"{value:.3g}" for value in values)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def changes(settings: dict[str, Any]) -> str:
    """What a variant changes, as a recipe writes it."""
    pairs = [(name, value) for section in settings.values() for name, value in section.items()]
    return ", ".join(f"`{name} = {json.dumps(value)}`" for name, value in pairs)


def read_rows(file: Path) -> list[Row]:
    """The rows of an output file; none if there is no such file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [Row(**json.loads(line)) for line in lines]


def parse(arguments: Iterable[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m model.training.ablation", description=__doc__)
    parser.add_argument("folder", type=Path, help="checkpoint folder with recipe.toml and shapes.csv")
    parser.add_argument(
        "variants", type=Path, nargs="?", default=SWITCHES, help="TOML file, a table a variant"
    )
    parser.add_argument("--rows", metavar="NAMES", help="only these variants, separated by commas")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where samples and originals are")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once on each GPU, or on the CPU")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="train each variant for so many steps")
    length.add_argument("--seconds", type=float, help="train each for as many steps as take so long alone")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no variant after so many minutes")
    parser.add_argument("--output", type=Path, default=Path("ablation.jsonl"), help="file to add lines to")
    options = parser.parse_args(None if arguments is None else list(arguments))
    options.until = time.time() + 60 * options.minutes
    return options


def main(arguments: Iterable[str] | None = None) -> int:
    """Train and judge every variant; exit status 1 with a message where that cannot be."""
    options = parse(arguments)
    device, late = choose_device(options.device), 0
    try:
        tables = chosen(options.variants, options.rows)
        variants = variants_of(load_recipe(options.folder), tables)
        known = {row.variant for row in read_rows(options.output)}
        todo = {name: recipe for name, recipe in variants.items() if name not in known}
        for row in rows_of(todo, options, device) if todo else ():
            if row is None:
                late += 1
                continue
            with options.output.open("a", encoding="utf-8") as output:
                output.write(json.dumps(asdict(row)) + "\n")
            print(table([row], tables).splitlines()[-1], file=sys.stderr)
    except (MissingSamples, SourceError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(table(read_rows(options.output), tables))
    if late:
        print(f"{late} were not begun in time: the same command does them", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
