"""What a GPU replays: the same results as called plainly. Without a GPU nothing can be recorded."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from model.graphs import Recorder, _copy
from model.trees import leaves, mapped


@dataclass(frozen=True)
class Pair:
    one: Tensor
    other: Tensor


@dataclass(frozen=True)
class Nested:
    pair: Pair
    flag: Tensor


def test_a_tree_is_mapped_part_by_part_with_what_is_in_its_place_in_others() -> None:
    tree = Nested(Pair(torch.zeros(2), torch.ones(3, 1)), torch.tensor([True]))
    assert [part.shape for part in leaves(tree)] == [(2,), (3, 1), (1,)]
    summed = mapped(lambda a, b: a + 2 * b, tree.pair, tree.pair)
    assert torch.equal(summed.other, torch.full((3, 1), 3.0)) and isinstance(summed, Pair)


def spread(pair: Pair) -> Nested:
    mean = (pair.one + pair.other) / 2
    return Nested(Pair(mean, pair.other - mean), pair.one > mean)


def test_the_first_call_is_plain_for_each_shape_and_each_key() -> None:
    recorder = Recorder()
    for size in (3, 4):
        pair = Pair(torch.rand(size), torch.rand(size))
        for key in ("a", "b"):
            for part, expected in zip(leaves(recorder(spread, pair, key)), leaves(spread(pair)), strict=True):
                assert torch.equal(part, expected)


def test_off_a_gpu_every_call_is_plain() -> None:
    recorder, pair, called = Recorder(), Pair(torch.rand(3), torch.rand(3)), []
    for number in range(4):
        recorder(lambda given, number=number: called.append(number) or given, pair, "one key")
    assert called == [0, 1, 2, 3] and not recorder._broken


def test_parts_of_all_kinds_and_layouts_are_copied_at_once() -> None:
    parts = [torch.rand(3, 4), torch.rand(2).double(), torch.tensor(True), torch.rand(5, 1).expand(5, 3)]
    parts += [torch.arange(4), torch.rand(4, 3).T, torch.empty(0)]
    into = [torch.zeros(part.shape, dtype=part.dtype) for part in parts]
    _copy(list(zip(into, parts, strict=True)))
    assert all(torch.equal(*pair) for pair in zip(into, parts, strict=True))
    _copy([])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_replay_gives_what_the_function_gives_and_keeps_earlier_results() -> None:
    recorder = Recorder(most=2)
    results, expected = [], []
    for number in range(12):
        size = 3 + number % 3  # one more shape than is kept
        pair = Pair(torch.rand(size, device="cuda"), torch.rand(size, device="cuda"))
        for _ in range(3):
            results.append(recorder(spread, pair))
            expected.append(spread(pair))
    for found, wanted in zip(results, expected, strict=True):
        assert all(torch.equal(*parts) for parts in zip(leaves(found), leaves(wanted), strict=True))
    assert not recorder._broken
