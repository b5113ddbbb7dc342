"""The report of a checkpoint: what it can do, in tables and pictures, good and bad."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model.checkpoint import read_card
from model.training.pictures import contact_sheet

Figures = dict[str, dict[str, dict[str, float]]]
Record = dict[str, Any]

SECTIONS = {
    "known": "Known shapes: decoded from their own training codes",
    "unseen": "Unseen shapes, from signed-distance samples of the whole shape, frame known",
    "completion": "Unseen shapes, completed from one depth view, place and size unknown",
}
PAPER = (
    "For comparison: DeepSDF's chairs, trained on thousands of shapes, reach a median of 0.072 (unseen, "
    "whole shape) and 1.28 (completion from one depth view, canonical frame given) in the same unit."
)


def write_report(
    folder: Path, records: list[Record], figures: Figures, pictures: dict[str, tuple[str, Path]]
) -> None:
    """Write report.md; `pictures` are title → (caption, file inside the folder)."""
    card = read_card(folder)
    out = io.StringIO()
    out.write(f"# {card['name']}: report\n\n{card['description']}. Licences of the training shapes: ")
    out.write(f"{', '.join(card['licences'])} (see ATTRIBUTION.md).\n\n")
    out.write(f"Written by `python -m model.training.evaluate checkpoints/{folder.name}`. ")
    out.write("Chamfer distance: mean squared distance both ways, summed, 30,000 points, unit-ball frame, ")
    out.write("×10³, against the original mesh (not the skinned one). Accuracy: distance within which 90 % ")
    out.write("of the generated points lie of the true surface. Completeness: share of the true surface ")
    out.write(f"within 0.01 of the generated one.\n\n{PAPER}\n")
    for section, title in SECTIONS.items():
        if section in figures:
            out.write(f"\n## {title}\n\n{_figures_table(figures[section])}")
    out.write("\n## Shape by shape\n\nMedian Chamfer distance ×10³ of ours over the views.\n\n")
    out.write(_shapes_table(records))
    for title, (caption, file) in pictures.items():
        out.write(f"\n## {title}\n\n{caption}\n\n![{title}]({file.relative_to(folder)})\n")
    (folder / "report.md").write_text(out.getvalue())
    _write_records(folder / "evaluation.csv", records)


def _figures_table(methods: dict[str, dict[str, float]]) -> str:
    head = "| method | CD median | CD mean | accuracy | completeness | cosine | failed | n |\n"
    lines = [head, "|---|---|---|---|---|---|---|---|\n"]
    for method, row in sorted(methods.items(), key=lambda item: item[0] != "ours"):
        cells = [f"{row[key]:.2f}" for key in ("chamfer_median", "chamfer_mean")]
        cells += [f"{row[key]:.3f}" for key in ("accuracy", "completeness", "cosine")]
        lines.append(f"| {method} | {' | '.join(cells)} | {row['failed']:.0f} | {row['count']:.0f} |\n")
    return "".join(lines)


def _shapes_table(records: list[Record]) -> str:
    ours = [record for record in records if record["method"] == "ours"]
    lines = ["| shape | known | unseen, whole | completed |\n|---|---|---|---|\n"]
    for shape in sorted({record["shape"] for record in ours}):
        cells = []
        for section in SECTIONS:
            values = [r["chamfer"] for r in ours if r["shape"] == shape and r["section"] == section]
            cells.append(f"{np.median(values):.2f}" if values else "")
        lines.append(f"| {shape} | {' | '.join(cells)} |\n")
    return "".join(lines)


def _write_records(file: Path, records: list[Record]) -> None:
    with file.open("w", newline="") as out:
        names = dict.fromkeys(name for record in records for name in record)
        writer = csv.DictWriter(out, fieldnames=list(names), lineterminator="\n")
        writer.writeheader()
        for record in records:
            writer.writerow({k: round(v, 5) if isinstance(v, float) else v for k, v in record.items()})


Row = list[tuple[str, Any]]


def save_sheet(rows: list[Row], file: Path, size: int = 220) -> None:
    """A contact sheet as a PNG of 256 colours, small enough to be committed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(rows, file, size=size)
    with Image.open(file) as picture:
        picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(file, optimize=True)


def in_rows(cells: Row, width: int) -> list[Row]:
    """The cells broken into rows of `width`."""
    return [cells[start : start + width] for start in range(0, len(cells), width)]
