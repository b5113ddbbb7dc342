"""`python -m worker.local scan.ply out.glb`: the same completion without queue or server."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from app.schemas import CompletionOptions

if TYPE_CHECKING:
    from app.scans import Scan


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 with the mesh written, 1 with a message why there is none."""
    given, options = _given(arguments)

    from app.scans import ScanRefused
    from model.checkpoint import BadCheckpoint
    from model.completion import CompletionError

    try:
        _complete(_scan(given), options, given.output)
    except (ScanRefused, CompletionError) as error:
        print(f"{error.code}: {error.detail}", file=sys.stderr)
    except (BadCheckpoint, OSError) as error:
        print(error, file=sys.stderr)
    else:
        return 0
    return 1


def _given(arguments: list[str] | None) -> tuple[argparse.Namespace, CompletionOptions]:
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        options = {name: getattr(given, name) for name in CompletionOptions.model_fields}
        return given, CompletionOptions.model_validate(options)
    except ValidationError as error:
        wrong = error.errors()[0]
        parser.error(f"--{wrong['loc'][0]}: {wrong['msg']}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m worker.local", description=__doc__)
    parser.add_argument("scan", type=Path, help="PLY, XYZ, NPY or NPZ points, or a 16-bit depth PNG")
    parser.add_argument("output", type=Path, help="GLB to write")
    for name, field in CompletionOptions.model_fields.items():
        parser.add_argument(f"--{name}", default=field.default, help=f"{field.description} [{field.default}]")
    parser.add_argument("--viewpoint", help="[x, y, z] of the sensor, for points")
    parser.add_argument("--intrinsics", help='{"fx": …, "fy": …, "cx": …, "cy": …} of a depth map, in pixels')
    parser.add_argument("--depth-scale", help="depth units per metre [1000]")
    parser.add_argument("--camera-to-world", help="4x4 pose of a depth map, row by row")
    parser.add_argument("--mask", type=Path, help="8-bit PNG, white on the object")
    return parser


def _scan(given: argparse.Namespace) -> Scan:
    from app.scans import Attachments, read_scan

    mask = given.mask.read_bytes() if given.mask else None
    beside = Attachments(given.viewpoint, given.intrinsics, given.depth_scale, given.camera_to_world, mask)
    return read_scan(given.scan.read_bytes(), given.scan.name, beside)


def _complete(scan: Scan, options: CompletionOptions, output: Path) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from model import completion
    from model.mesh import to_glb
    from worker.tasks import run

    words = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %")
    with Progress(*words, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("read", total=1.0)

        def show(step: completion.Progress) -> None:
            residual = "" if step.residual is None else f"  residual {step.residual:.4f}"
            bar.update(
                task, completed=step.fraction, description=f"{step.phase} {step.step}/{step.steps}{residual}"
            )

        done = run(scan, options, show)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(to_glb(done.mesh))
    print(f"{output}: {done.report.faces} faces, residual {done.report.residual:.4f}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
