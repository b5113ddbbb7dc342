"""A short cut of `make chaos`: the whole suite is benchmarks/chaos.py. Workers are killed and stopped in
`test_service`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos import FAULTS, Ending, Row, besieged, told


def test_no_completion_is_lost_or_done_twice_under_fire(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    chosen = ("API killed while clients submit", "queue killed", "disk full")
    rows = besieged(tmp_path, {name: FAULTS[name] for name in chosen}, jobs=2, hurry=True)
    assert told(rows) == 0
    assert len(rows) == 3 and sum(len(row.endings) for row in rows) >= 8
    assert all(row.recovery_s is not None for row in rows)


def test_what_is_lost_or_done_twice_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    done = Ending("succeeded", "now", "digest")
    rows = [Row("a fault", {"a": None, "b": done, "c": done}, duplicated={"b"}), Row("another", {"d": None})]
    assert told(rows) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "chaos: 3 jobs lost or duplicated"
