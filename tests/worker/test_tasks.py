"""One completion in this process: a real queue, a real model, every way to end."""

from __future__ import annotations

import inspect
import signal
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import trimesh

from app.queue import CompletionQueue, connect
from app.scans import Scan
from app.schemas import Completion, CompletionOptions
from app.settings import Settings, get_settings
from app.storage import Storage
from model.completion import Completer
from worker import tasks
from worker.listener import Listener

Work = Callable[..., Completion]


def sphere(count: int = 800) -> Scan:
    """The front half of a sphere of radius 0.5 about (1, 0, 0)."""
    directions = np.random.default_rng(0).normal(size=(count, 3))
    directions[:, 2] = np.abs(directions[:, 2])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return Scan(0.5 * directions + [1, 0, 0], viewpoint=np.array([1.0, 0, 3]))


@pytest.fixture
def work(settings: Settings, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    """Submit a completion, let a worker do it, and see how it ended."""
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DEEPSDF_CHECKPOINTS_DIR", str(tiny_checkpoint.parent))
    monkeypatch.setenv("DEEPSDF_DEVICE", "cpu")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def one(scan: Scan | None = None, *, deadline_s: float = 60, **options: str | int) -> Completion:
        monkeypatch.setenv("DEEPSDF_DEADLINE_S", str(deadline_s))
        get_settings.cache_clear()
        queue = CompletionQueue(connect(settings, 1), settings)
        completion_id = f"{len(queue.queue.finished_job_registry):032x}"
        if scan is not None:
            Storage(settings.data_dir).save_scan(completion_id, scan, b"")
        queue.submit(completion_id, CompletionOptions.model_validate({"model": "tiny", **options}), [])
        Listener(connect(settings, 1), settings).work(burst=True, logging_level="WARNING")
        completion = queue.get(completion_id)
        assert completion is not None
        return completion

    yield one
    get_settings.cache_clear()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_the_options_are_the_keywords_of_the_completer():
    keywords = inspect.signature(Completer.complete).parameters.values()
    known = {p.name: p.default for p in keywords if p.kind is p.KEYWORD_ONLY and p.name != "on_step"}
    fields = CompletionOptions.model_fields
    assert known.keys() == fields.keys() - {"model"}
    assert {name: fields[name].default for name in known if name != "up"} == {
        name: default for name, default in known.items() if name != "up"
    }


def test_a_scan_becomes_a_closed_mesh_where_the_scan_is(work, settings):
    completion = work(sphere(), resolution=48)
    assert completion.status == "succeeded"
    assert (completion.progress, completion.attempt, completion.error) == (1.0, 1, None)
    assert completion.report["solver"] == "lm"
    glb = Storage(settings.data_dir).mesh_path(completion.id).read_bytes()
    mesh = trimesh.load(BytesIO(glb), file_type="glb", force="mesh")
    assert mesh.is_watertight
    assert np.linalg.norm(mesh.bounds.mean(axis=0) - [1, 0, 0]) < 0.5


def test_the_same_seed_gives_the_same_mesh(work, settings):
    storage = Storage(settings.data_dir)
    meshes = [storage.mesh_path(work(sphere(), resolution=32, seed=5).id).read_bytes() for _ in range(2)]
    assert meshes[0] == meshes[1]


def test_up_is_taken_from_the_scan_unless_it_is_given(monkeypatch):
    seen = []

    class Recorder:
        def complete(self, *arrays, up, **more):
            seen.append(up)

    monkeypatch.setattr(tasks, "completer", lambda name: Recorder())
    scan = Scan(np.zeros((64, 3)), up="-y")
    for options in (CompletionOptions(), CompletionOptions(up="+z")):
        tasks.run(scan, options, lambda progress: None)
    assert seen == ["-y", "+z"]


def test_a_deadline_ends_a_completion(work):
    completion = work(sphere(), deadline_s=0.01)
    assert (completion.status, completion.error.code) == ("failed", "deadline_passed")
    assert completion.attempt == 1


def test_a_model_that_is_gone_is_told(work):
    assert work(sphere(), model="gone").error.code == "unknown_model"


def test_a_scan_that_is_gone_is_told(work):
    assert work(None).error.code == "scan_missing"


def test_a_scan_that_no_shape_fits_fails_with_the_models_words(work):
    line = Scan(np.linspace(0, 1, 100)[:, None] * [1.0, 0, 0])
    completion = work(line)
    assert completion.status in ("failed", "succeeded")
    if completion.status == "failed":
        assert completion.error.code in ("unusable_scan", "no_surface")


def test_a_broken_worker_tries_again_and_then_says_so(work, monkeypatch, settings):
    def broken(name):
        raise MemoryError("a defect")

    monkeypatch.setattr(tasks, "completer", broken)
    completion = work(sphere())
    assert (completion.status, completion.error.code) == ("failed", "internal")
    assert completion.attempt == settings.retries + 1
    assert "defect" not in completion.error.detail
