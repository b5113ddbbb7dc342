"""Chairs that a program draws: `python -m model.training.drawn CHECKPOINT --count 300`.

Free chairs that people made are few, and a prior knows what it has seen. Seats, legs, backs and arms of the
usual kinds, put together at random with plausible sizes, are designs beside them: coarser than a maker's, but
many. The command appends them to CHECKPOINT/shapes.csv; `model.training.sources` then draws them as it brings
the others. A chair is drawn from its number alone. Unit: metres; y up, front +z, mirror plane x = 0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from model.training.drawn import rows
from model.training.shapes import DRAWN, SourceError, read_shapes, write_shapes


def main(arguments: Iterable[str] | None = None) -> int:
    """Append drawn chairs to a list of shapes; exit status 1 with a message where it cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m model.training.drawn", description=__doc__)
    parser.add_argument("folder", type=Path, help="checkpoint folder with shapes.csv")
    parser.add_argument("--count", type=int, default=300, help="chairs that the list shall have of them")
    options = parser.parse_args(None if arguments is None else list(arguments))
    try:
        others = [shape for shape in read_shapes(options.folder) if shape.package != DRAWN]
    except SourceError as error:
        print(error, file=sys.stderr)
        return 1
    path = write_shapes([*others, *rows(range(options.count))], options.folder)
    print(f"{path}: {options.count} drawn chairs beside {len(others)} others")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
