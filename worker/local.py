"""`python -m worker.local scan.ply out.glb`: the same completion without queue or server."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from app.schemas import MESH_FORMATS, CompletionOptions

if TYPE_CHECKING:
    from app.scans import Scan
    from model.completion import Completion

OF_THE_QUEUE = ("start_from", "priority")
OPTIONS = {name: field for name, field in CompletionOptions.model_fields.items() if name not in OF_THE_QUEUE}
"""There are neither ids nor others here: `--start` takes the place of `start_from`."""


class BadReport(Exception):
    """The file given by `--start` is none."""


class NoMesh(Exception):
    """There is no mesh: a word for programs, as the API has it, and why."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 with the mesh written, 1 with a message why there is none."""
    try:
        complete(arguments)
    except NoMesh as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def complete(arguments: list[str] | None = None) -> None:
    """Write the mesh that the arguments ask for. Raises NoMesh, and SystemExit for a mistake in them."""
    given, options = _given(arguments)

    from app.scans import ScanRefused
    from model.checkpoint import BadCheckpoint
    from model.completion import CompletionError

    try:
        _complete(given, options)
    except (ScanRefused, CompletionError) as error:
        raise NoMesh(error.code, error.detail) from None
    except BadCheckpoint as error:
        raise NoMesh("unknown_model", str(error)) from None
    except BadReport as error:
        raise NoMesh("start_missing", str(error)) from None
    except OSError as error:
        raise NoMesh("file_error", str(error)) from None


def _given(arguments: list[str] | None) -> tuple[argparse.Namespace, CompletionOptions]:
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.output.suffix[1:] not in MESH_FORMATS:
        parser.error(f"the output must end with one of {', '.join(MESH_FORMATS)}, not {given.output.name!r}")
    try:
        return given, CompletionOptions.model_validate({name: getattr(given, name) for name in OPTIONS})
    except ValidationError as error:
        wrong = error.errors()[0]
        parser.error(f"--{_flag(str(wrong['loc'][0]))}: {wrong['msg']}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m worker.local", description=__doc__)
    parser.add_argument("scan", type=Path, nargs="+", help="point clouds and depth maps of one object")
    parser.add_argument("output", type=Path, help=f"mesh to write: {', '.join(MESH_FORMATS)} by its suffix")
    for name, field in OPTIONS.items():
        described = f"{field.description} [{field.default}]"
        if isinstance(field.default, bool):
            switch = argparse.BooleanOptionalAction
            parser.add_argument(f"--{_flag(name)}", default=field.default, action=switch, help=described)
        else:
            parser.add_argument(f"--{_flag(name)}", default=field.default, help=described)
    each = parser.add_argument_group("once for all files, or once for each in their order")
    each.add_argument("--viewpoint", action="append", help="[x, y, z] of the sensor, of a point cloud")
    each.add_argument("--intrinsics", action="append", help="camera of a depth map, as JSON")
    each.add_argument("--depth-scale", action="append", help="values per metre of a depth map")
    each.add_argument("--camera-to-world", action="append", help="4x4 pose of a depth map, row by row")
    each.add_argument("--mask", type=Path, action="append", help="8-bit PNG, white on the object")
    each.add_argument("--color-image", type=Path, action="append", help="RGB PNG or JPEG, of a depth map")
    parser.add_argument("--report", type=Path, help="write the whole report, as JSON")
    parser.add_argument(
        "--start", type=Path, help="report of an earlier completion, whose code to start from"
    )
    return parser


def _flag(option: str) -> str:
    return option.replace("_", "-")


def _scan(given: argparse.Namespace) -> Scan:
    from app.scans import Attachments, Upload, read_scan

    def contents(paths: list[Path] | None) -> list[bytes]:
        return [path.read_bytes() for path in paths or []]

    beside = Attachments(
        given.viewpoint or [],
        given.intrinsics or [],
        given.depth_scale or [],
        given.camera_to_world or [],
        contents(given.mask),
        contents(given.color_image),
    )
    return read_scan([Upload(path.read_bytes(), path.name) for path in given.scan], beside)


def _complete(given: argparse.Namespace, options: CompletionOptions) -> None:
    scan = _scan(given)
    for words in scan.warnings:
        print(words, file=sys.stderr)
    done = _run(scan, options, code_of(given.start) if given.start else None)
    _write(done, given, options.draco)


def code_of(report: Path) -> list[float]:
    """The latent code in a report. Raises BadReport."""
    try:
        return [float(x) for x in json.loads(report.read_text())["code"]]
    except (ValueError, KeyError, TypeError):
        raise BadReport(f"{report} is no report with a `code`; `--report` writes one") from None


def _run(scan: Scan, options: CompletionOptions, start: list[float] | None) -> Completion:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from model import completion
    from model.batch import alone
    from worker.tasks import completing

    words = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %")
    with Progress(*words, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("read", total=1.0)

        def show(step: completion.Progress) -> None:
            residual = "" if step.residual is None else f"  residual {step.residual:.4f}"
            bar.update(
                task, completed=step.fraction, description=f"{step.phase} {step.step}/{step.steps}{residual}"
            )

        return alone(completing(scan, options, show, start))


def _write(done: Completion, given: argparse.Namespace, draco: bool) -> None:
    """The mesh, its alternatives as `name-1.glb`, `name-2.glb`, …, and the report."""
    from pydantic_core import to_json

    from model.mesh import export

    output = given.output
    output.parent.mkdir(parents=True, exist_ok=True)
    for sample, mesh in enumerate([done.mesh, *done.alternatives]):
        path = output.with_stem(f"{output.stem}-{sample}") if sample else output
        path.write_bytes(export(mesh, output.suffix[1:], up=done.up, draco=draco))
    if given.report:
        given.report.parent.mkdir(parents=True, exist_ok=True)
        given.report.write_bytes(to_json(done.report.to_dict(), indent=2, inf_nan_mode="null"))
    print(f"{output}: {done.report.faces} faces, residual {done.report.residual:.4f}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
