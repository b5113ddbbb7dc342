"""The report of a checkpoint: what it can do, in tables and pictures, good and bad."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.checkpoint import read_card
from model.training.evaluate.measuring import Measured
from model.training.evaluate.methods import OURS
from model.training.evaluate.sheets import Picture
from model.training.evaluate.summary import COMPARED, Figures, by_category, cells, rows_of, summary
from model.training.evaluate.tasks import KNOWN_MOST, PAIRS

SECTIONS = {
    "known": "Known shapes: decoded from their own training codes",
    "unseen": "Unseen shapes, from signed-distance samples of the whole shape, frame known",
    "completion": "Unseen shapes, completed from one depth view, place and size unknown",
    "several": "Unseen shapes, completed from three depth views, place and size unknown",
    "noise": "Unseen shapes, completed from one noisy depth view, place and size unknown",
    "interpolation": "Between known shapes",
}
NOTES = {
    "known": f"Of more than {KNOWN_MOST} training shapes, {KNOWN_MOST} are drawn.",
    "noise": "Gaussian noise of standard deviation α on the inverse depth, in the unit-ball frame: α = 0.01 "
    "moves points by about 0.06, a thirtieth of the shape.",
    "interpolation": f"At most {PAIRS} pairs of training shapes of one category; the codes a quarter, half "
    "and three quarters of the way are decoded. Closed: share of watertight meshes. One part: share in one "
    "connected part, crumbs under 1 % of the largest one's area aside; below that of the ends, shapes "
    "fall apart on the way. The Chamfer distance to the nearest original of any training shape tells "
    "new shapes from copies: copies are as near as the ends. Longest step: of the four steps of a way, "
    "in root Chamfer distance; 0.25 is even, and near 1 a shape jumps into the other.",
}
METRICS = (
    "CD, Chamfer distance: mean squared distance both ways, summed, 30,000 points, ×10³. EMD, earth "
    "mover's distance: mean distance of the best assignment of 512 points to 512; two draws of one "
    "surface are 0.06 to 0.09 apart. Accuracy: distance within which 90 % of the generated points lie of "
    "the true surface. Completeness: share of the true surface within 0.01 of the generated one. Cosine: "
    "of true normals and those of the nearest generated points. F: harmonic mean of the shares of either "
    "surface that are within 0.01 or 0.02 of the other. IoU: intersection over union of the volumes, on "
    "30,000 points in the box of both. Inside the original is what the training samples call so, without "
    "the skin (docs/training.md): what a flood from outside does not reach, or fewer than 2 of 100 "
    "cameras see. Where the flood came in and no more than 4 cameras see, a leaky mesh does not say, and "
    "points are left out; so are shapes of thin sheets alone. All in the unit-ball frame, against the "
    "original mesh, not the skinned one. A method that made no mesh is the worst in medians, 0 in shares "
    "and IoU, and left out of other means."
)
PAPER = (
    "For comparison: DeepSDF's chairs, trained on thousands of shapes, reach a median CD of 0.072 (unseen, "
    "whole shape) and 1.28 (completion from one depth view, canonical frame given)."
)


def write_report(
    folder: Path, measured: Sequence[Measured], figures: Figures, pictures: Sequence[Picture]
) -> None:
    """Write report.md and evaluation.csv of a checkpoint's folder."""
    card = read_card(folder)
    out = io.StringIO()
    out.write(f"# {card['name']}: report\n\n{card['description']}. Licences of the training shapes: ")
    out.write(f"{', '.join(card['licences'])} (see ATTRIBUTION.md).\n\n")
    out.write(f"Written by `python -m model.training.evaluate checkpoints/{folder.name}`. {METRICS}\n\n")
    out.write(f"{PAPER}\n")
    for section, methods in figures.items():
        out.write(f"\n## {SECTIONS[section]}\n\n")
        out.write(f"{NOTES[section]}\n\n" if section in NOTES else "")
        out.write(markdown_table(rows_of(section, methods)))
    if categories := by_category(measured):
        out.write(f"\n## By category\n\nOurs.\n\n{_categories_table(categories)}")
    out.write("\n## Shape by shape\n\nMedian CD of ours over the views.\n\n")
    out.write(_shapes_table(measured))
    for picture in pictures:
        where = picture.file.relative_to(folder)
        out.write(f"\n## {picture.title}\n\n{picture.caption}\n\n![{picture.title}]({where})\n")
    (folder / "report.md").write_text(out.getvalue(), encoding="utf-8")
    write_records(folder / "evaluation.csv", [one.record() for one in measured])


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first of them the head, as Markdown."""
    lines = [f"| {' | '.join(row)} |\n" for row in rows]
    return "".join([lines[0], "|" + "---|" * len(rows[0]) + "\n", *lines[1:]])


def write_records(file: Path, records: Sequence[dict[str, Any]]) -> None:
    """Every measurement as a row of a CSV."""
    names = dict.fromkeys(name for record in records for name in record)
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, fieldnames=list(names), lineterminator="\n")
        writer.writeheader()
        for record in records:
            writer.writerow({k: round(v, 5) if isinstance(v, float) else v for k, v in record.items()})


def _categories_table(categories: dict[str, Figures]) -> str:
    head = ["category", "section", *(column.title for column in COMPARED), "failed", "n"]
    rows = [
        [category, section, *cells(section, methods[OURS])]
        for category, figures in categories.items()
        for section, methods in figures.items()
    ]
    return markdown_table([head, *rows])


def _shapes_table(measured: Sequence[Measured]) -> str:
    sections = {"known": "known", "unseen": "whole", "completion": "one view", "several": "three views"}
    ours = [one for one in measured if one.method == OURS and one.section in sections]
    rows = []
    for shape in sorted({one.shape for one in ours}):
        of_shape = summary(one for one in ours if one.shape == shape)
        medians = [of_shape.get(section, {}).get(OURS, {}).get("chamfer_median") for section in sections]
        rows.append([shape, *("" if value is None else f"{value:.2f}" for value in medians)])
    return markdown_table([["shape", *sections.values()], *rows])


def card_figures(measured: Sequence[Measured], figures: Figures) -> dict[str, Any]:
    """What card.json says of the evaluation; what is no number there is null."""
    categories = by_category(measured)
    found: dict[str, Any] = {"evaluation": figures}
    if categories:
        found["evaluation_by_category"] = categories
    return dict(_plain(found))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value
