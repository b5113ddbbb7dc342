"""The rest of the REST surface: lists, waiting, validators, deletion, expiry, events."""

from __future__ import annotations

import json
import threading
import time

import pytest
from asking import begin, end, kept, problem, queue_of, submit
from redis.exceptions import ConnectionError as RedisConnectionError
from scan_files import npy, ply, sphere

from app.schemas import Completion, Interpolation
from app.storage import Storage


def ids(page):
    return [completion["id"] for completion in page.json()["completions"]]


def later(act, seconds=0.25):
    timer = threading.Timer(seconds, act)
    timer.start()
    return timer


# Lists


@pytest.fixture
def five(api, settings):
    """Five completions, oldest first: they end so that the queue has room, all but the last."""
    made = []
    for number in range(5):
        made.append(submit(api).json()["id"])
        if number < 4:
            end(settings, made[-1], status="succeeded" if number % 2 else "cancelled")
    return made


def test_a_list_is_newest_first_and_goes_on_where_the_page_before_ended(api, five):
    first = api.get("/v1/completions?limit=2")
    second = api.get(first.headers["link"].split(";")[0].strip("<>"))
    submit(api)  # what comes in meanwhile moves nothing
    third = api.get("/v1/completions", params={"limit": 2, "cursor": second.json()["cursor"]})
    assert ids(first) + ids(second) + ids(third) == five[::-1]
    assert 'rel="next"' in first.headers["link"]
    assert third.json()["cursor"] is None and "link" not in third.headers


def test_a_list_of_exactly_one_page_has_no_next_one(api, five):
    page = api.get("/v1/completions?limit=5")
    while page.json()["cursor"] is not None:
        page = api.get("/v1/completions", params={"limit": 5, "cursor": page.json()["cursor"]})
        assert not ids(page)


@pytest.mark.parametrize(
    ("asked", "places"), [("status=succeeded", [3, 1]), ("status=queued", [4]), ("model=other", [])]
)
def test_a_list_is_of_those_asked_for(api, five, asked, places):
    assert ids(api.get(f"/v1/completions?limit=3&{asked}")) == [five[place] for place in places]


@pytest.mark.parametrize("wrong", ["limit=0", "limit=101", "cursor=x", "status=done"])
def test_a_list_asked_for_wrongly_is_a_400(api, wrong):
    problem(api.get(f"/v1/completions?{wrong}"), 400, "invalid_options")


# Waiting


def test_a_look_may_wait_for_the_end(api, settings):
    made = submit(api).json()
    later(lambda: end(settings, made["id"], status="cancelled"))
    start = time.perf_counter()
    assert api.get(made["links"]["self"] + "?wait=10").json()["status"] == "cancelled"
    assert time.perf_counter() - start < 3


def test_a_look_waits_no_longer_than_asked(api):
    made = submit(api).json()
    start = time.perf_counter()
    assert api.get(made["links"]["self"] + "?wait=0.3").json()["status"] == "queued"
    assert 0.3 <= time.perf_counter() - start < 2
    problem(api.get(made["links"]["self"] + "?wait=61"), 400, "invalid_options")


def test_a_submission_waits_where_the_client_prefers_that(api, settings):
    def end_it():
        (completion_id,) = queue_of(settings).queue.job_ids
        end(settings, completion_id, status="cancelled")

    later(end_it, 0.5)
    answer = submit(api, headers={"Prefer": "respond-async, wait=10"})
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert answer.headers["preference-applied"] == "wait=10"
    answer = submit(api, headers={"Prefer": "wait=0"})
    assert answer.status_code == 202 and "preference-applied" not in answer.headers


# Validators


def test_a_status_that_has_not_changed_is_a_304(api, settings):
    made = submit(api).json()
    tag = api.get(made["links"]["self"]).headers["etag"]
    known = {"If-None-Match": f'"other", {tag}'}
    unchanged = api.get(made["links"]["self"], headers=known)
    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", tag)
    end(settings, made["id"], status="cancelled")
    assert api.get(made["links"]["self"], headers=known).status_code == 200


def test_a_mesh_comes_in_parts_and_once(api, settings):
    made = submit(api).json()
    end(settings, made["id"], {"faces": 8}, status="succeeded")
    Storage(settings.data_dir).save_mesh(made["id"], bytes(range(100)), "glb")
    link = made["links"]["mesh"]
    whole = api.get(link)
    assert not whole.headers["etag"].startswith("W/")
    part = api.get(link, headers={"Range": "bytes=10-19", "If-Range": whole.headers["etag"]})
    assert (part.status_code, part.content) == (206, bytes(range(10, 20)))
    assert part.headers["content-range"] == "bytes 10-19/100"
    assert api.get(link, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304
    head = api.head(link)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "100")
    problem(api.get(link, headers={"Range": "bytes=100-"}), 416, "range_not_satisfiable")
    assert api.get(link, headers={"Range": "bytes=x"}).status_code == 200
    Storage(settings.data_dir).save_mesh(made["id"], bytes(100), "glb")
    assert api.get(link).headers["etag"] != whole.headers["etag"]


# Idempotency


def test_the_same_key_and_request_give_the_same_completion(api, settings):
    key = {"Idempotency-Key": "order 1"}
    first, again = submit(api, key), submit(api, key)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.headers["location"] == again.headers["location"]
    assert len(ids(api.get("/v1/completions"))) == 1
    assert submit(api, {"Idempotency-Key": "order 2"}).json()["id"] != first.json()["id"]
    left = [queue_of(settings).connection.ttl(name) for name in queue_of(settings).connection.keys("*idem*")]
    assert all(23 * 3600 < ttl <= 24 * 3600 for ttl in left)


@pytest.mark.parametrize("other", [{"seed": 1}, {"files": {"scan": ("a.npy", npy(sphere(400)))}}])
def test_the_same_key_with_another_request_is_refused(api, other):
    key = {"Idempotency-Key": "order 1"}
    submit(api, key)
    problem(submit(api, key, **other), 422, "idempotency_mismatch")


def test_a_refused_request_does_not_use_its_key_up(api, settings):
    key = {"Idempotency-Key": "order 1"}
    problem(submit(api, key, files={"scan": ("a.npy", npy(sphere(3)))}), 422, "too_few_points")
    first = submit(api, key)
    assert first.status_code == 202
    api.delete(first.json()["links"]["self"])
    assert submit(api, key).json()["id"] != first.json()["id"]


@pytest.mark.parametrize("error", [RedisConnectionError("the answer was lost"), ZeroDivisionError()])
def test_an_accepted_request_keeps_its_key_and_its_scan_whatever_fails_after_that(
    api, settings, monkeypatch, error
):
    key = {"Idempotency-Key": "order 1"}
    arrivals = api.app.state.service.arrivals
    submit_them = arrivals.work

    async def fail_after(asked):
        await submit_them(asked)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(arrivals, "work", fail_after)
        assert submit(api, key).status_code in (500, 503)
    again = submit(api, key)
    assert again.status_code == 202 and ids(api.get("/v1/completions")) == [again.json()["id"]]
    assert Storage(settings.data_dir).load_scan(again.json()["id"]).views


def test_a_scan_that_could_not_be_stored_gives_its_key_back(api, settings):
    key = {"Idempotency-Key": "order 2"}
    settings.data_dir.mkdir()
    (settings.data_dir / "uploads").write_text("in the way")
    problem(submit(api, key), 500, "internal")
    (settings.data_dir / "uploads").unlink()
    assert submit(api, key).status_code == 202


# Raw bodies


def test_a_scan_may_be_the_body(api, settings):
    answer = api.post(
        "/v1/completions?model=tiny", content=ply(sphere()), headers={"Content-Type": "model/ply"}
    )
    assert answer.status_code == 202, answer.text
    text = "\n".join(" ".join(map(str, row)) for row in sphere())
    answer = api.post("/v1/completions?model=tiny", content=text, headers={"Content-Type": "text/plain"})
    assert answer.status_code == 202, answer.text
    assert len(Storage(settings.data_dir).load_scan(answer.json()["id"]).views[0].points) == 500


def test_a_large_raw_body_and_none_at_all(api, settings):
    raw = {"Content-Type": "application/octet-stream"}
    answer = api.post("/v1/completions?model=tiny", content=npy(sphere(60_000)), headers=raw)
    assert answer.status_code == 202, answer.text
    assert len(Storage(settings.data_dir).load_scan(answer.json()["id"]).views[0].points) == 60_000
    problem(api.post("/v1/completions?model=tiny", content=b"", headers=raw), 422, "invalid_request")
    over = bytes(settings.max_body_bytes + 1)
    problem(api.post("/v1/completions?model=tiny", content=over, headers=raw), 413, "body_too_large")


# The scan, the code, previews


def test_the_scan_can_be_had_again(api):
    made = submit(api).json()
    data = api.get(made["links"]["scan"]).content
    again = submit(api, files={"scan": ("again.ply", data)}).json()
    assert api.get(again["links"]["scan"]).content == data


def test_the_latent_code_says_whose_it_is(api, settings):
    made = submit(api).json()
    code = {"model": "tiny", "checkpoint_digest": "ab", "code": [0.5], "scan_to_canonical": [[1.0]]}
    end(settings, made["id"], {"faces": 8, **code}, status="succeeded")
    assert api.get(made["links"]["latent"]).json() == code


def test_a_preview_is_there_once_a_worker_has_written_it(api, settings):
    made = submit(api).json()
    problem(api.get(made["links"]["preview"]), 404, "no_preview")
    Storage(settings.data_dir).save_preview(made["id"], b"glb")
    begin(settings, made["id"], preview=1)
    assert api.get(made["links"]["preview"]).content == b"glb"
    assert api.get(made["links"]["self"]).json()["preview"] == 1


def test_a_model_can_be_looked_at(api):
    assert api.get("/v1/models/tiny").json()["description"] == "spheres and boxes"
    problem(api.get("/v1/models/unicorns"), 404, "unknown_model")


# Interpolations


def way(api, start, end, headers=None, **more):
    asked = {"model": "tiny", "start": start, "end": end, **more}
    return api.post("/v1/interpolations", json=asked, headers=headers)


def test_an_interpolation_is_queued_looked_at_and_deleted(api, settings):
    done = submit(api).json()["id"]
    problem(way(api, {"completion": done}, {"shape": "a"}), 409, "start_not_succeeded")
    end(settings, done, {"faces": 8, "code": [0.0]}, status="succeeded")
    made = way(api, {"completion": done}, {"shape": "a"}, count=3)
    assert made.status_code == 202 and made.headers["location"] == made.json()["links"]["self"]
    links = made.json()["links"]
    assert api.get(links["self"]).json()["queue_position"] == 1
    problem(api.get(links["mesh"]), 409, "no_meshes")
    assert made.json()["id"] not in ids(api.get("/v1/completions"))
    problem(api.get(f"/v1/completions/{made.json()['id']}"), 404, "unknown_completion")
    assert api.post(links["cancel"]).json()["status"] == "cancelled"
    assert api.delete(links["self"]).status_code == 204
    problem(api.get(links["self"]), 404, "unknown_interpolation")


def test_the_meshes_of_an_interpolation_are_numbered(api, settings):
    made = way(api, {"shape": "a"}, {"shape": "b"}, count=2).json()
    end(settings, made["id"], status="succeeded")
    storage = Storage(settings.data_dir)
    for number in range(3):
        storage.save_mesh(made["id"], f"{number}".encode(), "glb", number)
        assert api.get(made["links"]["mesh"], params={"number": number}).content == f"{number}".encode()
    problem(api.get(made["links"]["mesh"] + "?number=3"), 404, "unknown_mesh")
    problem(api.get(made["links"]["mesh"] + "?format=stl"), 404, "unknown_mesh")


def test_an_interpolation_sent_again_under_its_key_is_the_same_one(api):
    ends, key = ({"shape": "a"}, {"shape": "b"}), {"Idempotency-Key": "way 1"}
    first, again = way(api, *ends, headers=key), way(api, *ends, headers=key)
    assert (first.status_code, first.headers["location"]) == (202, again.headers["location"])
    problem(way(api, *ends, headers=key, count=3), 422, "idempotency_mismatch")
    problem(submit(api, key), 422, "idempotency_mismatch")


def test_interpolations_have_a_list_of_their_own(api, settings):
    submit(api)
    made = [way(api, {"shape": "a"}, {"shape": "b"}, count=count).json() for count in (2, 3, 4)]
    end(settings, made[1]["id"], status="succeeded")
    first = api.get("/v1/interpolations?limit=2").json()
    rest = api.get("/v1/interpolations", params={"limit": 2, "cursor": first["cursor"]}).json()
    listed = first["interpolations"] + rest["interpolations"]
    assert [one["id"] for one in listed] == [one["id"] for one in made[::-1]]
    (done,) = api.get("/v1/interpolations?status=succeeded").json()["interpolations"]
    assert done["id"] == made[1]["id"]
    assert len(ids(api.get("/v1/completions"))) == 1


def test_an_interpolation_is_waited_for_and_followed_as_a_completion_is(api, settings):
    made = way(api, {"shape": "a"}, {"shape": "b"}).json()
    tag = api.get(made["links"]["self"]).headers["etag"]
    assert api.get(made["links"]["self"], headers={"If-None-Match": tag}).status_code == 304
    later(lambda: end(settings, made["id"], status="succeeded"))
    assert api.get(made["links"]["self"] + "?wait=10").json()["status"] == "succeeded"
    ((name, _, now),) = stream(api, made["links"]["events"], of=Interpolation)
    assert (name, now.status, now.id) == ("status", "succeeded", made["id"])


def test_an_interpolation_counts_as_open_and_in_the_metrics(api, settings):
    made = way(api, {"shape": "a"}, {"shape": "b"}).json()
    assert queue_of(settings).connection.hkeys("deepsdf:open") == [made["id"].encode()]
    end(settings, made["id"], status="succeeded")
    api.app.state.service.housekeeper.settle()
    assert 'deepsdf_jobs_total{model="tiny",status="succeeded"} 1.0' in api.get("/metrics").text


@pytest.mark.parametrize(
    "wrong", [{}, {"shape": "a", "completion": "0" * 32}, {"shape": 1}, {"colour": "red"}]
)
def test_an_end_of_an_interpolation_is_one_thing(api, wrong):
    problem(way(api, wrong, {"shape": "a"}), 422, "invalid_request")


# Deletion and expiry


def test_a_deleted_completion_leaves_nothing(api, settings):
    made = submit(api, {"Idempotency-Key": "a"}).json()
    answer = api.delete(made["links"]["self"])
    assert (answer.status_code, answer.content) == (204, b"")
    assert not kept(settings)
    for link in made["links"].values():
        assert api.get(link).status_code in (404, 405)
    problem(api.delete(made["links"]["self"]), 404, "unknown_completion")
    assert not ids(api.get("/v1/completions"))
    assert not [key for key in queue_of(settings).connection.scan_iter() if made["id"].encode() in key]


def test_what_runs_is_cancelled_and_deleted_at_once(api, settings):
    made = submit(api).json()
    begin(settings, made["id"])
    assert api.delete(made["links"]["self"]).status_code == 204
    problem(api.get(made["links"]["self"]), 404, "unknown_completion")
    assert not kept(settings)


def test_what_was_kept_long_enough_is_gone_and_known_to_be_gone(api, settings):
    made = submit(api).json()
    end(settings, made["id"], {"faces": 8}, status="succeeded")
    long_ago = "2020-01-01T00:00:00.000000Z"
    queue_of(settings).connection.hset(f"rq:job:{made['id']}", "ended_at", long_ago)
    for link in ("self", "mesh", "report", "scan", "preview", "latent", "events"):
        problem(api.get(made["links"][link]), 410, "expired")
    (listed,) = api.get("/v1/completions?status=expired").json()["completions"]
    assert (listed["id"], listed["report"]) == (made["id"], None)


# Events


def stream(api, link, of=Completion, **headers):
    """The events of a stream that ends: name, id, and what each is about."""
    found = []
    with api.stream("GET", link, headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for block in answer.read().decode().strip().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if fields:
                found.append((fields["event"], fields["id"], of.model_validate(json.loads(fields["data"]))))
    return found


def test_events_tell_of_a_completion_until_it_has_ended(api, settings):
    made = submit(api).json()

    def play():
        for progress in ({"progress": 0.2}, {"progress": 0.4, "preview": 1}, {"progress": 0.6, "preview": 2}):
            begin(settings, made["id"], **progress)
            time.sleep(0.25)
        end(settings, made["id"], {"faces": 8}, status="succeeded")

    player = later(play)
    events = stream(api, made["links"]["events"])
    player.join()
    assert [name for name, _, _ in events] == ["status", "status", "preview", "preview", "status"]
    assert [now.preview for _, _, now in events] == [0, 0, 1, 2, 2]
    assert [now.status for name, _, now in events if name == "status"] == ["queued", "running", "succeeded"]


def test_a_client_that_comes_back_is_told_only_what_is_new(api, settings):
    made = submit(api).json()
    begin(settings, made["id"], preview=1)
    end(settings, made["id"], {"faces": 8}, status="succeeded")
    whole = stream(api, made["links"]["events"])
    assert [name for name, _, _ in whole] == ["status", "preview"]
    assert not stream(api, made["links"]["events"], **{"Last-Event-ID": whole[-1][1]})
    again = stream(api, made["links"]["events"], **{"Last-Event-ID": f"running.1.{'0' * 16}"})
    assert [name for name, _, _ in again] == ["status"]


def test_many_who_watch_cost_one_look_at_a_time(api, settings):
    service = api.app.state.service
    looks, look = [], service.watcher.look

    def counted(completion_ids):
        looks.append(len(completion_ids))
        return look(completion_ids)

    service.watcher.look = counted
    made = submit(api).json()
    threads = [threading.Thread(target=api.get, args=(made["links"]["self"] + "?wait=1",)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 3 < len(looks) < 20 and set(looks) == {1}
    time.sleep(0.3)
    before = len(looks)
    time.sleep(0.3)
    assert len(looks) == before, "nobody watches, and still it looks"
