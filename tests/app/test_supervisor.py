"""Children are started again, unless that is hopeless; as many workers to a device as shall be."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from app import supervisor
from app.__main__ import _children
from app.settings import Settings
from app.supervisor import Child, Supervisor

MAX_ENDS = 3

pytestmark = pytest.mark.usefixtures("own_signals")


def mortal(log: Path) -> Child:
    """A process that notes that it was there, and ends."""
    return Child("mortal", [sys.executable, "-S", "-c", f"open({str(log)!r}, 'a').write('x')"])


@pytest.fixture(autouse=True)
def soon_given_up(monkeypatch):
    """Each end makes the pause before the next start longer."""
    monkeypatch.setattr(supervisor, "MAX_ENDS", MAX_ENDS)


def test_a_child_that_ends_at_once_again_and_again_is_given_up(tmp_path):
    child = mortal(tmp_path / "log")
    assert Supervisor([child], patience_s=1).run() == 1
    assert (tmp_path / "log").read_text() == "x" * MAX_ENDS


def test_a_child_that_has_lived_a_while_is_started_again_however_often_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "LIVED_S", 0.0)
    running = Supervisor([mortal(tmp_path / "log")], patience_s=1)

    def enough() -> bool:
        running.stopping = (tmp_path / "log").exists() and len((tmp_path / "log").read_text()) > MAX_ENDS + 2
        return True

    running.children[0].ready = enough
    start = time.monotonic()
    assert running.run() == 0
    assert time.monotonic() - start < 20


ENDS_SLOWLY = """
import signal, sys, time
def end(*_):
    time.sleep(1.0)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
open(sys.argv[1], "w")
time.sleep(60)
"""


def test_those_of_one_kind_are_stopped_at_the_same_time(tmp_path):
    def slow(name: str) -> Child:
        there = tmp_path / name
        return Child(
            name, [sys.executable, "-S", "-c", ENDS_SLOWLY, str(there)], ready=there.exists, kind="slow"
        )

    def enough() -> bool:
        running.stopping = True
        return True

    slow_ones = [slow(name) for name in "abc"]
    running = Supervisor([*slow_ones, Child("last", ["sleep", "60"], ready=enough)], patience_s=10)
    start = time.monotonic()
    assert running.run() == 0
    assert 1.0 < time.monotonic() - start < 3.0
    assert [child.process.returncode for child in slow_ones] == [0, 0, 0]


def workers_of(folder: Path, **settings: object) -> list[Child]:
    """The workers that would be started."""
    children = _children(Settings(data_dir=folder, redis_url="unix:///nowhere", **settings))
    return [child for child in children if child.name.startswith("worker")]


def test_a_list_of_devices_has_one_worker_for_each(tmp_path):
    workers = workers_of(tmp_path, device="cuda:0,cuda:1")
    assert [child.environment["DEEPSDF_DEVICE"] for child in workers] == ["cuda:0", "cuda:1"]


def test_several_workers_on_a_device_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    workers = workers_of(tmp_path, device="cuda:0,cuda:1", workers_per_device=2)
    devices = [child.environment["DEEPSDF_DEVICE"] for child in workers]
    assert devices == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
    assert {child.environment["OMP_NUM_THREADS"] for child in workers} == {"4"}
    assert len({child.name for child in workers}) == 4
    (alone,) = workers_of(tmp_path)
    assert "OMP_NUM_THREADS" not in alone.environment


def test_how_many_threads_a_worker_has_may_be_told(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    workers = workers_of(tmp_path, workers_per_device=2)
    assert [child.environment["OMP_NUM_THREADS"] for child in workers] == ["3", "3"]
