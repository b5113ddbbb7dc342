"""Files are read in child processes: what hangs, crashes or swells there stays there."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from asking import problem, submit
from processes import eventually
from scan_files import INTRINSICS, depth_map, npy, png, sphere

from app.scans import Attachments, Limits, Readers, Scan, ScanRefused, Upload, read_scan
from app.scans.isolated import Child, _packed

DEPTH, MASK = depth_map()
GOOD = [Upload(npy(sphere()), "a.npy")]


def read(readers, *request):
    return asyncio.run(readers.read(*request))


@pytest.fixture
def readers():
    made = Readers(count=1, memory=2**28, seconds=10)
    yield made
    made.close()


def test_a_child_reads_the_same_as_we_would(readers):
    uploads = [Upload(png(DEPTH), "d.png"), Upload(npy(sphere()), "a.npy")]
    identity = str(np.eye(4).tolist())
    beside = Attachments(["[1, 2, 3]"], [INTRINSICS], [], [identity], [png(MASK)])
    apart = Scan.from_bytes(read(readers, uploads, beside).data)
    here = read_scan(uploads, beside)
    assert apart.up == here.up and apart.warnings == here.warnings
    for one, other in zip(apart.views, here.views, strict=True):
        np.testing.assert_array_equal(one.points, other.points)
        np.testing.assert_array_equal(one.viewpoint, other.viewpoint)


def test_a_refusal_crosses_over(readers):
    with pytest.raises(ScanRefused) as refused:
        read(readers, [Upload(npy(sphere(5)), "a.npy")])
    assert (refused.value.code, refused.value.status) == ("too_few_points", 422)
    with pytest.raises(ScanRefused, match="limit is 100"):
        read(readers, GOOD, None, Limits(points=100))


def test_a_crashed_reader_is_a_422_and_the_next_scan_has_a_new_one(readers):
    read(readers, GOOD)
    (child,) = readers.free
    os.kill(child.process.pid, signal.SIGKILL)
    with pytest.raises(ScanRefused) as refused:
        read(readers, GOOD)
    assert (refused.value.code, refused.value.status) == ("unreadable_scan", 422)
    assert len(Scan.from_bytes(read(readers, GOOD).data).views[0].points) == 500


def test_an_error_of_a_library_is_a_422_and_costs_no_reader(readers, monkeypatch):
    async def stumbling(*_):
        return {"broken": "IndexError: of some parser"}

    read(readers, GOOD)
    (child,) = readers.free
    with monkeypatch.context() as patch:
        patch.setattr(child, "ask", stumbling)
        with pytest.raises(ScanRefused) as refused:
            read(readers, GOOD)
    assert (refused.value.code, refused.value.status) == ("unreadable_scan", 422)
    assert readers.free == [child]
    read(readers, GOOD)


def test_a_hanging_reader_is_killed_in_time(readers):
    read(readers, GOOD)
    (child,) = readers.free
    readers.seconds = 0.3
    os.kill(child.process.pid, signal.SIGSTOP)  # as one that hangs in a library
    start = time.monotonic()
    with pytest.raises(ScanRefused) as refused:
        read(readers, GOOD)
    assert refused.value.code == "unreadable_scan" and time.monotonic() - start < 2
    eventually(lambda: child.process.poll() is not None)


def test_a_reader_that_swells_is_a_413_and_is_replaced():
    """50 MB of text become more numbers than 128 MiB hold."""
    readers = Readers(count=1, memory=2**27, seconds=30)
    text = b"1 2 3\n" * 4_000_000
    with pytest.raises(ScanRefused) as refused:
        read(readers, [Upload(text, "a.xyz")], None, Limits(points=10**8))
    assert (refused.value.code, refused.value.status) == ("needs_too_much_memory", 413)
    assert not readers.free
    readers.close()


def test_a_reader_knows_no_secrets_and_writes_no_files(monkeypatch):
    monkeypatch.setenv("DEEPSDF_WEBHOOK_SECRET", "secret")
    child = Child(2**28)
    try:
        environment = open(f"/proc/{child.process.pid}/environ", "rb").read()  # noqa: PTH123, SIM115
        assert b"DEEPSDF" not in environment and b"REDIS" not in environment
        asyncio.run(child.ask(*_packed(GOOD, Attachments(), Limits(), 60), 60))
        limits = open(f"/proc/{child.process.pid}/limits").read()  # noqa: PTH123, SIM115
        assert any(line.split()[:4] == ["Max", "file", "size", "0"] for line in limits.splitlines())
    finally:
        child.end()


def test_no_reader_outlives_its_parent():
    code = (
        "from app.scans import Readers, Upload; import asyncio, os\n"
        "readers = Readers(1, 2**28, 10)\n"
        "try: asyncio.run(readers.read([Upload(b'x', 'a.xyz')]))\n"
        "except Exception: pass\n"
        "print(readers.free[0].process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    pid = int(shown.stdout)
    eventually(lambda: not os.path.exists(f"/proc/{pid}"), timeout_s=5)  # noqa: PTH110


def test_scans_are_read_at_the_same_time_by_so_many_children():
    readers = Readers(count=2, memory=2**28, seconds=20)

    async def read_all():
        return await asyncio.gather(*(readers.read(GOOD) for _ in range(8)))

    assert len({packed.data for packed in asyncio.run(read_all())}) == 1
    assert len(readers.free) == 2
    readers.close()


def test_a_reader_whose_request_is_given_up_is_not_used_again(readers):
    """Else the next one would be told what was meant for that."""
    read(readers, GOOD)
    (child,) = readers.free

    async def given_up():
        os.kill(child.process.pid, signal.SIGSTOP)
        async with asyncio.timeout(0.2):
            await readers.read(GOOD)

    with pytest.raises(TimeoutError):
        asyncio.run(given_up())
    assert not readers.free
    assert len(Scan.from_bytes(read(readers, GOOD).data).views[0].points) == 500


def test_an_upload_that_kills_its_reader_does_not_hurt_the_service(api, monkeypatch):
    async def killed(*_):
        raise ScanRefused("unreadable_scan", "The file made its reader fail. Save it anew.")

    with monkeypatch.context() as patch:
        patch.setattr(Readers, "read", killed)
        problem(submit(api), 422, "unreadable_scan")
    assert submit(api).status_code == 202
