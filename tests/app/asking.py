"""Ways to ask the API in tests, and to play the worker's part."""

from __future__ import annotations

from fastapi.testclient import TestClient
from rq.job import JobStatus
from rq.results import Result
from rq.utils import now, utcformat
from scan_files import npy, sphere

from app.main import create_app
from app.queue import CompletionQueue, connect
from app.schemas import Outcome, Problem
from app.storage import Storage


def client_of(settings):
    """The API in this process, under the given settings."""
    return TestClient(create_app(settings), "http://localhost", raise_server_exceptions=False)


def submit(api, headers=None, files=None, **options):
    files = files or {"scan": ("a.npy", npy(sphere()))}
    return api.post("/v1/completions", params={"model": "tiny", **options}, files=files, headers=headers)


def problem(answer, status, code):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    parsed = Problem.model_validate(answer.json())
    assert (parsed.status, parsed.code, parsed.instance) == (status, code, answer.request.url.path)
    return parsed


def kept(settings):
    """Ids of the completions of which there is anything on the disk."""
    return set(Storage(settings.data_dir).ages())


def queue_of(settings):
    return CompletionQueue(connect(settings, patience_s=3), settings)


def begin(settings, completion_id, **progress):
    """Do what a worker does when it takes a completion, and when it tells of its progress."""
    queue = queue_of(settings).queue
    job = queue.fetch_job(completion_id)
    queue.remove(job)
    job.meta.update(progress)
    job.save_meta()
    job.set_status(JobStatus.STARTED)


def end(settings, completion_id, report=None, **ending):
    """Do what a worker does when a completion has ended."""
    if report is not None:
        Storage(settings.data_dir).save_report(completion_id, report)
        ending["report"] = {"faces": report["faces"]}
    queue = queue_of(settings).queue
    job = queue.fetch_job(completion_id)
    queue.remove(job)
    outcome = Outcome(**ending).model_dump(mode="json")
    Result.create(job, Result.Type.SUCCESSFUL, ttl=1000, return_value=outcome)
    queue.connection.hset(job.key, "ended_at", utcformat(now()))
    job.set_status(JobStatus.FINISHED)
