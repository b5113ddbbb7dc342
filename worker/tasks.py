"""One completion, from stored scan to stored mesh: the only function that knows both sides."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app import tracing
from app.scans import Scan
from app.schemas import MESH_FORMATS, CompletionOptions, InterpolationEnd, InterpolationOptions, Outcome
from app.schemas import CompletionError as Failure
from app.settings import get_settings
from app.storage import Storage
from model.batch import Steps, aside, out_of_memory
from model.checkpoint import BadCheckpoint, Checkpoint
from model.codes import between, decode
from model.completion import Array, Completer, Completion, CompletionError, OnPreview, OnStep
from model.mesh import Mesh, animated_glb, export
from model.observation import View
from model.surface import NoSurface
from worker.models import Models
from worker.picture import picture
from worker.progress import DeadlinePassed, Reporter

log = logging.getLogger(__name__)

LESS = "Try a lower `resolution` or fewer `samples`."
LONG = ("trace", "code", "placement_covariance", "hypotheses")
"""Arrays of a report that only its file holds."""


def complete_scan(completion_id: str, options: dict[str, Any], reporter: Reporter) -> Steps[dict[str, Any]]:
    """Run one completion of the queue, pausing at each step, and return its `Outcome`.

    Expected endings are returned; what is raised means that the service is broken and shall try again, or
    that this worker shall not go on (LeaseLost, Interrupted).
    """
    meta = reporter.meta
    with tracing.continued(meta.get("trace", {}), "complete_scan", completion=completion_id):
        outcome = yield from _outcome(completion_id, options, reporter)
    facts = {"completion_id": completion_id, "request_id": meta.get("request_id", "")}
    log.info("completion %s %s", completion_id, outcome.status, extra=facts)
    return outcome.model_dump(mode="json")


def _outcome(completion_id: str, options: dict[str, Any], reporter: Reporter) -> Steps[Outcome]:
    settings = get_settings()
    storage = Storage(settings.data_dir)

    def preview(mesh: Mesh, up: Array) -> None:
        _preview(storage, completion_id, export(mesh, "glb", up=up), reporter)

    try:
        reporter.tell("read")
        scan, wanted = storage.load_scan(completion_id), CompletionOptions.model_validate(options)
        start, on_preview = _start(storage, wanted), preview if settings.previews else None
        completion = yield from completing(scan, wanted, reporter, start, on_preview)
        report = completion.report.to_dict()
        yield from _storing(storage, completion_id, completion, wanted.draco, reporter)
        storage.save_report(completion_id, report)
        points = np.concatenate([view.points for view in scan.views])
        image = yield from aside(picture, completion.mesh, points, completion.up)
        storage.save_picture(completion_id, image)
        return Outcome(status="succeeded", report=brief(report))
    except CompletionError as error:
        return _failed(error.code, error.detail)
    except DeadlinePassed:
        allowed = f"The completion was stopped after {settings.deadline_s:g} seconds."
        return _failed("deadline_passed", f"{allowed} Try a lower `resolution` or fewer points.")
    except BadCheckpoint as error:
        log.error("%s", error)
        return _failed("unknown_model", f"This worker cannot load the model {options['model']!r}.")
    except FileNotFoundError:
        return _failed("scan_missing", "The stored scan is gone. Send it again.")
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        log.error("completion %s needs more memory than there is: %s", completion_id, error)
        return _failed("out_of_memory", "The completion needs more memory than the worker has. " + LESS)


def interpolate(interpolation_id: str, options: dict[str, Any], reporter: Reporter) -> Steps[dict[str, Any]]:
    """Decode the codes between two ends, one a step; ends as `complete_scan` does."""
    try:
        yield from _interpolating(interpolation_id, InterpolationOptions.model_validate(options), reporter)
        outcome = Outcome(status="succeeded")
    except CompletionError as error:
        outcome = _failed(error.code, error.detail)
    except NoSurface:
        outcome = _failed("no_surface", "A shape between the two is empty. Take ends that are more alike.")
    except DeadlinePassed:
        outcome = _failed("deadline_passed", "It took too long. Try a lower `resolution` or `count`.")
    except BadCheckpoint as error:
        log.error("%s", error)
        outcome = _failed("unknown_model", f"This worker cannot load the model {options['model']!r}.")
    log.info("interpolation %s %s", interpolation_id, outcome.status)
    return outcome.model_dump(mode="json")


def _interpolating(interpolation_id: str, options: InterpolationOptions, reporter: Reporter) -> Steps[None]:
    """Keep each mesh in every format, numbered from 1, and all of them as one animated GLB."""
    storage, checkpoint = Storage(get_settings().data_dir), completer(options.model).checkpoint
    first, last = (_end_code(storage, checkpoint, end) for end in (options.start, options.end))
    meshes: list[Mesh] = []
    for number, code in enumerate(between(first, last, options.count), start=1):
        reporter.tell("mesh", number, options.count, share=(number - 1) / options.count)
        meshes.append(decode(checkpoint, code, options.resolution))
        for format in MESH_FORMATS:
            storage.save_mesh(interpolation_id, export(meshes[-1], format), format, number)
        yield None
    storage.save_mesh(interpolation_id, animated_glb(meshes), "glb")


def _end_code(storage: Storage, checkpoint: Checkpoint, end: InterpolationEnd) -> Tensor:
    """The code (L,) of one end."""
    if end.completion is not None:
        code = torch.tensor(_code_of(storage, end.completion))
        if code.shape != checkpoint.codes.shape[1:]:
            told = f"The code of {end.completion} is of an earlier training of this model. Complete it anew."
            raise CompletionError("invalid_option", told)
        return code.to(checkpoint.codes)
    if end.shape not in checkpoint.shapes:
        some = ", ".join(checkpoint.shapes[row] for row in checkpoint.own_shapes[:10])
        raise CompletionError("unknown_shape", f"There is no training shape {end.shape!r}. Some are: {some}.")
    return checkpoint.codes[checkpoint.shapes.index(end.shape)]


def _start(storage: Storage, options: CompletionOptions) -> list[float] | None:
    """The code (L,) that the completion `start_from` ended with."""
    return None if options.start_from is None else _code_of(storage, options.start_from)


def _code_of(storage: Storage, completion_id: str) -> list[float]:
    """The code (L,) in the report of a completion."""
    try:
        code: list[float] = storage.load_report(completion_id)["code"]
    except (FileNotFoundError, KeyError):
        detail = f"The report of {completion_id} is gone. Start from another completion, or from none."
        raise CompletionError("start_missing", detail) from None
    return code


def completing(
    scan: Scan,
    options: CompletionOptions,
    on_step: OnStep,
    start: Sequence[float] | None = None,
    on_preview: OnPreview | None = None,
) -> Steps[Completion]:
    """Complete a scan with the model that the options name, from the code `start` (L,) if there is one."""
    keywords = options.model_dump(exclude={"model", "start_from", "draco", "priority"})
    keywords["up"] = up_of(scan, options)
    method = completer(options.model)
    return method.completing(views_of(scan), start=start, on_step=on_step, on_preview=on_preview, **keywords)


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


def _preview(storage: Storage, completion_id: str, mesh: bytes, reporter: Reporter) -> None:
    """A completion does not fail because there is no room for its previews."""
    try:
        storage.save_preview(completion_id, mesh)
    except OSError as error:
        log.warning("no preview of completion %s: %s", completion_id, error)
    else:
        reporter.preview()


def _storing(
    storage: Storage, completion_id: str, completion: Completion, draco: bool, reporter: Reporter
) -> Steps[None]:
    """Keep each mesh in every format, so that the API converts nothing."""
    meshes = [completion.mesh, *completion.alternatives]
    files = [(sample, format) for sample in range(len(meshes)) for format in MESH_FORMATS]
    for step, (sample, format) in enumerate(files):
        # A million faces take seconds in some formats: between them one can still cancel.
        reporter.tell("export", step, len(files), residual=completion.report.residual, share=1.0)
        file = yield from aside(export, meshes[sample], format, up=completion.up, draco=draco)
        storage.save_mesh(completion_id, file, format, sample)


@cache
def models() -> Models:
    """The trained models of this process."""
    settings = get_settings()
    return Models(settings.checkpoints_dir, settings.device, settings.model_memory_bytes)


def completer(name: str) -> Completer:
    """The trained model `name`. Raises BadCheckpoint."""
    return models().get(name)


def _failed(code: str, detail: str) -> Outcome:
    return Outcome(status="failed", error=Failure(code=code, detail=detail))
