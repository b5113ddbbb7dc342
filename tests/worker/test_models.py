"""Models in memory: on demand, within a budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.serving import save_small_model
from model import kernels
from model.checkpoint import BadCheckpoint
from worker.models import Models, _complete_something, half_a_ball, size_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small models."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("a", "b", "c"):
        save_small_model(folder / name, steps=1)
    return folder


def test_with_room_for_all_each_is_loaded_once(folder):
    models = Models(folder, "cpu", budget=2**30)
    assert models.load_all() == ["a", "b", "c"]
    assert models.get("b") is models.get("b")
    assert models.bytes == sum(size_of(models.get(name).checkpoint) for name in "abc")


def test_the_least_recently_used_makes_room(folder):
    size = size_of(Models(folder, "cpu", 1).get("a").checkpoint)
    models = Models(folder, "cpu", budget=2 * size)
    first, second = models.get("a"), models.get("b")
    assert models.get("a") is first
    models.get("c")
    assert models.get("a") is first and models.get("b") is not second
    assert models.bytes <= 2 * size


def test_one_that_is_larger_than_the_budget_is_served_all_the_same(folder):
    models = Models(folder, "cpu", budget=1)
    assert models.load_all() == ["a"]
    assert models.get("b").checkpoint.name == "b"


def test_a_model_that_is_not_there_takes_no_ones_place(folder):
    models = Models(folder, "cpu", budget=1)
    kept = models.get("a")
    with pytest.raises(BadCheckpoint):
        models.get("../gone")
    assert models.get("a") is kept


def test_what_a_gpu_warms_up_with_can_be_completed(folder):
    made = Models(folder, "cpu", 1).get("a").complete([half_a_ball()], resolution=32)
    assert len(made.mesh.faces) > 100


def test_a_kernel_that_fails_while_a_model_warms_up_is_given_up(folder, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of shared memory")

    given_up = []
    monkeypatch.setattr(kernels, "give_up", given_up.append)
    completer = Models(folder, "cpu", 1).get("a")
    monkeypatch.setattr(completer, "complete", broken)
    _complete_something(completer)
    assert [str(error) for error in given_up] == ["out of shared memory"]
