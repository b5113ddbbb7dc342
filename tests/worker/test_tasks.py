"""One completion in this process: a real queue, a real model, every way to end."""

from __future__ import annotations

import dataclasses
import errno
import inspect
import re
import signal
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from processes import ROOT

from app.queue import CompletionQueue, connect
from app.scans import Scan, ScanView
from app.schemas import MESH_FORMATS, Completion, CompletionOptions
from app.settings import Settings, get_settings
from app.storage import Storage
from model.batch import Steps
from model.completion import Completer
from model.fitting import Effort
from model.mesh import FORMATS, Mesh
from model.observation import View
from model.report import CompletionReport
from worker import tasks
from worker.listener import Listener

Work = Callable[..., Completion]

EASY = {"resolution": 32, "pose": "canonical", "refine": False}


def sphere(count: int = 800) -> Scan:
    """The front half of a sphere of radius 0.5 about (1, 0, 0)."""
    directions = np.random.default_rng(0).normal(size=(count, 3))
    directions[:, 2] = np.abs(directions[:, 2])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return Scan([ScanView(0.5 * directions + [1, 0, 0], viewpoint=np.array([1.0, 0, 3]))])


@pytest.fixture
def work(settings: Settings, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    """Submit a completion, let a worker do it, and see how it ended."""
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DEEPSDF_CHECKPOINTS_DIR", str(tiny_checkpoint.parent))
    monkeypatch.setenv("DEEPSDF_DEVICE", "cpu")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def one(scan: Scan | None = None, *, deadline_s: float = 60, **options: Any) -> Completion:
        monkeypatch.setenv("DEEPSDF_DEADLINE_S", str(deadline_s))
        get_settings.cache_clear()
        queue = CompletionQueue(connect(settings, 1), settings)
        completion_id = f"{len(queue.queue.finished_job_registry):032x}"
        if scan is not None:
            Storage(settings.data_dir).save_scan(completion_id, scan, {})
        queue.submit(completion_id, CompletionOptions.model_validate({"model": "tiny", **options}))
        Listener(connect(settings, 1), get_settings()).listen(burst=True)
        completion = queue.get(completion_id)
        assert completion is not None
        return completion

    yield one
    get_settings.cache_clear()
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Stub:
    """Instead of a model: remembers what it was asked for, and answers with tetrahedra."""

    def __init__(self, alternatives: int = 0) -> None:
        self.alternatives, self.seen = alternatives, dict[str, Any]()

    def completing(self, views: list[View], **keywords: Any) -> Steps[SimpleNamespace]:
        yield None
        self.seen = {"views": views, **keywords}
        corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
        faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32)
        meshes = [Mesh((1 + number) * corners, faces) for number in range(1 + self.alternatives)]
        report = {"faces": 4, "code": [0.25, -0.5], "placement_covariance": [[1.0]], "residual": 0.5}
        return SimpleNamespace(
            mesh=meshes[0],
            alternatives=meshes[1:],
            report=SimpleNamespace(to_dict=lambda: report, residual=0.5),
            up=np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
        )


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    """Every model is this one."""
    stub = Stub()
    monkeypatch.setattr(tasks, "completer", lambda name: stub)
    return stub


OF_THE_SERVICE = {"model", "start_from", "draco", "priority"}
"""Options that are none of the completer's."""


def test_the_options_are_the_keywords_of_the_completer():
    keywords = inspect.signature(Completer.complete).parameters.values()
    given = {p.name: p.default for p in keywords if p.kind is p.KEYWORD_ONLY}
    known = {
        name: default for name, default in given.items() if name not in ("on_step", "on_preview", "start")
    }
    fields = CompletionOptions.model_fields
    assert known.keys() == fields.keys() - OF_THE_SERVICE
    assert {name: fields[name].default for name in known if name != "up"} == {
        name: default for name, default in known.items() if name != "up"
    }


def test_every_field_of_the_report_is_documented_and_those_left_out_of_the_status_are_marked():
    text = (ROOT / "docs" / "api.md").read_text()
    table = text[text.index("### The report") : text.index("### Why a completion failed")]
    named = [
        name
        for row in table.splitlines()[2:]
        if "|" in row
        for name in re.findall(r"`(\w+)`( ◦)?", row.split("|")[1])
    ]
    fields = {field.name for field in dataclasses.fields(CompletionReport)}
    assert {name for name, _ in named} == fields
    assert {name for name, marked in named if marked} == set(tasks.LONG)


def test_a_scan_becomes_a_closed_mesh_where_the_scan_is(work, settings):
    completion = work(sphere(), resolution=48)
    assert completion.status == "succeeded", completion.error
    assert (completion.progress, completion.attempt, completion.error) == (1.0, 1, None)
    assert completion.report["solver"] == "lm"
    storage = Storage(settings.data_dir)
    assert len(storage.load_report(completion.id)["code"]) > 1
    for format in MESH_FORMATS:
        data = storage.mesh_path(completion.id, format).read_bytes()
        mesh = trimesh.load(BytesIO(data), file_type=format, force="mesh")
        mesh.merge_vertices()
        assert mesh.is_watertight, format
        assert np.linalg.norm(mesh.bounds.mean(axis=0) - [1, 0, 0]) < 0.5, format


def test_the_same_seed_gives_the_same_mesh(work, settings):
    storage = Storage(settings.data_dir)
    meshes = [storage.mesh_path(work(sphere(), **EASY, seed=5).id).read_bytes() for _ in range(2)]
    assert meshes[0] == meshes[1]


def test_a_completion_starts_from_the_code_of_another(work):
    first = work(sphere(), **EASY)
    second = work(sphere(), **EASY, start_from=first.id)
    assert second.status == "succeeded", second.error
    assert second.report["residual"] < 2 * first.report["residual"]


def test_the_model_gets_every_view_and_every_option(work, stub):
    random = np.random.default_rng(0)
    views = [
        ScanView(random.random((70, 3)), random.random((70, 3)), random.random(3), random.random((9, 3))),
        ScanView(random.random((80, 3)), colors=random.integers(0, 256, (80, 3)).astype(np.uint8)),
    ]
    options = {"pose": "free", "samples": 3, "refine": False, "target_faces": 900, "color": "none"}
    assert work(Scan(views), **options).status == "succeeded"
    assert len(stub.seen["views"]) == 2
    for given, seen in zip(views, stub.seen["views"], strict=True):
        for name in ("points", "normals", "viewpoint", "background", "colors"):
            np.testing.assert_array_equal(getattr(seen, name), getattr(given, name))
    assert {name: stub.seen[name] for name in options} == options
    keywords = stub.seen.keys() - {"views", "on_step", "on_preview", "start"}
    assert keywords == CompletionOptions.model_fields.keys() - OF_THE_SERVICE


@pytest.mark.parametrize(
    ("up", "told"), [("auto", "-y"), ("+z", "+z"), ("[0, 0.5, -1]", [0, 0.5, -1]), ("[0,0,1]", [0, 0, 1])]
)
def test_up_is_taken_from_the_scan_unless_it_is_given(work, stub, up, told):
    work(Scan(sphere().views, up="-y"), up=up)
    assert stub.seen["up"] == told


def test_long_arrays_of_the_report_go_to_its_file_alone(work, stub, settings):
    completion = work(sphere())
    assert completion.report == {"faces": 4, "residual": 0.5}
    stored = Storage(settings.data_dir).load_report(completion.id)
    assert stored == {"faces": 4, "residual": 0.5, "code": [0.25, -0.5], "placement_covariance": [[1.0]]}


def test_alternatives_are_stored_beside_the_mesh(work, stub, settings):
    stub.alternatives = 2
    completion = work(sphere(), samples=2)
    storage = Storage(settings.data_dir)
    for format in MESH_FORMATS:
        for sample in range(3):
            data = storage.mesh_path(completion.id, format, sample).read_bytes()
            mesh = trimesh.load(BytesIO(data), file_type=format, force="mesh")
            np.testing.assert_allclose(mesh.extents, [1 + sample] * 3, rtol=1e-6)
    assert not storage.mesh_path(completion.id, "glb", 3).exists()


def test_the_formats_of_the_api_are_those_of_the_model():
    assert MESH_FORMATS == FORMATS


def test_a_glb_stands_upright_by_its_node_and_the_others_are_in_the_scans_frame(work, stub, settings):
    completion = work(sphere())
    path = Storage(settings.data_dir).mesh_path
    scene = trimesh.load(path(completion.id, "glb"))
    (shape,) = scene.geometry.values()
    turn, _ = scene.graph[scene.graph.nodes_geometry[0]]
    np.testing.assert_allclose(turn[:3, :3] @ [0, 0, 1], [0, 1, 0], atol=1e-6)  # the stub's scan is z-up
    for mesh in (shape, *(trimesh.load(path(completion.id, name)) for name in ("ply", "obj", "stl"))):
        np.testing.assert_allclose(mesh.bounds, [[0, 0, 0], [1, 1, 1]], atol=1e-6)


def test_a_completion_can_be_cancelled_while_its_files_are_written(work, stub, settings, monkeypatch):
    written: list[str] = []

    def slow(mesh, format, up, draco):
        written.append(format)
        CompletionQueue(connect(settings, 1), settings).cancel(f"{0:032x}")
        time.sleep(0.06)  # longer than the interval at which the worker looks
        return b""

    monkeypatch.setattr(tasks, "export", slow)
    completion = work(sphere(), samples=1)
    assert completion.status == "cancelled"
    assert len(written) == 1


def test_the_code_to_start_from_is_that_of_the_stored_report(work, stub):
    first = work(sphere())
    assert stub.seen["start"] is None
    work(sphere(), start_from=first.id)
    assert stub.seen["start"] == [0.25, -0.5]


def test_the_glb_is_compressed_where_asked(work, settings):
    plain, small = (work(sphere(), **EASY, draco=draco) for draco in (False, True))
    sizes = [Storage(settings.data_dir).mesh_path(one.id, "glb").stat().st_size for one in (plain, small)]
    assert sizes[1] < 0.7 * sizes[0]


def test_previews_of_the_fit_lie_where_the_scan_is(work, settings):
    completion = work(sphere(), **EASY)
    assert completion.preview == 1 + len(Effort().rounds)
    preview = trimesh.load(Storage(settings.data_dir).preview_path(completion.id), force="mesh")
    preview.merge_vertices()
    assert preview.is_watertight
    assert np.linalg.norm(preview.bounds.mean(axis=0) - [1, 0, 0]) < 0.5


def test_previews_can_be_left_out_and_a_full_disk_leaves_them_out(work, settings, monkeypatch):
    def full(self: Storage, completion_id: str, mesh: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "save_preview", full)
        assert (done := work(sphere(), **EASY)).status == "succeeded" and done.preview == 0
    monkeypatch.setenv("DEEPSDF_PREVIEWS", "false")
    assert work(sphere(), **EASY).preview == 0
    assert not list(settings.data_dir.glob("completions/*/preview.glb"))


def test_a_completion_that_does_not_fit_into_memory_fails_at_once(work, stub, monkeypatch):
    def too_large(views: list[View], **keywords: Any) -> Steps[SimpleNamespace]:
        yield None
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(stub, "completing", too_large)
    completion = work(sphere())
    assert (completion.status, completion.error.code, completion.attempt) == ("failed", "out_of_memory", 1)


def test_a_start_that_is_gone_is_told(work, stub, settings):
    first = work(sphere())
    Storage(settings.data_dir).report_path(first.id).unlink()
    assert work(sphere(), start_from=first.id).error.code == "start_missing"


def test_a_deadline_ends_a_completion(work):
    completion = work(sphere(), deadline_s=0.01)
    assert (completion.status, completion.error.code) == ("failed", "deadline_passed")
    assert completion.attempt == 1


def test_a_model_that_is_gone_is_told(work):
    assert work(sphere(), model="gone").error.code == "unknown_model"


def test_a_scan_that_is_gone_is_told(work):
    assert work(None).error.code == "scan_missing"


def test_a_scan_that_no_shape_fits_fails_with_the_models_words(work):
    line = Scan([ScanView(np.linspace(0, 1, 100)[:, None] * [1.0, 0, 0])])
    completion = work(line, **EASY)
    assert completion.status in ("failed", "succeeded")
    if completion.status == "failed":
        assert completion.error.code in ("unusable_scan", "no_surface")


def test_a_broken_worker_tries_again_and_then_says_so(work, monkeypatch, settings):
    def broken(name):
        raise LookupError("a defect")

    monkeypatch.setattr(tasks, "completer", broken)
    completion = work(sphere())
    assert (completion.status, completion.error.code) == ("failed", "internal")
    assert completion.attempt == settings.retries + 1
    assert "defect" not in completion.error.detail
