"""An event loop asks the queue over a wire of its own; a patient client gets what the wire cannot."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
import zlib
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from threading import Thread

import hiredis
import pytest
from asking import queue_of, submit
from processes import eventually, free_port
from redis import Redis
from redis.exceptions import RedisError, ResponseError
from rq import Retry
from rq.utils import now, str_to_date

from app.embedded import EmbeddedQueue
from app.queue import INTERPOLATE, TASK, Ticket, connect
from app.queue.wire import Exchange, Wire
from app.schemas import CompletionOptions, InterpolationEnd, InterpolationOptions
from app.settings import Settings

ECHO = "return ARGV"
BETWEEN = InterpolationOptions(
    model="tiny", start=InterpolationEnd(shape="one"), end=InterpolationEnd(shape="two")
)


class Server:
    """A queue of one's own, to be stopped and started."""

    def __init__(self, folder: Path) -> None:
        self.queue = EmbeddedQueue(folder)
        self.url = self.queue.url
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.queue.command(), stdout=subprocess.DEVNULL)
        eventually(lambda: answers(Redis.from_url(self.url)))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill()


def answers(redis: Redis) -> bool:
    """Whether it is there."""
    try:
        return bool(redis.ping())
    except RedisError:
        return False


def echo(redis: Redis, *words: object) -> Exchange[list[str]]:
    return Exchange(redis.register_script(ECHO), [], words, lambda told: [word.decode() for word in told])


def test_what_is_asked_over_a_wire_is_what_a_client_is_told(valkey):
    redis = Redis.from_url(valkey)
    wire = Wire(redis)

    async def ask() -> list[list[str]]:
        return [await echo(redis, *words).over(wire) for words in (("a", 1, b"\r\n"), ("ü" * 100_000,), ())]

    told = asyncio.run(ask())
    assert told == [["a", "1", "\r\n"], ["ü" * 100_000], []]
    assert told[0] == echo(redis, "a", 1, b"\r\n").wait()


def test_a_wire_is_made_anew_after_the_queue_was_killed_and_for_another_loop(server):
    redis = connect(Settings(redis_url=server.url), 3)
    wire = Wire(redis)

    async def ask() -> None:
        assert await wire.ask("PING") == b"PONG"
        server.kill()
        with pytest.raises(OSError):
            await wire.ask("PING")
        with pytest.raises(OSError):
            await wire.ask("PING")
        server.start()
        assert await wire.ask("PING") == b"PONG"

    asyncio.run(ask())
    assert asyncio.run(wire.ask("PING")) == b"PONG"


def test_an_outage_is_ridden_over_and_no_loop_waits_for_it(server):
    redis = connect(Settings(redis_url=server.url), 3)
    wire, turns = Wire(redis), []

    async def count() -> None:
        while True:
            turns.append(time.monotonic())
            await asyncio.sleep(0.01)

    async def ask() -> list[str]:
        await wire.ask("PING")
        server.kill()
        Thread(target=lambda: (time.sleep(0.5), server.start())).start()
        counting = asyncio.create_task(count())
        told = await echo(redis, "a").over(wire)  # of which the new server does not know the script, either
        counting.cancel()
        return told

    assert asyncio.run(ask()) == ["a"]
    assert max(after - before for before, after in pairwise(turns)) < 0.3


def test_an_answer_that_comes_too_late_is_nobody_elses(server, monkeypatch):
    monkeypatch.setattr("app.queue.wire.PATIENCE_S", 0.2)
    redis = Redis.from_url(server.url)
    wire = Wire(redis)

    async def ask() -> None:
        redis.execute_command("CLIENT", "PAUSE", 500, "ALL")
        with pytest.raises(TimeoutError):
            await wire.ask("ECHO", "first")
        await asyncio.sleep(0.6)
        assert await wire.ask("ECHO", "second") == b"second"

    asyncio.run(ask())


def test_an_error_of_the_queue_is_raised_as_the_client_raises_it(valkey):
    redis = Redis.from_url(valkey)
    broken = Exchange(redis.register_script("return redis.call('LPUSH')"), [], [], list)
    with pytest.raises(ResponseError, match="Wrong number of args"):
        broken.wait()
    with pytest.raises(ResponseError, match="Wrong number of args"):
        asyncio.run(broken.over(Wire(redis)))
    with pytest.raises(hiredis.ReplyError):
        asyncio.run(Wire(redis).ask("NO-SUCH-THING"))


@pytest.mark.parametrize("user", ["", "someone"])
def test_a_wire_gives_password_and_database_over_tcp(tmp_path, user):
    port = free_port()
    command = [*EmbeddedQueue(tmp_path).command(), "--port", str(port), "--requirepass", "secret"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        admin = Redis.from_url(f"redis://:secret@127.0.0.1:{port}/0")
        eventually(lambda: answers(admin))
        admin.acl_setuser("someone", enabled=True, passwords=["+secret"], commands=["+@all"], keys=["*"])
        redis = Redis.from_url(f"redis://{user}:secret@127.0.0.1:{port}/3")
        redis.set("where", "in three")
        assert asyncio.run(Wire(redis).ask("GET", "where")) == b"in three"
        wrong = Redis.from_url(f"redis://{user}:wrong@127.0.0.1:{port}/3")
        with pytest.raises(hiredis.ReplyError, match="WRONGPASS"):
            asyncio.run(Wire(wrong).ask("GET", "where"))
    finally:
        process.kill()
        process.wait()


def test_where_there_is_tls_the_client_asks(valkey):
    with_tls = Wire(Redis.from_url("rediss://127.0.0.1:1/0"))
    assert asyncio.run(echo(Redis.from_url(valkey), "a").over(with_tls)) == ["a"]


def test_a_submission_is_answered_as_a_look_finds_it(api, api_for, settings):
    hook = {"webhook_url": "https://example.org/hook", "priority": "low", "resolution": 64}
    keyed = api_for(webhook_secret="whsec_" + "YQ" * 16)
    for made in (submit(api), submit(keyed, **hook)):
        assert made.status_code == 202, made.text
        look = api_for().get(made.headers["location"])  # of a process that remembers nothing
        assert (look.content, look.headers["etag"]) == (made.content, made.headers["etag"])


@pytest.mark.parametrize("options", [CompletionOptions(model="tiny", seed=3), BETWEEN])
def test_a_record_is_what_rq_would_write(settings, options):
    queue, at = queue_of(settings), now()
    ticket = Ticket("eve", warnings=["ü"], webhook_url="https://example.org/", request_id="r1")
    queue.submit("a1", options, ticket)
    task = TASK if isinstance(options, CompletionOptions) else INTERPOLATE
    job = queue.queue.create_job(
        task,
        args=("a1", options.model_dump()),
        job_id="b2",
        meta=queue.queue.fetch_job("a1").meta,
        result_ttl=settings.record_ttl_s,
        failure_ttl=settings.record_ttl_s,
        retry=Retry(max=settings.retries, enqueue_at_front=True),
        description=f"{task} a1",
    )
    queue.queue.enqueue_job(job)
    ours, theirs = (queue.connection.hgetall(f"rq:job:{name}") for name in ("a1", "b2"))
    for record in (ours, theirs):
        record[b"data"] = json.loads(zlib.decompress(record[b"data"]))
        record[b"meta"] = json.loads(record[b"meta"])
        for moment in (b"created_at", b"enqueued_at"):
            assert abs(str_to_date(record.pop(moment)) - at) < timedelta(seconds=5)
    assert ours == theirs
    known = {"owner": "eve", "warnings": ["ü"], "webhook_url": "https://example.org/", "request_id": "r1"}
    assert ours[b"meta"] == {**known, "priority": "normal"}
