"""Files are read in child processes: what hangs, crashes or swells there stays there."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from tempfile import TemporaryFile

import httpx2
import numpy as np
import pytest
from asking import problem, submit
from processes import eventually
from scan_files import INTRINSICS, depth_map, npy, png, sphere

from app.scans import INLINE, Attachments, Body, Limits, Readers, Scan, ScanRefused, Upload, read_scan
from app.scans.isolated import Child

DEPTH, MASK = depth_map()
RAW = "application/octet-stream"
GOOD = Body(npy(sphere()), RAW)


@pytest.fixture
def path(tmp_path):
    """Where what was read is to lie."""
    return tmp_path / "scan"


@pytest.fixture
def read(path):
    """The points of what readers make of a body."""

    def read(readers, body, *how):
        path.unlink(missing_ok=True)
        asyncio.run(readers.read(body, path, *how))
        return Scan.load(path).views[0].points

    return read


@pytest.fixture
def readers():
    made = Readers(count=1, memory=2**28, seconds=10)
    yield made
    made.close()


def test_a_child_reads_the_same_as_we_would(readers, path):
    uploads = [Upload(png(DEPTH), "d.png"), Upload(npy(sphere()), "a.npy")]
    identity = str(np.eye(4).tolist())
    texts = {"viewpoint": "[1, 2, 3]", "intrinsics": INTRINSICS, "camera_to_world": identity}
    files = [*(("scan", (upload.name, upload.data)) for upload in uploads), ("mask", ("m", png(MASK)))]
    request = httpx2.Request("POST", "http://localhost", data=texts, files=files)
    asyncio.run(readers.read(Body(request.read(), request.headers["content-type"]), path))
    apart = Scan.load(path)
    here = read_scan(uploads, Attachments(["[1, 2, 3]"], [INTRINSICS], [], [identity], [png(MASK)]))
    assert apart.up == here.up and apart.warnings == here.warnings
    for one, other in zip(apart.views, here.views, strict=True):
        np.testing.assert_array_equal(one.points, other.points)
        np.testing.assert_array_equal(one.viewpoint, other.viewpoint)


def test_a_large_body_is_handed_over_as_a_file(readers, read):
    data = npy(sphere(INLINE // 24))
    assert len(data) > INLINE
    with TemporaryFile() as file:
        file.write(data)
        points = read(readers, Body(file, RAW))
    np.testing.assert_array_equal(points, sphere(INLINE // 24))


def test_the_digest_tells_contents_and_not_how_they_were_packed(readers, tmp_path):
    def digest(number, boundary, **parts):
        request = httpx2.Request("POST", "http://localhost", headers=boundary, **parts)
        body = Body(request.read(), request.headers["content-type"])
        return asyncio.run(readers.read(body, tmp_path / str(number), digest=True)).digest

    one, two = ({"Content-Type": f"multipart/form-data; boundary={name}"} for name in ("one", "two"))
    files, place = {"scan": ("a.npy", npy(sphere()))}, {"viewpoint": "[1, 2, 3]"}
    first = digest(1, one, files=files, data=place)
    assert first == digest(2, two, files=files, data=place)
    assert first != digest(3, one, files=files)
    assert first != digest(4, one, files={"scan": ("a.npy", npy(sphere(400)))}, data=place)


def test_what_cannot_be_written_is_an_error_of_ours(readers, read, tmp_path):
    (tmp_path / "way").write_text("in the")
    with pytest.raises(NotADirectoryError):
        asyncio.run(readers.read(GOOD, tmp_path / "way" / "scan"))
    assert len(read(readers, GOOD)) == 500


def test_a_refusal_crosses_over_and_nothing_is_written(readers, read, path):
    with pytest.raises(ScanRefused) as refused:
        read(readers, Body(npy(sphere(5)), RAW))
    assert (refused.value.code, refused.value.status) == ("too_few_points", 422)
    with pytest.raises(ScanRefused, match="limit is 100"):
        read(readers, GOOD, Limits(points=100))
    assert not path.exists()


def test_a_crashed_reader_is_a_422_and_the_next_scan_has_a_new_one(readers, read):
    read(readers, GOOD)
    (child,) = readers.free
    os.kill(child.process.pid, signal.SIGKILL)
    with pytest.raises(ScanRefused) as refused:
        read(readers, GOOD)
    assert (refused.value.code, refused.value.status) == ("unreadable_scan", 422)
    assert len(read(readers, GOOD)) == 500


def test_an_error_of_a_library_is_a_422_and_costs_no_reader(readers, read, monkeypatch):
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


def test_a_hanging_reader_is_killed_in_time(readers, read):
    read(readers, GOOD)
    (child,) = readers.free
    readers.seconds = 0.3
    os.kill(child.process.pid, signal.SIGSTOP)  # as one that hangs in a library
    start = time.monotonic()
    with pytest.raises(ScanRefused) as refused:
        read(readers, GOOD)
    assert refused.value.code == "unreadable_scan" and time.monotonic() - start < 2
    eventually(lambda: child.process.poll() is not None)


def test_a_reader_that_swells_is_a_413_and_is_replaced(read):
    """50 MB of text become more numbers than 128 MiB hold."""
    readers = Readers(count=1, memory=2**27, seconds=30)
    with TemporaryFile() as text, pytest.raises(ScanRefused) as refused:
        text.write(b"1 2 3\n" * 4_000_000)
        read(readers, Body(text, "text/plain"), Limits(points=10**8))
    assert (refused.value.code, refused.value.status) == ("needs_too_much_memory", 413)
    assert not readers.free
    readers.close()


def test_a_reader_knows_no_secrets_and_writes_no_files_while_it_reads(monkeypatch):
    monkeypatch.setenv("DEEPSDF_WEBHOOK_SECRET", "secret")
    child = Child(2**28)
    try:
        environment = open(f"/proc/{child.process.pid}/environ", "rb").read()  # noqa: PTH123, SIM115
        assert b"DEEPSDF" not in environment and b"REDIS" not in environment
        asyncio.run(child.ask({"seconds": 60}, b"", 60))  # it tells what is missing, so it is there
        limits = open(f"/proc/{child.process.pid}/limits").read()  # noqa: PTH123, SIM115
        assert any(line.split()[:4] == ["Max", "file", "size", "0"] for line in limits.splitlines())
    finally:
        child.end()


def test_no_reader_outlives_its_parent():
    code = (
        "from app.scans import Body, Readers; import asyncio, os, pathlib\n"
        "readers = Readers(1, 2**28, 10)\n"
        "try: asyncio.run(readers.read(Body(b'x', 'text/plain'), pathlib.Path('x')))\n"
        "except Exception: pass\n"
        "print(readers.free[0].process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    pid = int(shown.stdout)
    eventually(lambda: not os.path.exists(f"/proc/{pid}"), timeout_s=5)  # noqa: PTH110


def test_scans_are_read_at_the_same_time_by_so_many_children(tmp_path):
    readers = Readers(count=2, memory=2**28, seconds=20)

    async def read_all():
        await asyncio.gather(*(readers.read(GOOD, tmp_path / str(number)) for number in range(8)))

    asyncio.run(read_all())
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert len(readers.free) == 2
    readers.close()


def test_a_reader_whose_request_is_given_up_is_not_used_again(readers, read, path):
    """Else the next one would be told what was meant for that."""
    read(readers, GOOD)
    (child,) = readers.free

    async def given_up():
        os.kill(child.process.pid, signal.SIGSTOP)
        async with asyncio.timeout(0.2):
            await readers.read(GOOD, path)

    with pytest.raises(TimeoutError):
        asyncio.run(given_up())
    assert not readers.free
    assert len(read(readers, GOOD)) == 500


def test_an_upload_that_kills_its_reader_does_not_hurt_the_service(api, monkeypatch):
    async def killed(*_, **__):
        raise ScanRefused("unreadable_scan", "The file made its reader fail. Save it anew.")

    with monkeypatch.context() as patch:
        patch.setattr(Readers, "read", killed)
        problem(submit(api), 422, "unreadable_scan")
    assert submit(api).status_code == 202
