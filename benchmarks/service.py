"""The service beside what it could be at best: `python -m benchmarks.service`.

(a) How many scans and questions a second the API takes, beside a bare FastAPI application that reads the same
    form and answers the same bytes, under uvicorn as it is: both log each submission, the bare one each
    question too. Each client asks for a completion of its own. And how long 200 clients at once wait for a
    status. Clients, API, readers and queue share the cores that there are, while the bare application has
    nobody to share with but the clients: so it is told, too, what each of these processes takes for one.
(b) 16 queued completions by one worker: as one batch, and one at a time.
(c) What importing the API costs.
(d) How soon a running completion is cancelled, and its worker free for the next.

All of one run, on the CPU. The model is a small one, trained on the spot, unless --checkpoint names another.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from uuid import uuid4

import httpx2
from redis import Redis

from app.embedded import EmbeddedQueue
from app.queue import CompletionQueue, connect
from app.scans import Attachments, Upload, read_scan
from app.schemas import CompletionOptions
from app.settings import Settings, get_settings
from app.storage import Storage
from benchmarks.serving import ROOT, eventually, free_port, half_ball, save_small_model, start_service
from worker import tasks
from worker.listener import Listener

JOBS = 16
FEW, CLIENTS = 8, 200
READERS = Settings.model_fields["parse_slots"].default
BARE = """
from fastapi import FastAPI, Response, UploadFile
app = FastAPI()
body = {body!r}
@app.post("/v1/completions")
async def submit(model: str, scan: list[UploadFile]) -> Response:
    [await file.read() for file in scan]
    return Response(body, 202, media_type="application/json")
@app.get("/v1/completions/{{completion_id}}")
async def status(completion_id: str) -> Response:
    return Response(body, media_type="application/json")
"""
BOUNDARY = "a-boundary"
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Web:
    """An application that listens."""

    url: str
    pid: int
    queue: int | None = None
    """The process of its queue, if it has one."""


@dataclass(frozen=True)
class Figures:
    """Of a turn, or medians of several."""

    rate: float  # answers a second
    p99_s: float
    own_s: float  # CPU of its process, for one answer
    children_s: float  # of that process's children
    queue_s: float
    clients_s: float

    def spent(self) -> str:
        """CPU for one answer, by process."""
        named = {"application": self.own_s, "readers": self.children_s, "queue": self.queue_s}
        told = [f"{name} {1000 * spent:.2f}" for name, spent in named.items() if spent]
        return ", ".join([*told, f"clients {1000 * self.clients_s:.2f}"])

    def busiest_s(self) -> float:
        """The process that all wait for where none waits for a core. There are several readers."""
        return max(self.own_s, self.queue_s, self.children_s / READERS)


@contextmanager
def running(
    command: list[str], environment: dict[str, str] | None = None, cwd: Path = ROOT, log: Path | None = None
) -> Iterator[int]:
    """The id of a process, which lives as long as it is needed."""
    with ExitStack() as stack:
        told = None if log is None else stack.enter_context(log.open("wb"))
        env = {**os.environ, **(environment or {})}
        process = subprocess.Popen(command, env=env, cwd=cwd, stdout=told, stderr=told)
        try:
            yield process.pid
        finally:
            process.terminate()
            process.wait()


@contextmanager
def queue_at(folder: Path, model: Path) -> Iterator[tuple[Settings, int]]:
    """A queue of its own: the settings of a service on it, and the id of its process."""
    embedded = EmbeddedQueue(folder)
    with running(embedded.command()) as pid:
        eventually(embedded.socket.exists)
        settings = Settings(
            redis_url=embedded.url,
            data_dir=folder,
            checkpoints_dir=model.parent,
            max_queued=100_000,
            device="cpu",
        )
        yield settings, pid


@contextmanager
def web(
    command: str, environment: dict[str, str], cwd: Path, log: Path, queue: int | None = None
) -> Iterator[Web]:
    """An ASGI application. What it logs goes into a file."""
    port = free_port()
    words = [sys.executable, "-m", "uvicorn", *command.split(), "--port", str(port)]
    with running(words, environment, cwd, log) as pid:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: answers(url), timeout_s=60)
        yield Web(url, pid, queue)


def busy_s(pid: int) -> float:
    """Seconds of a core that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children_of(pid: int) -> list[int]:
    """Those that a process has started from any of its threads."""
    lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for text in lists for child in text.split()]


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/openapi.json").status_code == 200
    except httpx2.TransportError:
        return False


def get_request(path: str) -> bytes:
    """A GET on a connection that is kept."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def post_request(path: str, scan: bytes) -> bytes:
    """A form with one file."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="scan"; filename="a.npy"\r\n\r\n'
    form = head.encode() + scan + f"\r\n--{BOUNDARY}--\r\n".encode()
    kind = f"Content-Type: multipart/form-data; boundary={BOUNDARY}"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{kind}\r\nContent-Length: {len(form)}\r\n\r\n"
    return head.encode() + form


async def rate(url: str, requests: Sequence[bytes], seconds: float) -> tuple[float, float]:
    """Answers a second to so many clients at once, and the 99th percentile of an answer's time, seconds.

    Each client sends one of the requests, again and again.

    The clients send bytes and read bytes: with an HTTP library they would be the slower half.
    """
    times: list[float] = []
    port = httpx2.URL(url).port
    give_up = time.perf_counter() + seconds

    async def one(request: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (start := time.perf_counter()) < give_up:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 20"), head
            await reader.readexactly(int(LENGTH.search(head)[1]))  # type: ignore[index]
            times.append(time.perf_counter() - start)
        writer.close()

    await asyncio.gather(*map(one, requests))
    return len(times) / seconds, statistics.quantiles(times, n=100)[98]


def throughput(folder: Path, model: Path, seconds: float) -> None:
    """(a)"""
    scan, submission = half_ball(), f"/v1/completions?model={model.name}"
    with queue_at(folder, model) as (settings, queue):
        command = "app.main:create_app --factory --log-level warning"  # as `python -m app` starts it
        with web(command, settings.environment(), ROOT, folder / "ours.log", queue) as ours:
            with httpx2.Client(base_url=ours.url) as client:
                made = [client.post(submission, files={"scan": ("a.npy", scan)}) for _ in range(CLIENTS)]
            (folder / "bare.py").write_text(BARE.format(body=made[0].content))
            gets = [get_request(one.json()["links"]["self"]) for one in made]
            with web("bare:app", {}, folder, folder / "bare.log") as bare:
                few = side_by_side(ours, bare, gets[:FEW], seconds)
                crowd = side_by_side(ours, bare, gets, seconds)
                posts = side_by_side(ours, bare, [post_request(submission, scan)] * FEW, seconds)
    for name, (ours_, bare_) in (("POST, 202", posts), ("GET status", few)):
        share = ours_.rate / bare_.rate
        told = f"{ours_.rate:.0f}/s beside {bare_.rate:.0f}/s bare: {share:.2f} of it"
        print(f"(a) {name}: {told}, on {len(os.sched_getaffinity(0))} cores")
        print(f"(a)   CPU for one, ms: {ours_.spent()}; bare: {bare_.spent()}")
        print(f"(a)   were each process alone on a core: {bare_.own_s / ours_.busiest_s():.2f} of it")
    slowest, beside = (1000 * figures.p99_s for figures in crowd)
    print(f"(a) GET status, {CLIENTS} clients: p99 {slowest:.0f} ms, bare {beside:.0f} ms")


def side_by_side(ours: Web, bare: Web, requests: Sequence[bytes], seconds: float) -> list[Figures]:
    """Of each the medians over three turns, one after the other: both see the same machine."""
    turns = [[figures_of(web, requests, seconds) for web in (ours, bare)] for _ in range(3)]
    return [
        Figures(*(statistics.median(values) for values in zip(*map(astuple, each), strict=True)))
        for each in zip(*turns, strict=True)
    ]


def figures_of(web: Web, requests: Sequence[bytes], seconds: float) -> Figures:
    """Of one turn."""

    def spent() -> tuple[float, float, float, float]:
        readers = sum(map(busy_s, children_of(web.pid)))
        return busy_s(web.pid), readers, busy_s(web.queue) if web.queue else 0.0, time.process_time()

    before = spent()
    answered, p99_s = asyncio.run(rate(web.url, requests, seconds))
    for_one = ((now - then) / (answered * seconds) for now, then in zip(spent(), before, strict=True))
    return Figures(answered, p99_s, *for_one)


def batching(folder: Path, model: Path) -> None:
    """(b)"""
    scan = read_scan([Upload(half_ball(), "ball.npy")], Attachments(["[10, 0, 9]"]))
    with queue_at(folder, model) as (settings, _):
        os.environ |= settings.environment()
        get_settings.cache_clear()
        tasks.completer(model.name)
        seconds = {slots: _worked(settings, scan, model.name, slots) for slots in (1, JOBS)}
    ratio = seconds[1] / seconds[JOBS]
    print(f"(b) {JOBS} queued completions: {seconds[1]:.1f} s one at a time, ", end="")
    print(f"{seconds[JOBS]:.1f} s as one batch: {ratio:.2f} times as fast")


def _worked(settings: Settings, scan: object, model: str, slots: int) -> float:
    """Seconds that a worker of so many slots takes for the jobs."""
    queue = CompletionQueue(connect(settings, 1), settings)
    names = [uuid4().hex for _ in range(JOBS)]
    for seed, name in enumerate(names):
        Storage(settings.data_dir).save_scan(name, scan, {})  # type: ignore[arg-type]
        options = CompletionOptions(model=model, resolution=32, seed=seed)
        queue.submit(name, options)
    start = time.perf_counter()
    Listener(connect(settings, 1), settings, slots).listen(burst=True)
    took = time.perf_counter() - start
    assert all((one := queue.get(name)) is not None and one.status == "succeeded" for name in names)
    return took


def importing() -> None:
    """(c)"""
    code = (
        "import time; start = time.perf_counter(); import app.main; took = time.perf_counter() - start; "
        "held = open('/proc/self/statm').read().split()[1]; "
        "print(took, int(held) * 4096 / 2**20, time.process_time())"
    )
    told = [
        subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split() for _ in range(3)
    ]
    seconds, memory, busy = (min(float(one[index]) for one in told) for index in range(3))
    print(f"(c) importing the API: {seconds:.2f} s, {busy:.2f} s of a core, {memory:.0f} MiB")


def cancelling(folder: Path, model: Path, count: int) -> None:
    """(d)"""
    service = start_service(folder, model, device="cpu")
    told, freed = [], []
    try:
        service.ready()
        started = Redis.from_url(EmbeddedQueue(folder).url)
        scan = half_ball()

        def submit() -> str:
            client = service.client
            return client.submit(scan, "a.npy", model=model.name, pose="upright", solver="adam").id

        first = submit()
        for _ in range(count):
            following = submit()
            eventually(lambda one=first: service.client.status(one).phase == "fit", timeout_s=120)
            start = time.perf_counter()
            assert service.client.cancel(first).status == "cancelled"
            told.append(time.perf_counter() - start)
            key = f"rq:job:{following}"
            eventually(lambda key=key: started.hget(key, "status") == b"started", interval_s=0.002)
            freed.append(time.perf_counter() - start)
            first = following
        service.client.cancel(first)
    finally:
        service.stop()
    for what, times in (("status is `cancelled`", told), ("the worker has begun the next one", freed)):
        print(
            f"(d) cancelling: {what} after {1000 * statistics.median(times):.0f} ms (median of {count}), ",
            end="",
        )
        print(f"{1000 * max(times):.0f} ms at most")


def main(arguments: list[str] | None = None) -> int:
    """All parts, or those that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, help="folder of a model to use instead")
    parser.add_argument("--parts", default="abcd", help="which of them (abcd)")
    parser.add_argument(
        "--quick", action="store_true", help="a second for each figure of (a), 3 cancellations"
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = (options.checkpoint or save_small_model(folder / "models" / "balls")).resolve()
        if "a" in options.parts:
            throughput(folder / "a", model, 1 if options.quick else 5)
        if "b" in options.parts:
            batching(folder / "b", model)
        if "c" in options.parts:
            importing()
        if "d" in options.parts:
            cancelling(folder / "d", model, 3 if options.quick else 10)
    return 0


if __name__ == "__main__":
    sys.exit(main())
