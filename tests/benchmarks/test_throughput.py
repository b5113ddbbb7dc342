"""The benchmark of throughput: what it counts, and that it ends where a process of it does."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from threading import Timer

import pytest

from benchmarks import gpu, throughput

LITTLE = {"resolution": 16, "refine": False}


def test_completions_are_counted_in_one_process_and_in_two(tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    options = ["--quick", "--device", "cpu", "--checkpoint", str(tiny_checkpoint), "--json", str(file)]
    assert gpu.main([*options, "--parts", "throughput", "--processes", "1", "2"]) == 0
    rates = {figure["what"]: figure["value"] for figure in json.loads(file.read_text())["shapes"]}
    one, two = rates["2 in flight, 1 process"], rates["2 in flight, 2 processes"]
    assert rates["1 in flight, 1 process"] > 0 and one > 0
    assert rates["2 in flight, 2 processes / 1 process"] == pytest.approx(two / one)


@pytest.mark.parametrize("cut_s", [2.1, 2.5, 2.9])
def test_completions_that_end_in_bursts_count_the_same_wherever_the_window_is_cut(cut_s: float) -> None:
    ends = [second + late for second in range(1, 9) for late in (0.0, 0.01, 0.02, 0.03)]
    since, stop = 1.03, 1.03 + cut_s
    counted = [end for end in ends if since < end < stop]
    assert throughput.rate_of(counted, since, jobs=4) == pytest.approx(4.0)


def test_a_process_that_cannot_begin_is_told(tmp_path: Path) -> None:
    load = throughput.Load(tmp_path / "nothing", "cpu", LITTLE)
    with pytest.raises(throughput.Stopped, match="ended with code 1"), throughput.started(load, 1):
        pass


def test_a_process_that_does_nothing_is_not_waited_for_for_ever(tiny_checkpoint: Path) -> None:
    load = throughput.Load(tiny_checkpoint, "cpu", LITTLE)
    with throughput.started(load, 1) as team, pytest.raises(throughput.Stopped, match="within 1 s"):
        os.kill(team[0].process.pid, signal.SIGSTOP)
        throughput.rate(team, 1, seconds=60.0, patience_s=1.0)


def test_a_process_that_is_killed_while_it_works_is_told(tiny_checkpoint: Path) -> None:
    load = throughput.Load(tiny_checkpoint, "cpu", LITTLE)
    with throughput.started(load, 1) as team, pytest.raises(throughput.Stopped, match="code -9"):
        Timer(1.0, team[0].process.kill).start()
        throughput.rate(team, 1, seconds=60.0, patience_s=60.0)
