"""The connected parts of a graph on a GPU in few launches, by `kernels.connected`, for `model.connected`."""

from __future__ import annotations

import torch
from torch import Tensor

from model.kernels import launch

ROWS = 256
"""Links or nodes that a program works on."""

ROUNDS = 3
"""Of hooking and jumping before the host looks whether that was enough: it is for a chair's vertices."""


def hooked(starts: Tensor, ends: Tensor, count: int) -> Tensor:
    """The first node (count,) of the part that each is of; links (E,) and (E,) as in `connected_parts`."""
    from model.kernels.connected import hook, jump

    first = torch.arange(count, dtype=torch.int32, device=starts.device)
    starts, ends, joined = starts.contiguous(), ends.contiguous(), False
    links, nodes = (-(-len(starts) // ROWS),), (-(-count // ROWS),)
    while not joined:
        for _ in range(ROUNDS):
            apart = first.new_zeros(1)
            launch(hook, links, starts, ends, first, apart, len(starts), ROWS=ROWS)
            launch(jump, nodes, first, count, ROWS=ROWS)
        joined = not apart.item()
    return first.long()
