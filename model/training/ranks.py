"""Which of several processes this one is, and what it shares with the others.

Under `torchrun` the shapes are dealt out like cards: process r of w has the shapes r, r + w, r + 2w, …, with
their codes and samples. The decoder is the same in all of them.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Row = TypeVar("Row")


@dataclass(frozen=True)
class Ranks:
    """This process, `rank` of `count`. The methods that exchange something must be called by all of them."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether it is the one that writes files."""
        return self.rank == 0

    def own(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Its part of the rows of all."""
        return rows[self.rank :: self.count]

    def own_rows(self, whole: Tensor) -> Tensor:
        """Its part (n, …) of a tensor (N, …) of all."""
        return whole[self.rank :: self.count].clone()

    def gathered(self, part: Tensor, total: int) -> Tensor:
        """The tensor (N, …) of all from everybody's part (n, …)."""
        if self.count == 1:
            return part.detach()
        whole = part.new_zeros((total, *part.shape[1:]))
        whole[self.rank :: self.count] = part.detach()
        dist.all_reduce(whole)
        return whole

    def gathered_names(self, part: list[str]) -> list[str]:
        """The names of all from everybody's part."""
        if self.count == 1:
            return part
        parts: list[list[str]] = [[]] * self.count
        dist.all_gather_object(parts, part)
        return [parts[index % self.count][index // self.count] for index in range(sum(map(len, parts)))]

    def add_up(self, value: Tensor) -> Tensor:
        """The sum of everybody's value."""
        if self.count > 1:
            dist.all_reduce(value)
        return value

    def add_up_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Let every process have the sum of all gradients, in one exchange."""
        if self.count == 1:
            return
        gradients = [part.grad for part in parameters if part.grad is not None]
        flat = self.add_up(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))


ALONE = Ranks()
"""The only process there is."""


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The processes that `torchrun` started, or this one alone; nccl on GPUs, one each, gloo on CPUs."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Its functions have the group as a default argument. Imported later, by the first optimiser, they would
    # keep it beyond its end, and Gloo's threads would abort the process at exit now and then.
    importlib.import_module("torch.distributed.nn")
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()
