"""The connected parts of a graph: by scipy, or on a GPU, where copying the links and waiting takes longer."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from model.fused.connected import hooked
from model.kernels import usable


def connected_parts(starts: Tensor, ends: Tensor, count: int) -> Tensor:
    """To which part each of so many nodes belongs, (count,): from 0, in the order of their first nodes.

    Links go between the nodes `starts` (E,) and `ends` (E,), either way.
    """
    if starts.device.type == "cuda":
        return parts_by_hooking(starts, ends, count)
    nodes = starts.int().numpy(), ends.int().numpy()
    links = coo_array((np.ones(len(starts), bool), nodes), shape=(count, count))
    _, labels = connected_components(links, directed=False)
    return torch.from_numpy(labels).long()


def parts_by_hooking(starts: Tensor, ends: Tensor, count: int) -> Tensor:
    """The same for any device: every node points to one before it, until those of a part point to its first.

    What links join are the nodes they point to, of which the later one then points to the earlier (hooking,
    Shiloach and Vishkin 1982). Chains of these halve with each jump.
    """
    first = hooked(starts, ends, count) if usable(starts.device) else _hooked(starts, ends, count)
    ends_here = first == torch.arange(count, device=first.device)
    return (ends_here.cumsum(dim=0) - 1)[first]


def _hooked(starts: Tensor, ends: Tensor, count: int) -> Tensor:
    """The first node (count,) of the part that each is of."""
    first = torch.arange(count, device=starts.device)
    while True:
        a, b = first[starts], first[ends]
        if bool((a == b).all()):
            return first
        first = first.scatter_reduce(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        for _ in range(count.bit_length()):
            first = first[first]
