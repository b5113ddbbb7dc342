"""Connected parts: by hooking as by scipy's search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from model.connected import connected_parts, parts_by_hooking


@pytest.mark.parametrize("find", [connected_parts, parts_by_hooking])
def test_parts_are_those_of_a_search_whatever_the_links(find: object) -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        count = int(rng.integers(1, 200))
        starts, ends = rng.integers(0, count, (2, int(rng.integers(0, 250))))
        links = coo_array((np.ones(len(starts)), (starts, ends)), shape=(count, count))
        number, labels = connected_components(links, directed=False)
        found = find(torch.from_numpy(starts), torch.from_numpy(ends), count)  # type: ignore[operator]
        _, first = np.unique(labels, return_index=True)
        assert len(torch.unique(found)) == number
        assert np.array_equal(found.numpy(), np.argsort(np.argsort(first))[labels]), "in order of first nodes"


def test_a_long_path_is_one_part_in_whatever_order_its_nodes_are() -> None:
    nodes = torch.from_numpy(np.random.default_rng(0).permutation(20_000))
    assert not parts_by_hooking(nodes[:-1], nodes[1:], len(nodes)).any()
    broken = parts_by_hooking(nodes[:-1][nodes[:-1] != 7], nodes[1:][nodes[:-1] != 7], len(nodes))
    assert torch.bincount(broken).sum() == len(nodes) and broken.max() == 1
