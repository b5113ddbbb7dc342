"""Keys, tenants, rates, and what strangers cannot do."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from asking import end, problem, submit

from app.keys import digest, owner_of
from app.middleware import is_cross_site
from app.settings import Settings
from app.storage import Storage

KEYS = {"alice": digest("a-key"), "bob": digest("b-key")}
ALICE, BOB = {"Authorization": "Bearer a-key"}, {"Authorization": "Bearer b-key"}


@pytest.fixture
def keyed(api_for):
    return api_for(api_keys=KEYS)


def operations(api):
    """Every method and path that the service has, as its own document lists them."""
    for path, methods in api.get("/openapi.json").json()["paths"].items():
        for method in methods:
            yield method, path


def about(path, name):
    """The path with its blanks filled in."""
    return re.sub(r"\{\w+\}", name, path)


def test_without_a_key_nothing_under_v1_answers(keyed):
    asked = [(method, path) for method, path in operations(keyed) if path.startswith("/v1")]
    assert len(asked) > 10
    for method, path in asked:
        for wrong in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": "Basic a-key"}):
            answer = keyed.request(method, about(path, "0" * 32), headers=wrong)
            problem(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
    assert keyed.get("/healthz").status_code == 200


def test_no_endpoint_shows_or_touches_the_completions_of_others(keyed, settings):
    """Bob asks every endpoint about Alice's completion, and is told what he is told about no completion."""
    made = submit(keyed, ALICE, samples=0).json()
    end(settings, made["id"], {"faces": 8, "code": [0.0]}, status="succeeded")
    Storage(settings.data_dir).save_mesh(made["id"], b"glb", "glb")
    stored = sorted(settings.data_dir.rglob("*"))
    ends = {"start": {"completion": made["id"]}, "end": {"completion": made["id"]}}
    way = keyed.post("/v1/interpolations", json={"model": "tiny", **ends}, headers=ALICE).json()
    names = {"{completion_id}": made["id"], "{interpolation_id}": way["id"]}
    about_one = [(method, path) for method, path in operations(keyed) if "_id}" in path]
    assert len(about_one) >= 14
    for method, path in about_one:
        (blank,) = re.findall(r"\{\w+\}", path)
        hers = keyed.request(method, path.replace(blank, names[blank]), headers=BOB)
        noones = keyed.request(method, path.replace(blank, "0" * 32), headers=BOB)
        assert hers.status_code == noones.status_code == 404, (method, path)
        assert hers.json()["code"] == noones.json()["code"] == f"unknown_{blank[1:-4]}"
    problem(
        keyed.post("/v1/interpolations", json={"model": "tiny", **ends}, headers=BOB), 404, "unknown_start"
    )
    assert keyed.get("/v1/completions", headers=BOB).json()["completions"] == []
    assert keyed.get("/v1/interpolations", headers=BOB).json()["interpolations"] == []
    problem(submit(keyed, BOB, start_from=made["id"]), 404, "unknown_start")
    assert keyed.get(made["links"]["mesh"], headers=ALICE).content == b"glb"
    assert sorted(settings.data_dir.rglob("*")) == stored


def test_an_idempotency_key_is_of_one_owner(keyed):
    ids = {submit(keyed, {**who, "Idempotency-Key": "1"}).json()["id"] for who in (ALICE, BOB)}
    assert len(ids) == 2


def test_a_page_of_a_list_is_of_one_owner_whatever_the_cursor(keyed):
    hers = submit(keyed, ALICE).json()["id"]
    submit(keyed, BOB)
    page = keyed.get("/v1/completions", params={"cursor": "f" * 32}, headers=BOB).json()["completions"]
    assert len(page) == 1 and page[0]["id"] != hers


def test_a_key_that_submits_too_often_is_told_when_it_may(api_for):
    api = api_for(api_keys=KEYS, rate_limit="2/minute")
    assert [submit(api, ALICE).status_code for _ in range(2)] == [202, 202]
    answer = submit(api, ALICE)
    problem(answer, 429, "rate_limited")
    assert 0 < int(answer.headers["retry-after"]) <= 120
    assert submit(api, BOB).status_code == 202


def test_a_key_with_too_many_open_completions_waits_until_one_has_ended(api_for, settings):
    api = api_for(api_keys=KEYS, max_open_per_key=2)
    first = submit(api, ALICE).json()["id"]
    submit(api, ALICE)
    problem(submit(api, ALICE), 429, "too_many_open")
    assert submit(api, BOB).status_code == 202
    end(settings, first, status="cancelled")
    assert submit(api, ALICE).status_code == 202


def test_a_key_is_made_by_a_command_and_kept_nowhere():
    shown = subprocess.run(
        [sys.executable, "-m", "app.keys", "carol"], capture_output=True, text=True, check=True
    ).stdout
    key = re.search(r"dsdf_\S+", shown)[0]
    told = re.search(r"DEEPSDF_API_KEYS='(.+)'", shown)[1]
    settings = Settings.model_validate_json(f'{{"api_keys": {told}}}')
    assert owner_of(key, settings.api_keys) == "carol"
    assert owner_of(key[:-1], settings.api_keys) is None
    assert key not in told


@pytest.mark.parametrize("wrong", [{"a b": "0" * 64}, {"a": "secret"}, {"": "0" * 64}, {"../a": "0" * 64}])
def test_keys_that_are_none_are_refused_at_the_start(wrong):
    with pytest.raises(ValueError, match="key"):
        Settings(api_keys=wrong)


# What others could make a browser do


def test_every_answer_has_the_security_headers(api):
    for answer in (api.get("/healthz"), api.get("/docs"), api.get("/nowhere"), submit(api)):
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"


def test_a_page_of_another_site_cannot_submit_or_delete(api):
    problem(submit(api, {"Sec-Fetch-Site": "cross-site"}), 403, "forbidden")
    made = submit(api, {"Sec-Fetch-Site": "same-origin"}).json()
    problem(api.delete(made["links"]["self"], headers={"Sec-Fetch-Site": "same-site"}), 403, "forbidden")
    assert not is_cross_site({"headers": []})


def test_without_keys_the_service_answers_to_no_other_name(api, api_for):
    """A name of the attacker that leads to 127.0.0.1 would make their page ours."""
    for name in ("evil.example", "evil.example:8000", "192.0.2.1"):
        problem(api.get("/v1/completions", headers={"Host": name}), 403, "forbidden")
    for name in ("localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000"):
        assert api.get("/v1/completions", headers={"Host": name}).status_code == 200
    open_ = api_for(allow_without_keys=True)
    assert open_.get("/v1/completions", headers={"Host": "evil.example"}).status_code == 200


def test_without_keys_the_service_answers_on_no_other_address(settings):
    from fastapi.testclient import TestClient

    from app.main import create_app

    api = TestClient(create_app(settings), "http://192.0.2.1", raise_server_exceptions=False)
    problem(api.get("/healthz"), 403, "forbidden")


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_the_service_does_not_start_open_to_the_network_without_keys(host, tmp_path):
    command = [sys.executable, "-m", "app", "--host", host, "--data-dir", str(tmp_path)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert refused.returncode == 2
    assert "DEEPSDF_API_KEYS" in refused.stderr and "Traceback" not in refused.stderr


# Request ids


def test_a_request_has_an_id_that_is_the_clients_where_it_is_sound(api):
    answer = api.get("/v1/completions/x", headers={"X-Request-ID": "trace-1"})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "trace-1"
    for unsound in ("", "a b", "x" * 101, "a\tb"):
        made = api.get("/v1/completions/x", headers={"X-Request-ID": unsound}).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", made)


def test_the_documentation_page_needs_nothing_from_elsewhere(api):
    page = api.get("/docs").text
    wanted = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(wanted) == 4 and not re.search(r"<script>|<style|style=", page)
    for link in wanted:
        assert link == "data:," or api.get(link).status_code == 200, link
