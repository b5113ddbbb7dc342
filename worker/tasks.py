"""One completion, from stored scan to stored mesh: the only function that knows both sides."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rq import get_current_job
from rq.timeouts import JobTimeoutException

from app.scans import Scan
from app.schemas import MESH_FORMATS, CompletionOptions, Outcome
from app.schemas import CompletionError as Failure
from app.settings import get_settings
from app.storage import Storage
from model.checkpoint import BadCheckpoint, load_checkpoint
from model.completion import Completer, Completion, CompletionError, Progress
from model.mesh import export
from model.observation import View
from worker.progress import Cancelled, DeadlinePassed, Reporter

log = logging.getLogger(__name__)

LONG = ("trace", "code", "placement_covariance", "hypotheses")
"""Arrays of a report that only its file holds."""


def complete_scan(completion_id: str, options: dict[str, Any]) -> dict[str, Any]:
    """Run one completion of the queue and return its `Outcome`.

    Expected endings are returned; what is raised means that the service is broken and shall try again.
    """
    job, settings = get_current_job(), get_settings()
    if job is None:
        raise RuntimeError("complete_scan runs inside a worker; worker.local runs without one")
    storage, reporter = Storage(settings.data_dir), Reporter(job, settings.deadline_s)
    try:
        reporter.tell("read")
        scan, wanted = storage.load_scan(completion_id), CompletionOptions.model_validate(options)
        completion = run(scan, wanted, reporter, _start(storage, wanted))
        report = completion.report.to_dict()
        _store(storage, completion_id, completion, wanted.draco, reporter)
        storage.save_report(completion_id, report)
        outcome = Outcome(status="succeeded", report=brief(report))
    except Cancelled:
        outcome = Outcome(status="cancelled")
    except CompletionError as error:
        outcome = _failed(error.code, error.detail)
    except (DeadlinePassed, JobTimeoutException):
        allowed = f"The completion was stopped after {settings.deadline_s:g} seconds."
        outcome = _failed("deadline_passed", f"{allowed} Try a lower `resolution` or fewer points.")
    except BadCheckpoint as error:
        log.error("%s", error)
        outcome = _failed("unknown_model", f"This worker cannot load the model {options['model']!r}.")
    except FileNotFoundError:
        outcome = _failed("scan_missing", "The stored scan is gone. Send it again.")
    log.info("completion %s %s", completion_id, outcome.status)
    return outcome.model_dump(mode="json")


def _start(storage: Storage, options: CompletionOptions) -> list[float] | None:
    """The code (L,) that the completion `start_from` ended with."""
    if options.start_from is None:
        return None
    try:
        code: list[float] = storage.load_report(options.start_from)["code"]
    except (FileNotFoundError, KeyError):
        detail = f"The report of {options.start_from} is gone. Leave `start_from` out."
        raise CompletionError("start_missing", detail) from None
    return code


def run(
    scan: Scan,
    options: CompletionOptions,
    on_step: Callable[[Progress], None],
    start: Sequence[float] | None = None,
) -> Completion:
    """Complete a scan with the model that the options name, from the code `start` (L,) if there is one."""
    keywords = options.model_dump(exclude={"model", "start_from", "draco"})
    keywords["up"] = up_of(scan, options)
    return completer(options.model).complete(views_of(scan), start=start, on_step=on_step, **keywords)


def views_of(scan: Scan) -> list[View]:
    """The same arrays in the model's words."""
    return [
        View(view.points, view.normals, view.viewpoint, view.background, view.colors) for view in scan.views
    ]


def up_of(scan: Scan, options: CompletionOptions) -> str | list[float]:
    """The axis or the direction (3,) of the scan that points up."""
    if options.up == "auto":
        return scan.up
    direction: list[float] | None = json.loads(options.up) if options.up.startswith("[") else None
    return direction or options.up


def brief(report: dict[str, Any]) -> dict[str, Any]:
    """What of a report goes with the status, which clients ask for again and again."""
    return {name: value for name, value in report.items() if name not in LONG}


def _store(
    storage: Storage, completion_id: str, completion: Completion, draco: bool, reporter: Reporter
) -> None:
    """Keep each mesh in every format, so that the API converts nothing."""
    meshes = [completion.mesh, *completion.alternatives]
    files = [(sample, format) for sample in range(len(meshes)) for format in MESH_FORMATS]
    for step, (sample, format) in enumerate(files):
        # A million faces take seconds in some formats: between them one can still cancel.
        reporter.tell("export", step, len(files), residual=completion.report.residual, share=1.0)
        file = export(meshes[sample], format, up=completion.up, draco=draco)
        storage.save_mesh(completion_id, file, format, sample)


@cache
def completer(name: str) -> Completer:
    """The trained model `name`, loaded once to a process. Raises BadCheckpoint."""
    settings = get_settings()
    return Completer(load_checkpoint(settings.checkpoints_dir / Path(name).name, settings.device))


def _failed(code: str, detail: str) -> Outcome:
    return Outcome(status="failed", error=Failure(code=code, detail=detail))
