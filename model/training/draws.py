"""What each step sees, as a function of the seed and the step alone.

So nothing of it has to be stored to go on later, and it does not depend on how many processes share the work:
the shapes are dealt into shards, each with an order and a stream of random numbers of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.training.dataset import SampleSet
from model.training.ranks import Ranks
from model.training.recipe import Recipe


def seed_of(*words: int) -> int:
    """A 63-bit seed for a stream of random numbers; different words, unrelated streams."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


ORDER, SAMPLES, DROPOUT = range(3)
"""What a stream is for: the second of its words, after the recipe's seed."""


@dataclass(frozen=True)
class Batch:
    """What one step sees of B shapes with P points each."""

    shapes: Tensor  # (B,) rows of the codes
    points: Tensor  # (B, P, 3)
    distances: Tensor  # (B, P)
    noise: Tensor  # (B, L) standard normal, for the codes
    uniform: Tensor  # (B, E, 3) in the cube around the unit ball, for the Eikonal term

    def split(self, parts: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows of the batch, b of them, with points (b, p, 3) and distances (b, p), in about so many parts.

        They have fewer shapes each, and fewer points where there are more parts than shapes.
        """
        each, count = -(-parts // len(self.shapes)), -(-len(self.shapes) // parts)
        for first in range(0, len(self.shapes), count):
            some = slice(first, first + count)
            pieces = (self.points[some].chunk(each, dim=1), self.distances[some].chunk(each, dim=1))
            yield from ((some, points, distances) for points, distances in zip(*pieces, strict=True))


def joined_batches(parts: Sequence[Batch]) -> Batch:
    """One batch of all shapes."""
    fields = [(one.shapes, one.points, one.distances, one.noise, one.uniform) for one in parts]
    return Batch(*(torch.cat(some) for some in zip(*fields, strict=True)))


@dataclass(frozen=True)
class Draws:
    """The draws of a run on `shapes` shapes, `per_step` of them a step, dealt into `shards`."""

    seed: int
    shapes: int
    per_step: int
    shards: int = 1

    def __post_init__(self) -> None:
        if self.per_step % self.shards or self.shards > self.shapes:
            raise ValueError(
                f"{self.shards} shards cannot share {self.shapes} shapes, {self.per_step} a step: make "
                "shapes_per_step a multiple of the shards (one a process, unless `shards` says otherwise)"
            )

    def order(self, step: int, shard: int) -> Tensor:
        """Indices of the shapes of a shard that a step sees; none comes again before all have come."""
        members = torch.arange(shard, self.shapes, self.shards)
        count = self.per_step // self.shards
        places = torch.arange(step * count, (step + 1) * count)
        turns = places // len(members)
        first = int(turns[0])
        orders = [self._shuffled(members, shard, turn) for turn in range(first, int(turns[-1]) + 1)]
        return torch.stack(orders)[turns - first, places % len(members)]

    def batch(self, step: int, shard: int, data: SampleSet, ranks: Ranks, recipe: Recipe) -> Batch:
        """What a step sees of a shard; `data` are the samples of this process, one of `ranks`."""
        device, settings = data.samples.device, recipe.training
        generator = torch.Generator(device).manual_seed(seed_of(self.seed, SAMPLES, step, shard))
        # Not waited for: the step before may still be computed.
        shapes = (self.order(step, shard) // ranks.count).to(device, non_blocking=True)
        points, distances = data.draw(shapes, settings.points_per_shape, generator)
        noise = torch.randn(len(shapes), recipe.decoder.code_length, generator=generator, device=device)
        cube = torch.rand(len(shapes), settings.eikonal_points, 3, generator=generator, device=device)
        return Batch(shapes, points, distances, noise, 2 * cube - 1)

    def seed_dropout(self, step: int, rank: int) -> None:
        """Set torch's global random numbers, which dropout takes."""
        torch.manual_seed(seed_of(self.seed, DROPOUT, step, rank))

    def _shuffled(self, members: Tensor, shard: int, turn: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_of(self.seed, ORDER, shard, turn))
        return members[torch.randperm(len(members), generator=generator)]
