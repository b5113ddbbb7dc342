"""`deepsdf complete`: many scans, one mesh each, here or on a running service."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from app.client import Client, ProblemError
from app.schemas import Completion, CompletionOptions
from worker.cli.exits import FAILED, OK
from worker.cli.remote import connect, unreachable

TOLD = ("viewpoint", "intrinsics", "depth_scale", "camera_to_world")
FILES = ("mask", "color_image")
BUSY_PAUSE_S = 2


@dataclass(frozen=True)
class Job:
    """The files of one object, and where its mesh goes."""

    scans: list[Path]
    mesh: Path
    told: dict[str, list[str]]  # beside the scans, as JSON texts
    files: dict[str, list[Path]]

    @property
    def report(self) -> Path:
        """Beside the mesh."""
        return self.mesh.with_suffix(".json")


@dataclass(frozen=True)
class Work:
    """What the command was asked for."""

    jobs: list[Job]
    options: dict[str, Any]  # of CompletionOptions, those that were given
    as_json: bool

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Work:
        """From the parameters of the command, by their names. Raises typer.BadParameter."""
        names = set(CompletionOptions.model_fields) & given.keys()
        options = {name: given[name] for name in sorted(names) if given[name] is not None}
        try:
            CompletionOptions.model_validate(options)
        except ValidationError as error:
            wrong = error.errors()[0]
            why = wrong["msg"].removeprefix("Value error, ")
            raise typer.BadParameter(f"--{_flag(str(wrong['loc'][0]))}: {why}") from None
        return cls(jobs=_jobs(given), options=options, as_json=given["json"])


def _jobs(given: Mapping[str, Any]) -> list[Job]:
    """One for each file, or one for all; scans of the same name in several folders get numbers."""
    scans, output = given["scans"], given["output"]
    groups = [scans] if given["views"] else [[scan] for scan in scans]
    jobs: list[Job] = []
    for index, group in enumerate(groups):
        taken = {job.mesh for job in jobs}
        stems = (f"{group[0].stem}{f'-{number}' if number else ''}" for number in range(len(groups)))
        meshes = (output / f"{stem}.{given['format']}" for stem in stems)
        told = {name: _of_job(name, given[name], index, len(groups)) for name in TOLD if given[name]}
        files = {name: _of_job(name, given[name], index, len(groups)) for name in FILES if given[name]}
        jobs.append(Job(group, next(mesh for mesh in meshes if mesh not in taken), told, files))
    return jobs


def _of_job(name: str, values: list[Any], index: int, count: int) -> list[Any]:
    """What is told once is of all objects, what is told for each is in their order."""
    if count == 1 or len(values) == 1:
        return values
    if len(values) != count:
        times = f"{len(values)} times for {count} files"
        raise typer.BadParameter(f"--{_flag(name)} is given {times}: once, or for each")
    return [values[index]]


def _flag(name: str) -> str:
    return name.replace("_", "-")


def local(work: Work) -> int:
    """Complete them here, one after the other; a bad one does not keep the others from theirs."""
    from worker import local as alone

    told = []
    for job in work.jobs:
        given = [*map(str, job.scans), str(job.mesh), *_flags(work, job), "--report", str(job.report)]
        try:
            alone.complete(given)
        except alone.NoMesh as error:
            told.append(_failed(job, error.code, error.detail))
        else:
            told.append(_told(job, True))
    return _end(work, told)


def _flags(work: Work, job: Job) -> list[str]:
    """The same as flags of `worker.local`, which has none for what is of a queue."""
    from worker.local import OPTIONS

    flags = []
    for name, value in work.options.items():
        if name not in OPTIONS:
            continue
        switch = f"--{'' if value else 'no-'}{_flag(name)}"
        flags += [switch] if isinstance(value, bool) else [f"--{_flag(name)}={value}"]
    beside: dict[str, list[Any]] = {**job.told, **job.files}
    for name, values in beside.items():
        flags += [f"--{_flag(name)}={value}" for value in values]
    return flags


def _told(job: Job, succeeded: bool, **more: Any) -> dict[str, Any]:
    """What a script wants to know of one object."""
    told = {"scans": [str(scan) for scan in job.scans], "succeeded": succeeded, **more}
    if not succeeded:
        return told
    report = json.loads(job.report.read_text())
    brief = {name: report.get(name) for name in ("grade", "verdict", "residual", "faces", "watertight")}
    return {**told, "mesh": str(job.mesh), "report": str(job.report), **brief}


def _end(work: Work, told: list[dict[str, Any]]) -> int:
    if work.as_json:
        print(json.dumps(told, indent=2))
    return OK if all(one["succeeded"] for one in told) else FAILED


def remote(work: Work, url: str, key: str | None) -> int:
    """Submit them, and wait for each: the service works on as many at a time as it can."""
    try:
        with connect(url, key) as client, _bars() as bars:
            told = everything(client, work, bars)
    except httpx2.TransportError as error:
        return unreachable(url, error)
    return _end(work, told)


def everything(client: Client, work: Work, bars: Progress) -> list[dict[str, Any]]:
    """What came of each. Where the service is full, the next one waits until one has ended."""
    told: list[dict[str, Any]] = []
    under_way: deque[tuple[Job, Completion | ProblemError]] = deque()
    for job in work.jobs:
        while _is_busy(submitted := _submit(client, job, work)):
            if under_way:
                told.append(_fetch(client, *under_way.popleft(), bars))
            else:
                time.sleep(BUSY_PAUSE_S)  # full of others' work
        under_way.append((job, submitted))
    return [*told, *(_fetch(client, job, submitted, bars) for job, submitted in under_way)]


def _is_busy(submitted: Completion | ProblemError) -> bool:
    return isinstance(submitted, ProblemError) and submitted.problem.status == 429


def _submit(client: Client, job: Job, work: Work) -> Completion | ProblemError:
    masks, colors = job.files.get("mask"), job.files.get("color_image")
    try:
        return client.submit(job.scans, mask=masks, color_image=colors, form=job.told, **work.options)
    except ProblemError as error:
        return error


def _fetch(client: Client, job: Job, submitted: Completion | ProblemError, bars: Progress) -> dict[str, Any]:
    name = job.scans[0].name
    if isinstance(submitted, ProblemError):
        return _failed(job, submitted.problem.code, submitted.problem.detail)
    task = bars.add_task(name, total=1.0)

    def show(now: Completion) -> None:
        where = f"{now.phase} {now.step}/{now.steps}" if now.phase else now.status
        bars.update(task, completed=now.progress, description=f"{name}  {where}")

    done = client.wait(submitted.id, show, timeout_s=24 * 3600)
    if done.status != "succeeded":
        error = done.error
        return _failed(job, error.code if error else done.status, error.detail if error else "", id=done.id)
    _save(client, job, done)
    return _told(job, True, id=done.id)


def _save(client: Client, job: Job, done: Completion) -> None:
    job.mesh.parent.mkdir(parents=True, exist_ok=True)
    format: Any = job.mesh.suffix[1:]
    for sample in range(done.options.samples + 1):
        path = job.mesh.with_stem(f"{job.mesh.stem}-{sample}") if sample else job.mesh
        path.write_bytes(client.mesh(done.id, format=format, sample=sample))
    job.report.write_text(json.dumps(client.report(done.id), indent=2))
    print(f"{job.mesh}: {done.report['faces'] if done.report else '?'} faces", file=sys.stderr)


def _failed(job: Job, code: str, detail: str, **more: Any) -> dict[str, Any]:
    print(f"{job.scans[0]}: {code}: {detail}", file=sys.stderr)
    return _told(job, False, error={"code": code, "detail": detail}, **more)


def _bars() -> Progress:
    words = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %")
    return Progress(*words, TimeElapsedColumn(), console=Console(stderr=True))
