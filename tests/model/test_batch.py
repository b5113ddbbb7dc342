"""Several pieces of work on one device: none feels the others, and what breaks goes alone."""

from __future__ import annotations

from functools import partial
from threading import Event

import numpy as np
import pytest
import torch
from seen import about_y, half_seen, moved
from shapes import TINY_SOLIDS
from torch import Tensor

from model.batch import Batch, Ended, Steps, alone, aside, step_together
from model.checkpoint import Checkpoint
from model.completion import Completer, Completion
from model.decoder import Decoder
from model.fitting import Effort, Fit, Round
from model.frame import Similarity
from model.latent import LevenbergMarquardt
from model.observation import Observation, View, observe
from model.problems import Problems, rows_of_samples


def scans() -> list[View]:
    """Three half-seen solids at different places, of different sizes."""
    names = ["box_0.35_0.65", "sphere_0.65", "box_0.5_0.35"]
    ways = [Similarity(1 + n, about_y(40 * n), np.array([n, 2.0, -n])) for n in range(3)]
    return [moved(half_seen(TINY_SOLIDS[name]), way) for name, way in zip(names, ways, strict=True)]


LITTLE = Effort(moved=48, rounds=(Round(8, (128, 64), 8), Round(2, (400, 200), 10)))
"""Enough to find solids as simple as these."""


def all_of(batch: Batch[int, object]) -> dict[int, Ended[int, object]]:
    """Turn after turn until nothing is left."""
    ended: dict[int, Ended[int, object]] = {}
    while len(batch):
        ended |= {one.key: one for one in batch.turn()}
    return ended


def assert_same_fit(one: Fit, other: Fit) -> None:
    """Sums of other batch sizes round otherwise, and no more than that."""
    assert one.steps == other.steps
    assert torch.allclose(one.best.code, other.best.code, atol=2e-3)
    assert np.allclose(one.best.placement.matrix(), other.best.placement.matrix(), atol=2e-3)
    assert one.best.objective == pytest.approx(other.best.objective, rel=1e-2)


def test_fits_that_join_at_different_steps_end_as_alone(tiny: Checkpoint) -> None:
    fitter = Completer(tiny, effort=LITTLE).fitter
    observations: list[Observation] = [observe(scan) for scan in scans()]
    batch: Batch[int, Fit] = Batch()
    for key, observation in enumerate(observations):
        batch.add(key, fitter.fitting(observation, "upright", seed=key))
        for _ in range(9):
            assert not batch.turn()
    ended = all_of(batch)
    for key, observation in enumerate(observations):
        assert_same_fit(ended[key].result, fitter.fit(observation, "upright", seed=key))


def test_how_fits_stand_after_a_step_as_one_is_how_each_of_them_stands(tiny: Checkpoint) -> None:
    joined = [fit_of(tiny.decoder, tiny, problems=3, seed=seed) for seed in range(3)]
    apart = [fit_of(tiny.decoder, tiny, problems=3, seed=seed) for seed in range(3)]
    for _ in range(4):
        assert step_together(dict(enumerate(joined))) == {}
        for one, other in zip(joined, apart, strict=True):
            other.step()
            best = int(one.cost.argmin())
            assert one.standing.objective == float(one.cost[best])
            assert one.standing.residual == float(one.residual[best])
            assert one.standing.unfinished == int((~one.finished_problems).sum())
            assert one.standing.objective == pytest.approx(other.standing.objective, rel=1e-3)


def test_whole_completions_share_the_device_whatever_they_ask_for(tiny: Checkpoint) -> None:
    completer = Completer(tiny, effort=LITTLE)
    options = [{"resolution": 32, "pose": "canonical"}, {"resolution": 32, "refine": False}]
    batch: Batch[int, Completion] = Batch()
    for key, (scan, wanted) in enumerate(zip(scans(), options, strict=False)):
        batch.add(key, completer.completing(scan, **wanted))
    ended = all_of(batch)
    for key, (scan, wanted) in enumerate(zip(scans(), options, strict=False)):
        together, by_itself = ended[key].result, completer.complete(scan, **wanted)
        assert together.report.steps == by_itself.report.steps
        assert together.report.size == pytest.approx(by_itself.report.size, rel=0.01)


def fit_of(decoder: object, tiny: Checkpoint, problems: int = 1, seed: int = 0) -> LevenbergMarquardt:
    random = torch.Generator().manual_seed(seed)
    points = torch.rand(1, 40, 3, generator=random) - 0.5
    rows = rows_of_samples(points, points.norm(dim=-1) - 0.5, 0.1)
    return LevenbergMarquardt(decoder, Problems.start(rows, tiny.codes[:problems], tiny.prior))


def work(solver: LevenbergMarquardt) -> Steps[Tensor]:
    while not solver.finished:
        yield solver
    return solver.codes


class Small:
    """A decoder on a device with room for so many problems at a time."""

    def __init__(self, decoder: Decoder, room: int) -> None:
        self.decoder, self.room, self.seen = decoder, room, list[int]()

    def distance_and_gradients(self, codes: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.seen.append(len(codes))
        if len(codes) > self.room:
            raise torch.OutOfMemoryError("no room")
        return self.decoder.distance_and_gradients(codes, points)


def test_a_batch_that_does_not_fit_becomes_smaller_ones(tiny: Checkpoint) -> None:
    small = Small(tiny.decoder, room=3)
    batch: Batch[int, Tensor] = Batch()
    for key in range(7):
        batch.add(key, work(fit_of(small, tiny, seed=key)))
    ended = all_of(batch)
    assert max(small.seen) == 7 and 3 in small.seen
    for key in range(7):
        assert torch.allclose(ended[key].result, alone(work(fit_of(tiny.decoder, tiny, seed=key))), atol=2e-3)


def test_where_steps_are_replayed_few_sizes_are_ever_asked_for(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any number that happens to be in step there would be a recording to make."""
    monkeypatch.setattr(LevenbergMarquardt, "replayed_together", 5)
    seen = Small(tiny.decoder, room=100)
    batch: Batch[int, Tensor] = Batch()
    for key in range(11):
        batch.add(key, work(fit_of(seen, tiny, seed=key)))
    ended = all_of(batch)
    assert set(seen.seen) == {1, 2, 4}
    for key in range(11):
        assert torch.allclose(ended[key].result, alone(work(fit_of(tiny.decoder, tiny, seed=key))), atol=2e-3)


def test_the_one_that_never_fits_fails_alone(tiny: Checkpoint) -> None:
    small = Small(tiny.decoder, room=9)
    large = fit_of(small, tiny, problems=8)
    small.room = 4
    batch: Batch[int, Tensor] = Batch()
    batch.add(0, work(large))
    for key in (1, 2):
        batch.add(key, work(fit_of(small, tiny, seed=key)))
    ended = all_of(batch)
    assert isinstance(ended[0].error, torch.OutOfMemoryError) and ended[0].result is None
    assert ended[1].error is None and ended[2].error is None


def test_what_raises_between_its_steps_leaves_the_others_alone(tiny: Checkpoint) -> None:
    def broken() -> Steps[Tensor]:
        yield fit_of(tiny.decoder, tiny, seed=1)
        raise ValueError("a defect")

    batch: Batch[str, Tensor] = Batch()
    batch.add("broken", broken())
    batch.add("sound", work(fit_of(tiny.decoder, tiny)))
    ended = all_of(batch)
    assert str(ended["broken"].error) == "a defect"
    assert torch.allclose(ended["sound"].result, alone(work(fit_of(tiny.decoder, tiny))), atol=2e-3)


def test_what_is_dropped_hears_why_and_takes_no_further_step(tiny: Checkpoint) -> None:
    heard: list[BaseException] = []

    def listens(solver: LevenbergMarquardt) -> Steps[str]:
        try:
            while True:
                yield solver
        except KeyError as why:
            heard.append(why)
            return "over"

    solver = fit_of(tiny.decoder, tiny)
    batch: Batch[int, str] = Batch()
    batch.add(0, listens(solver))
    batch.turn()
    ended = batch.drop(0, KeyError("enough"))
    assert ended is not None and ended.result == "over" and len(heard) == 1
    assert batch.turn() == [] and int(solver.steps_taken) == 0


def failing() -> None:
    raise OSError("the call")


def calls(function: object) -> Steps[object]:
    try:
        return (yield from aside(function))
    except OSError as error:
        return f"heard of {error}"


def test_a_call_is_made_and_what_it_returns_or_raises_reaches_its_work() -> None:
    batch: Batch[str, object] = Batch()
    for key, function in (("seven", lambda: 7), ("failing", failing)):
        assert alone(calls(function)) == (7 if key == "seven" else "heard of the call")
        batch.add(key, calls(function))
    ended = all_of(batch)
    assert ended["seven"].result == 7 and ended["failing"].result == "heard of the call"
    batch.close()


def test_steps_are_taken_while_a_call_is_being_made(tiny: Checkpoint) -> None:
    """The call waits for a fit that comes to its end in the same batch: else neither would."""
    fitted = Event()

    def fitting() -> Steps[str]:
        yield from work(fit_of(tiny.decoder, tiny))
        fitted.set()
        return "fitted"

    batch: Batch[int, object] = Batch()
    batch.add(0, calls(partial(fitted.wait, 60)))
    batch.add(1, fitting())
    ended = all_of(batch)
    assert ended[0].result is True and ended[1].result == "fitted"
    batch.close()


def test_work_is_dropped_while_its_call_is_being_made_and_another_call_takes_its_turn() -> None:
    begun, enough = Event(), Event()

    def waits() -> None:
        begun.set()
        enough.wait(60)

    batch: Batch[int, object] = Batch()
    batch.add(0, calls(waits))
    batch.add(1, calls(lambda: "made"))
    batch.add(2, calls(lambda: "never"))
    assert batch.turn() == [] and begun.wait(60)
    assert batch.turn() == []  # there is one thread, and it is busy
    dropped = batch.drop(0, KeyError("enough"))
    assert dropped is not None and isinstance(dropped.error, KeyError)
    assert isinstance(batch.drop(2, KeyError("enough")).error, KeyError)
    enough.set()
    assert all_of(batch)[1].result == "made"
    batch.close()
