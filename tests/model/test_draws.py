"""What a step sees: every shape as often as the others, and the same on any number of processes."""

from __future__ import annotations

import pytest
import torch
from shapes import TINY_RECIPE, tiny_samples

from model.training.dataset import SampleSet
from model.training.draws import Draws, joined_batches
from model.training.ranks import Ranks


def seen(draws: Draws, steps: int) -> torch.Tensor:
    orders = [draws.order(step, shard) for step in range(steps) for shard in range(draws.shards)]
    return torch.cat(orders)


@pytest.mark.parametrize(("shapes", "per_step"), [(10, 4), (10, 10), (3, 7)])
def test_every_shape_is_seen_equally_often(shapes: int, per_step: int) -> None:
    """Also where a step asks for more shapes than there are: the public code then trains on nothing."""
    counts = torch.bincount(seen(Draws(0, shapes, per_step), shapes), minlength=shapes)
    assert counts.tolist() == [per_step] * shapes


def test_no_shape_comes_again_before_all_have_come() -> None:
    order = seen(Draws(3, 7, 2), 70)
    assert all(len(turn.unique()) == 7 for turn in order.split(7))
    assert len({tuple(turn.tolist()) for turn in order.split(7)}) > 10


def test_a_shard_draws_from_its_own_shapes_alone() -> None:
    draws = Draws(0, 11, 6, shards=3)
    for shard in range(3):
        members = {int(shape) for step in range(8) for shape in draws.order(step, shard)}
        assert members == set(range(shard, 11, 3))


def test_shards_that_cannot_share_a_step_are_refused() -> None:
    for shapes, per_step, shards in ((10, 4, 3), (2, 4, 4)):
        with pytest.raises(ValueError, match="shapes_per_step"):
            Draws(0, shapes, per_step, shards)


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_see_together_what_one_sees(count: int) -> None:
    data = tiny_samples(200)
    draws = Draws(5, 10, 8, shards=4)

    def batches(ranks: Ranks) -> list[torch.Tensor]:
        own = SampleSet(list(ranks.own(data.names)), ranks.own_rows(data.samples))
        shards = ranks.own(range(4))
        batch = joined_batches([draws.batch(9, shard, own, ranks, TINY_RECIPE) for shard in shards])
        whole = batch.shapes * ranks.count + ranks.rank
        rows = [
            whole[:, None],
            batch.points.flatten(1),
            batch.distances,
            batch.noise,
            batch.uniform.flatten(1),
        ]
        return list(torch.cat([row.float() for row in rows], dim=1))

    def in_order(rows: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(sorted(rows, key=lambda row: row.tolist()))

    together = [row for rank in range(count) for row in batches(Ranks(rank, count))]
    assert torch.equal(in_order(together), in_order(batches(Ranks())))
