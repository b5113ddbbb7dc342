"""One completion, from stored scan to stored mesh: the only function that knows both sides."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from rq import get_current_job
from rq.timeouts import JobTimeoutException

from app.scans import Scan
from app.schemas import CompletionError as Failure
from app.schemas import CompletionOptions, Outcome
from app.settings import get_settings
from app.storage import Storage
from model.checkpoint import BadCheckpoint, load_checkpoint
from model.completion import Completer, Completion, CompletionError, Progress
from model.mesh import to_glb
from model.observation import View
from worker.progress import Cancelled, DeadlinePassed, Reporter

log = logging.getLogger(__name__)


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
        scan = storage.load_scan(completion_id)
        completion = run(scan, CompletionOptions.model_validate(options), reporter)
        storage.save_mesh(completion_id, to_glb(completion.mesh))
        outcome = Outcome(status="succeeded", report=completion.report.to_dict())
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


def run(scan: Scan, options: CompletionOptions, on_step: Callable[[Progress], None]) -> Completion:
    """Complete a scan with the model that the options name."""
    keywords = options.model_dump(exclude={"model"})
    if options.up == "auto":
        keywords["up"] = scan.up
    view = View(scan.points, scan.normals, scan.viewpoint, scan.background, scan.colors)
    return completer(options.model).complete(view, on_step=on_step, **keywords)


@cache
def completer(name: str) -> Completer:
    """The trained model `name`, loaded once to a process. Raises BadCheckpoint."""
    settings = get_settings()
    return Completer(load_checkpoint(settings.checkpoints_dir / Path(name).name, settings.device))


def _failed(code: str, detail: str) -> Outcome:
    return Outcome(status="failed", error=Failure(code=code, detail=detail))
