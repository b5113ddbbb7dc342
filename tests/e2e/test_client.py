"""The Python client on the running service, and its patience on one that stumbles."""

from __future__ import annotations

import asyncio
import io
import json
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest
import trimesh

from app.client import AsyncClient, Client, ProblemError
from app.client.scans import parts_of_scans
from app.scans import Upload, read_scan
from app.schemas import Links

QUICK = {"model": "tiny", "resolution": 40}


def half_ball(count: int = 600) -> np.ndarray:
    """The front half of a ball of radius 2 about (10, 0, 0)."""
    rows = np.random.default_rng(0).normal(size=(count, 3))
    rows[:, 2] = np.abs(rows[:, 2])
    return 2 * rows / np.linalg.norm(rows, axis=1, keepdims=True) + [10, 0, 0]


def check(mesh: trimesh.Trimesh) -> None:
    """Closed, where the scan is, and with a deviation for each vertex."""
    assert mesh.is_watertight
    assert np.linalg.norm(mesh.bounds.mean(axis=0) - [10, 0, 0]) < 2
    assert len(mesh.vertex_attributes["deviation"]) == len(mesh.vertices)


def test_an_array_becomes_a_mesh_in_its_own_frame(service):
    service.ready()
    done = service.client.complete(half_ball(), viewpoint=[10, 0, 9], **QUICK).wait()
    assert done.now.status == "succeeded", done.now.error
    check(done.mesh())
    assert service.client.find(done.id).report()["watertight"] is True
    assert done.id in [one.id for one in service.client.completions(status="succeeded", model="tiny")]
    service.client.delete(done.id)
    with pytest.raises(ProblemError, match="unknown_completion"):
        service.client.status(done.id)


def test_each_state_is_told_until_the_completion_has_ended(service):
    completion = service.client.complete(half_ball(), **QUICK)
    told = [now.status for now in completion.events()]
    assert told[-1] == completion.now.status == "succeeded"
    assert "running" in told and "succeeded" not in told[:-1]
    with pytest.raises(ProblemError, match="unknown_completion"):
        list(service.client.events("0" * 32))


def test_clouds_of_open3d_and_trimesh_and_files_are_the_same_scan(tmp_path):
    """As the service reads them. Open3D is large: an object with its attributes stands in for its cloud."""
    points = half_ball()
    np.save(tmp_path / "ball.npy", points)
    open3d = SimpleNamespace(points=points, normals=np.empty((0, 3)), colors=np.full((600, 3), 0.5))
    scans = [tmp_path / "ball.npy", str(tmp_path / "ball.npy"), points, open3d, trimesh.PointCloud(points)]
    for _, (name, data) in parts_of_scans(scans):
        (view,) = read_scan([Upload(data, name)]).views
        assert np.allclose(view.points, points), name


def test_what_is_no_scan_is_refused_before_it_is_sent(service):
    with pytest.raises(TypeError, match="point cloud"):
        service.client.complete(42)
    with pytest.raises(ProblemError) as refusal:
        service.client.complete(np.zeros((4, 2)), **QUICK)
    assert refusal.value.problem.status == 422


def test_many_scans_are_completed_at_once_with_asyncio(service):
    async def run() -> list[trimesh.Trimesh]:
        async with AsyncClient(str(service.client.http.base_url)) as client:
            scans = await asyncio.gather(*[client.complete(half_ball(), **QUICK) for _ in range(2)])
            done = await asyncio.gather(*[scan.wait() for scan in scans])
            assert {one.now.status for one in done} == {"succeeded"}
            return [await one.mesh() for one in done]

    service.ready()
    for mesh in asyncio.run(run()):
        check(mesh)


def stumbling(failures: list[httpx2.Response | Exception], seen: list[httpx2.Request]) -> Client:
    """A client of a service that fails so before it works. Not a real one: those fail when they like."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        if failures:
            failure = failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            return failure
        now = {"id": "0" * 32, "status": "queued", "options": {}, "created_at": "2026-01-01T00:00:00Z"}
        links = dict.fromkeys(Links.model_fields, "/")
        return httpx2.Response(202, json={**now, "links": links})

    client = Client()
    client.http = httpx2.Client(base_url="http://nowhere", transport=httpx2.MockTransport(answer))
    return client


def busy() -> httpx2.Response:
    """What a full service says."""
    problem = {"title": "", "status": 429, "code": "queue_full", "detail": "", "instance": "/"}
    headers = {"Retry-After": "0", "content-type": "application/problem+json"}
    return httpx2.Response(429, json=problem, headers=headers)


def test_a_submission_is_sent_again_under_one_key():
    seen: list[httpx2.Request] = []
    client = stumbling([httpx2.ConnectError("no"), busy()], seen)
    assert client.complete(half_ball()).now.status == "queued"
    keys = {request.headers["idempotency-key"] for request in seen}
    assert len(seen) == 3 and len(keys) == 1
    client.complete(half_ball())
    assert seen[-1].headers["idempotency-key"] not in keys


def test_patience_ends():
    client = stumbling([busy() for _ in range(9)], [])
    assert client.complete(half_ball()).now.status == "queued"
    client = stumbling([busy()], [])
    client.patience_s = 0
    with pytest.raises(ProblemError, match="queue_full"):
        client.complete(half_ball())
    with pytest.raises(httpx2.ConnectError):
        stumbling([httpx2.ConnectError("no") for _ in range(9)], []).status("0" * 32)
    with pytest.raises(ProblemError, match="queue_full"):
        stumbling([busy()], []).submit(b"scan")


def test_a_key_goes_with_every_request():
    assert Client(key="secret").http.headers["authorization"] == "Bearer secret"
    assert "authorization" not in Client().http.headers


def test_several_views_are_several_parts_of_one_scan():
    seen: list[httpx2.Request] = []
    stumbling([], seen).complete([half_ball(), half_ball()], viewpoint=(1, 2, 3))
    body = seen[0].read()
    assert body.count(b'name="scan"') == 2 and b"[1.0, 2.0, 3.0]" in body
    assert np.load(io.BytesIO(body[body.index(b"\x93NUMPY") :])).shape == (600, 3)


def test_each_view_has_its_own_pose_and_camera():
    turn = np.eye(4)
    camera = {"fx": 1.0, "fy": 1.0, "cx": 0.0, "cy": 0.0}
    seen: list[httpx2.Request] = []
    client = stumbling([], seen)
    client.complete([b"one", b"two"], intrinsics=[camera, np.eye(3)], camera_to_world=[turn, 2 * turn])
    body = seen[0].read()
    assert body.count(b'name="camera_to_world"') == body.count(b'name="intrinsics"') == 2
    assert b'{"fx": 1.0' in body and b"[[1.0, 0.0, 0.0], " in body and b"[[2.0, 0.0" in body
    client.complete(b"one", intrinsics=np.eye(3), depth_scale=5000)
    assert seen[1].read().count(b'name="intrinsics"') == 1
    with pytest.raises(ValueError, match="viewpoint"):
        client.complete(half_ball(), viewpoint=[1, 2])


def event(number: int, status: str) -> bytes:
    """A server-sent event, as the service tells it."""
    now = {"id": "0" * 32, "status": status, "options": {}, "created_at": "2026-01-01T00:00:00Z"}
    told = json.dumps({**now, "links": dict.fromkeys(Links.model_fields, "/")})
    return f"event: status\nid: {number}\ndata: {told}\n\n".encode()


class Breaking(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """An answer whose connection breaks after these bytes."""

    def __init__(self, told: bytes) -> None:
        self.told = told

    def __iter__(self):
        yield self.told
        raise httpx2.ReadError("gone")

    async def __aiter__(self):
        yield self.told
        raise httpx2.ReadError("gone")


def test_events_go_on_where_a_connection_broke(monkeypatch):
    monkeypatch.setattr("app.client.answers.pause_after", lambda *_: 0)
    heard_last: list[str | None] = []
    parts = [
        Breaking(event(1, "queued") + b'data: {"half'),
        httpx2.ByteStream(event(2, "running")),
        Breaking(b""),
        httpx2.ByteStream(event(3, "succeeded")),
    ]

    def answer(request: httpx2.Request) -> httpx2.Response:
        heard_last.append(request.headers.get("last-event-id"))
        return httpx2.Response(200, stream=parts[len(heard_last) - 1])

    client = Client()
    client.http = httpx2.Client(base_url="http://one", transport=httpx2.MockTransport(answer))
    assert [now.status for now in client.events("0" * 32)] == ["queued", "running", "succeeded"]
    assert heard_last == [None, "1", "2", "2"]

    async def run() -> list[str]:
        other = AsyncClient()
        other.http = httpx2.AsyncClient(base_url="http://one", transport=httpx2.MockTransport(answer))
        return [now.status async for now in other.events("0" * 32)]

    heard_last.clear()
    assert asyncio.run(run()) == ["queued", "running", "succeeded"]
    heard_last.clear()
    parts[:] = [Breaking(b"") for _ in range(9)]
    with pytest.raises(httpx2.TransportError):
        list(client.events("0" * 32))
    assert len(heard_last) < 9
