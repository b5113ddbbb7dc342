"""What happens by itself: counting, sweeping, and telling webhooks."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count

import pytest
from asking import begin, end, kept, problem, queue_of, submit
from processes import eventually
from standardwebhooks import Webhook

from app.housekeeping import Housekeeper
from app.schemas import Completion
from app.storage import Storage
from app.webhooks import Sender, is_public

SECRET = "whsec_" + "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0"
LONG_AGO = "2020-01-01T00:00:00.000000Z"


def housekeeper_of(settings, **other):
    settings = settings.model_copy(update=other)
    return Housekeeper(queue_of(settings), Storage(settings.data_dir), settings)


@pytest.fixture
def quiet(api_for, monkeypatch):
    """An API whose own housekeeper does nothing, so that the test's does it all."""
    monkeypatch.setattr(Housekeeper, "start", lambda self: None)
    return api_for(webhook_secret=SECRET)


# Counting


def test_what_has_ended_is_counted_once_however_many_count(quiet, settings):
    for status in ("succeeded", "cancelled", "cancelled"):
        end(settings, submit(quiet).json()["id"], status=status)
    submit(quiet)
    housekeepers = [housekeeper_of(settings) for _ in range(4)]
    threads = [threading.Thread(target=housekeeper.settle) for housekeeper in housekeepers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sums = queue_of(settings).upkeep.tallies()
    assert {name: value for name, value in sums.items() if name.startswith("jobs")} == {
        "jobs|succeeded|tiny": 1,
        "jobs|cancelled|tiny": 2,
    }
    assert queue_of(settings).connection.hlen("deepsdf:open") == 1


# Sweeping


def test_what_has_expired_is_swept_from_the_disk_and_nothing_else(quiet, settings):
    old, ended, waiting = (submit(quiet).json()["id"] for _ in range(3))
    for completion_id in (old, ended):
        end(settings, completion_id, {"faces": 8}, status="succeeded")
    queue_of(settings).connection.hset(f"rq:job:{old}", "ended_at", LONG_AGO)
    assert sum(housekeeper_of(settings).sweep() for _ in range(2)) == 1
    assert kept(settings) == {ended, waiting}
    problem(quiet.get(f"/v1/completions/{old}/mesh"), 410, "expired")


def test_an_interpolation_expires_and_is_swept_too(quiet, settings):
    ends = {"start": {"shape": "a"}, "end": {"shape": "b"}}
    made = quiet.post("/v1/interpolations", json={"model": "tiny", **ends}).json()
    end(settings, made["id"], status="succeeded")
    Storage(settings.data_dir).save_mesh(made["id"], b"glb", "glb")
    assert housekeeper_of(settings).sweep() == 0
    queue_of(settings).connection.hset(f"rq:job:{made['id']}", "ended_at", LONG_AGO)
    assert housekeeper_of(settings).sweep() == 1
    problem(quiet.get(made["links"]["mesh"]), 410, "expired")


def test_what_the_queue_has_forgotten_is_swept_only_once_it_is_old(quiet, settings):
    submit(quiet)
    queue_of(settings).connection.flushall()
    assert housekeeper_of(settings).sweep() == 0
    time.sleep(1.1)
    assert housekeeper_of(settings, result_ttl_s=1).sweep() == 1
    assert not kept(settings)


def test_what_redis_has_dropped_leaves_the_lists(quiet, settings):
    first, second = submit(quiet).json()["id"], submit(quiet).json()["id"]
    queue = queue_of(settings)
    queue.connection.delete(f"rq:job:{first}")
    housekeeper_of(settings).sweep()
    assert queue.connection.zrange("deepsdf:completions:", 0, -1) == [second.encode()]


def test_what_a_worker_writes_just_after_a_deletion_goes_too(quiet, settings, monkeypatch):
    made = submit(quiet).json()
    begin(settings, made["id"])
    assert quiet.delete(made["links"]["self"]).status_code == 204
    Storage(settings.data_dir).save_mesh(made["id"], b"glb", "glb")
    problem(quiet.get(made["links"]["mesh"]), 404, "unknown_completion")
    housekeeper = housekeeper_of(settings)
    housekeeper.sweep()
    assert kept(settings)
    monkeypatch.setattr("app.housekeeping.LAST_WRITES_S", 0.0)
    housekeeper.sweep()
    assert not kept(settings)


# Webhooks


class Receiver(ThreadingHTTPServer):
    """Keeps what it is sent, and answers what it is told to answer."""

    def __init__(self, *answers):
        self.got, self.answers = [], list(answers) or [204]
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://hooks.example:{self.server_port}/hook?a=1"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append((self.path, dict(self.headers), body))
        status = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
        self.send_response(status)
        if status == 302:
            self.send_header("Location", self.server.url)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def receiver():
    made = []

    def make(*answers):
        made.append(Receiver(*answers))
        return made[-1]

    yield make
    for one in made:
        one.shutdown()
        one.server_close()


def told(api, settings, receiver, **other):
    """A completion that ended and was told to the receiver until that was over."""
    made = submit(api, webhook_url=receiver.url).json()
    end(settings, made["id"], {"faces": 8}, status="succeeded")
    housekeeper = housekeeper_of(
        settings, **{"webhook_secret": SECRET, "webhook_delays_s": [0.05, 0.05], **other}
    )
    housekeeper.sender = Sender(SECRET, private_addresses=True, resolve=lambda *_: ["127.0.0.1"])
    housekeeper.settle()

    def over():
        housekeeper.deliver()
        return api.get(made["links"]["self"]).json()["webhook"]["state"] != "waiting"

    eventually(over, timeout_s=10, interval_s=0.05)
    housekeeper.stop()
    return Completion.model_validate(api.get(made["links"]["self"]).json())


def test_a_webhook_is_told_of_the_end_and_can_check_who_tells(quiet, settings, receiver):
    hook = receiver(204)
    done = told(quiet, settings, hook)
    ((path, headers, body),) = hook.got
    assert path == "/hook?a=1"
    event = Webhook(SECRET).verify(body, headers)
    assert event["type"] == "completion.succeeded"
    assert event["data"]["id"] == done.id and "owner" not in event["data"]
    assert (done.webhook.state, [attempt.status for attempt in done.webhook.attempts]) == ("delivered", [204])


def test_a_webhook_is_tried_again_and_every_attempt_is_told(quiet, settings, receiver):
    hook = receiver(500, 302, 200)
    done = told(quiet, settings, hook)
    assert [attempt.status for attempt in done.webhook.attempts] == [500, 302, 200]
    assert len({headers["webhook-id"] for _, headers, _ in hook.got}) == 1


@pytest.mark.parametrize(("answer", "attempts"), [(503, 3), (410, 1)])
def test_a_webhook_that_fails_for_good_is_given_up(quiet, settings, receiver, answer, attempts):
    done = told(quiet, settings, receiver(answer))
    assert (done.webhook.state, len(done.webhook.attempts)) == ("failed", attempts)


def test_no_webhook_is_told_by_two_at_once_and_none_of_what_is_gone(quiet, settings):
    deliveries = queue_of(settings).deliveries
    with deliveries.connection.pipeline() as pipe:
        for number in range(5):
            deliveries.schedule(pipe, f"{number:032x}")
        pipe.execute()
    time.sleep(0.01)
    first, second, third = deliveries.take(3), deliveries.take(3), deliveries.take(3)
    assert (len(first), len(second), third) == (3, 2, []) and not set(first) & set(second)
    assert deliveries.take(0) == []
    housekeeper = housekeeper_of(settings, webhook_secret=SECRET)
    housekeeper._deliver(first[0])
    assert deliveries.connection.zscore("deepsdf:webhooks", first[0]) is None
    housekeeper.stop()


def test_a_webhook_is_refused_where_there_is_no_secret(api):
    problem(submit(api, webhook_url="https://example.org/hook"), 400, "no_webhooks")


@pytest.mark.parametrize(
    "url", ["ftp://example.org", "https://", "/hook", "https://a:b@example.org", "javascript:1", "http://[::"]
)
def test_a_webhook_must_be_an_address(quiet, url):
    assert problem(submit(quiet, webhook_url=url), 400, "invalid_options").errors[0].pointer == (
        "/query/webhook_url"
    )


PRIVATE = ["127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"]
PRIVATE += ["224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1"]
PRIVATE += ["::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "192.0.2.1"]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_refused(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "1.1.1.1", "2606:4700:4700::1111"])
def test_an_address_of_the_internet_is_public(address):
    assert is_public(address)


def completion():
    return Completion.model_validate(
        {
            "id": "0" * 32,
            "status": "succeeded",
            "options": {},
            "created_at": "2026-01-01T00:00:00Z",
            "links": dict.fromkeys(
                ("self", "events", "scan", "preview", "mesh", "report", "latent", "picture", "cancel"), "/"
            ),
        }
    )


def test_one_private_address_among_public_ones_is_enough_to_refuse(receiver):
    hook = receiver()
    sender = Sender(SECRET, resolve=lambda *_: ["93.184.216.34", "127.0.0.1"])
    assert "public" in sender.send(hook.url, completion()).error
    for literal in ("127.0.0.1", "[::1]", "2130706433", "0x7f.1", "localhost"):
        attempt = Sender(SECRET).send(f"http://{literal}:{hook.server_port}/", completion())
        assert attempt.error and attempt.status is None, literal
    assert not hook.got


def test_a_name_that_changes_between_check_and_connection_gains_nothing(receiver, monkeypatch):
    """DNS rebinding: the first answer is public, later ones lead to us. The first must be connected to."""
    hook, asked = receiver(), count()
    connected = []

    def rebinding(*_):
        return ["127.0.0.1"] if next(asked) else ["192.0.2.7"]

    def connect(self, host, *_):
        connected.append(host)
        raise OSError("nobody there")

    monkeypatch.setattr("app.webhooks.is_public", lambda address: address != "127.0.0.1")
    monkeypatch.setattr("httpcore2.SyncBackend.connect_tcp", connect)
    attempt = Sender(SECRET, resolve=rebinding).send(hook.url, completion())
    assert attempt.error and connected == ["192.0.2.7"] and not hook.got


def test_a_receiver_that_never_finishes_does_not_hold_us(monkeypatch):
    monkeypatch.setattr("app.webhooks.PATIENCE_S", 0.5)

    class Slow(Handler):
        def do_POST(self):
            for _ in range(100):
                self.wfile.write(b"H")
                self.wfile.flush()
                time.sleep(0.1)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    start = time.monotonic()
    attempt = Sender(SECRET, private_addresses=True).send(
        f"http://127.0.0.1:{server.server_port}", completion()
    )
    assert attempt.error and time.monotonic() - start < 3
    server.shutdown()
    server.server_close()


def test_an_event_is_what_the_document_says(quiet, settings, receiver):
    hook = receiver()
    told(quiet, settings, hook)
    event = json.loads(hook.got[0][2])
    assert event.keys() == {"type", "timestamp", "data"}
    assert event["data"]["links"]["mesh"].endswith("/mesh")
