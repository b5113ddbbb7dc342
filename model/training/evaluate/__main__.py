"""Measure a checkpoint: `python -m model.training.evaluate checkpoints/chairs`.

How well are known shapes represented, unseen ones from full samples, and unseen ones completed from one
view of a depth camera, from three, from a noisy one, with the scan's place and size unknown; and what lies
between known shapes. Measured is the `Completer` that is served; beside it, on the same inputs, the nearest
training code, the mean code, and the published Adam recipe. Every measurement is written down as it comes:
given again, the command goes on. With --against, another checkpoint on the same shapes, unseen by both.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

from model.checkpoint import BadCheckpoint, load_checkpoint, own_rows, read_card, write_card
from model.training.evaluate.against import differences, print_differences, unseen_by_both
from model.training.evaluate.ledger import Ledger, fingerprint, measured
from model.training.evaluate.measuring import Extent, Measured, Setup
from model.training.evaluate.report import card_figures, write_report
from model.training.evaluate.sheets import draw, reliability, sheets
from model.training.evaluate.summary import print_tables, summary
from model.training.evaluate.tasks import OF_UNSEEN_SHAPES, SECTIONS, Selection, Task, tasks
from model.training.recipe import NoRecipe
from model.training.samples import sample_path
from model.training.shapes import DRAWN, Shape, SourceError, read_shapes


def evaluate(options: argparse.Namespace) -> int:
    """Measure one checkpoint, print, and write the figures into card.json and report.md."""
    setup = setup_of(options, options.folder)
    todo = tasks_of(options, setup)
    found = measured(todo, setup, ledger_of(options, setup), options.jobs)
    figures = summary(found)
    print_tables(figures)
    if options.json:
        options.json.write_text(json.dumps([one.record() for one in found], indent=1))
    if options.split == "test" and options.selection.whole and setup.extent == "all":
        publish(setup, todo, found, options.jobs)
    ours = figures.get("completion", {}).get("ours")
    if ours:
        print(f"evaluate: {ours['chamfer_median']:.3f} median Chamfer distance x10^3")
    return 0


def publish(setup: Setup, todo: Sequence[Task], found: list[Measured], jobs: int) -> None:
    """Write what was measured into the checkpoint's folder."""
    figures = summary(found)
    pictures = draw(setup.folder, sheets(todo, found), found, setup, jobs)
    if uncertainty := reliability(found, setup.folder / "report" / "reliability.png"):
        pictures.append(uncertainty)
    write_report(setup.folder, found, figures, pictures)
    write_card(setup.folder, {**read_card(setup.folder), **card_figures(found, figures)})


def compare(options: argparse.Namespace) -> int:
    """Measure two checkpoints on the shapes that neither has seen, and print the differences."""
    setups = [
        replace(setup_of(options, folder), extent="ours") for folder in (options.folder, options.against)
    ]
    trained = [load_checkpoint(setup.folder, "cpu").shapes for setup in setups]
    lists = [read_shapes(setup.folder) for setup in setups]
    shapes = [shape for shape in lists[0] if shape.split == options.split]
    unseen = unseen_by_both(shapes, trained, lists)
    if not unseen:
        raise SystemExit(f"there is no {options.split} shape of {options.folder} that both have not seen")
    require_shapes(unseen, options)
    sampled = set.intersection(*(sampled_of(setup, unseen) for setup in setups))
    sections = [section for section in options.selection.sections if section in OF_UNSEEN_SHAPES]
    todo = tasks([], unseen, sampled, replace(options.selection, sections=sections))
    found = [measured(todo, setup, ledger_of(options, setup), options.jobs) for setup in setups]
    rows = differences(*found)
    print_differences(rows, options.folder.name, options.against.name)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print(f"evaluate: {len(unseen)} {options.split} shapes unseen by both")
    return 0


def setup_of(options: argparse.Namespace, folder: Path) -> Setup:
    """Of one of the checkpoints."""
    return Setup(folder, options.data, options.device, "no adam" if options.quick else options.methods)


def ledger_of(options: argparse.Namespace, setup: Setup) -> Ledger:
    """Where the measurements of a checkpoint are kept."""
    folder = options.partial or setup.folder / "training"
    file = None if options.quick else folder / f"evaluation-{setup.folder.name}.jsonl"
    return Ledger(file, fingerprint(setup.folder), options.fresh)


def tasks_of(options: argparse.Namespace, setup: Setup) -> list[Task]:
    """What there is to measure of one checkpoint. Ends the program where shapes or samples are missing."""
    names = load_checkpoint(setup.folder, "cpu").shapes
    trained = {names[row] for row in own_rows(names)}
    listed = read_shapes(setup.folder)
    known = [shape for shape in listed if shape.id in trained and shape.package != DRAWN]
    unseen = [shape for shape in listed if shape.split == options.split and shape.id not in trained]
    # The shape nearest to one in between may be any that was trained on.
    require_shapes([shape for shape in listed if shape.id in trained] + unseen, options)
    sampled = sampled_of(setup, unseen)
    if "unseen" in options.selection.sections and not sampled:
        raise SystemExit(
            f"the {options.split} shapes have no samples: run `python -m model.training.samples "
            f"{setup.folder} --split {options.split}`"
        )
    return tasks(known, unseen, sampled, options.selection)


def require_shapes(shapes: Sequence[Shape], options: argparse.Namespace) -> None:
    """End the program where a shape's mesh is missing."""
    missing = [shape for shape in shapes if not shape.path(options.data).exists()]
    if missing:
        raise SystemExit(
            f"{len(missing)} of {len(shapes)} shapes are not under {options.data}/shapes ({missing[0].id}): "
            f"run `python -m model.training.sources {options.folder}`"
        )


def sampled_of(setup: Setup, shapes: Sequence[Shape]) -> set[str]:
    """Ids of the shapes that have signed-distance samples."""
    folder = setup.data / "samples" / setup.folder.name
    return {shape.id for shape in shapes if sample_path(folder, shape).exists()}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, and `selection` made of them."""
    parser = argparse.ArgumentParser(prog="python -m model.training.evaluate", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="compare with this checkpoint")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--split", choices=["val", "test"], default="test", help="tune on val, publish test")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--views", type=int, default=6, help="views of each unseen shape")
    parser.add_argument("--limit", type=int, help="at most so many shapes of a section, at even intervals")
    parser.add_argument(
        "--methods",
        choices=get_args(Extent),
        default="all",
        help="what is measured; but for all nothing is published",
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="one shape a section, no Adam, nothing written")
    parser.add_argument("--json", type=Path, help="write every single measurement here")
    parser.add_argument("--partial", type=Path, metavar="FOLDER", help="where measurements are kept to go on")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    options = parser.parse_args(arguments)
    limit, views = (1, 1) if options.quick else (options.limit, options.views)
    options.selection = Selection(options.sections, views, limit)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one checkpoint, or two side by side."""
    options = parse(arguments)
    for library in ("OMP", "OPENBLAS", "IGL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")  # processes share the cores, not threads
    try:
        return compare(options) if options.against else evaluate(options)
    except (BadCheckpoint, NoRecipe, SourceError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    raise SystemExit(main())
