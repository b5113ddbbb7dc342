"""The log of a run: lines, TensorBoard, picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from model.training.logs import Log, Logged, draw_log, read_log


def line(step: int) -> Logged:
    return Logged(step, 1 / step, 0.5, 20.0, 1e-3, 2e-3, 0.1 * step, 1e5)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    with Log(tmp_path, 0) as log:
        for step in (50, 100):
            log.write(line(step))
    assert read_log(tmp_path) == [line(50), line(100)]


def test_a_resumed_run_drops_the_lines_that_it_does_again(tmp_path: Path) -> None:
    with Log(tmp_path, 0) as log:
        for step in (50, 100, 150):
            log.write(line(step))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 200, "lo')  # killed in mid-line
    with Log(tmp_path, 100) as log:
        log.write(line(150))
    assert read_log(tmp_path) == [line(50), line(100), line(150)]


def test_the_picture_is_drawn_of_long_and_of_short_logs(tmp_path: Path) -> None:
    for step in (50, 100, 150):
        with Log(tmp_path, step - 50) as log:
            log.write(line(step))
        with Image.open(draw_log(tmp_path)) as picture:
            assert picture.size[0] > 500
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 10


def test_tensorboard_has_every_figure(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Log(tmp_path, 0, tensorboard=True) as log:
        for step in (50, 100):
            log.write(line(step))
    read = reader.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    events = read.Scalars("loss")
    assert [(event.step, round(event.value, 6)) for event in events] == [(50, 0.02), (100, 0.01)]
    assert {"code_norm", "decoder_rate", "code_rate", "samples_per_second"} <= set(read.Tags()["scalars"])
