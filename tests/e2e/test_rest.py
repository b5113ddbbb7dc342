"""The REST surface with everything real: service, queue, worker and HTTP."""

from __future__ import annotations

import io
import json
import signal
import socket

import pytest
import trimesh
from PIL import Image
from processes import eventually
from test_service import QUICK, running, scan, submit

from app.schemas import Completion
from app.storage import Storage

STEADY = {"solver": "adam", "resolution": 40, "pose": "canonical", "refine": "false"}
"""Takes long enough to be watched."""


@pytest.fixture(autouse=True)
def calm(service):
    service.ready()


def test_one_request_is_enough_for_who_can_wait(service):
    http = service.client.http
    answer = http.post(
        "/v1/completions",
        params={"model": "tiny", **QUICK},
        files={"scan": ("ball.npy", scan())},
        headers={"Prefer": "wait=60", "X-Request-ID": "e2e-1"},
        timeout=90,
    )
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded"), answer.text
    assert answer.headers["x-request-id"] == "e2e-1"
    links = answer.json()["links"]
    picture = Image.open(io.BytesIO(http.get(links["picture"]).content))
    assert picture.mode == "RGBA" and (0 < picture.getchannel("A").histogram()[255] < picture.width**2)
    points = trimesh.load(io.BytesIO(http.get(links["scan"]).content), file_type="ply")
    assert len(points.vertices) == 600
    assert len(http.get(links["latent"]).json()["code"]) == 4
    assert http.delete(links["self"]).status_code == 204
    assert http.get(links["mesh"]).status_code == 404
    assert answer.json()["id"] not in Storage(service.data_dir).ages()


def test_events_follow_a_completion_to_its_end_through_a_restart_of_the_api(service):
    made, names, seen, last = submit(service, **STEADY), [], [], ""
    while not seen or seen[-1].status == "running" or seen[-1].status == "queued":
        for event in events(service, made.links.events, last):
            names.append(event["event"])
            seen.append(Completion.model_validate(json.loads(event["data"])))
            last = event["id"]
            if len(seen) == 4:
                break  # the client loses the connection
        if len(seen) == 4:
            service.kill("api", signal.SIGKILL)
            eventually(service.client.is_ready)
    assert seen[-1].status == "succeeded" and names[0] == "status" and "progress" in names
    assert [now.progress for now in seen] == sorted(now.progress for now in seen)


def events(service, link, last):
    """The events of one connection, as they come."""
    with service.client.http.stream("GET", link, headers={"Last-Event-ID": last}, timeout=60) as answer:
        fields: dict[str, str] = {}
        for line in answer.iter_lines():
            if line.startswith(("event:", "id:", "data:")):
                name, _, value = line.partition(": ")
                fields[name] = value
            elif not line and "data" in fields:
                yield fields
                fields = {}


def test_what_is_deleted_while_it_runs_is_gone_and_the_worker_goes_on(service):
    made = submit(service, **STEADY)
    running(service, made)
    assert service.client.http.delete(made.links.self).status_code == 204
    assert service.client.http.get(made.links.self).status_code == 404
    assert service.client.wait(submit(service, **QUICK).id).status == "succeeded"


def test_an_interpolation_between_what_was_completed_and_what_was_learnt(service):
    done, http = service.client.wait(submit(service, **QUICK).id), service.client.http
    ends = {"start": {"completion": done.id}, "end": {"shape": "box_0.5_0.5"}}
    made = http.post("/v1/interpolations", json={"model": "tiny", **ends, "count": 3, "resolution": 32})
    assert made.status_code == 202, made.text
    links = made.json()["links"]
    eventually(lambda: http.get(links["self"]).json()["status"] in ("succeeded", "failed"))
    assert http.get(links["self"]).json()["status"] == "succeeded", http.get(links["self"]).json()
    film = trimesh.load_scene(io.BytesIO(http.get(links["mesh"]).content), file_type="glb")
    assert len(film.geometry) == 3
    single = io.BytesIO(http.get(links["mesh"], params={"number": 2, "format": "stl"}).content)
    assert trimesh.load(single, file_type="stl").is_watertight


def test_metrics_of_a_running_service_know_its_worker(service):
    service.client.wait(submit(service, **QUICK).id)

    def told():
        text = service.client.http.get("/metrics").text
        return (
            "deepsdf_workers 1.0" in text and 'phase="fit"' in text and "deepsdf_solver_steps_total" in text
        )

    eventually(told)


@pytest.mark.parametrize("kind", ["application/octet-stream", "multipart/form-data; boundary=x"])
def test_a_client_that_goes_away_in_the_middle_leaves_nothing(service, kind):
    url, before = service.client.http.base_url, set(Storage(service.data_dir).ages())
    with socket.create_connection((url.host, url.port)) as half:
        head = f"POST /v1/completions?model=tiny HTTP/1.1\r\nHost: {url.host}:{url.port}\r\n"
        half.sendall(f"{head}Content-Type: {kind}\r\nContent-Length: 100000\r\n\r\n--x\r\n".encode())
    assert service.client.wait(submit(service, **QUICK).id).status == "succeeded"
    assert len(set(Storage(service.data_dir).ages()) - before) == 1
