"""The connected parts of a graph: what `model.connected` says in torch."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count"])
def hook(
    starts,  # (E) int64: nodes
    ends,  # (E) int64
    first,  # (N) int32: of each node one before it, or itself; here changed
    apart,  # (1) int32: becomes 1 where a link joins two nodes that point to others
    count,  # E
    ROWS: tl.constexpr,
):
    """Of what two linked nodes point to, the later one points to the earlier."""
    link = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = link < count
    a = tl.load(first + tl.load(starts + link, mask=exists, other=0), mask=exists, other=0)
    b = tl.load(first + tl.load(ends + link, mask=exists, other=0), mask=exists, other=0)
    tl.atomic_min(first + tl.maximum(a, b), tl.minimum(a, b), mask=a != b)
    tl.store(apart + tl.zeros_like(a), tl.full([ROWS], 1, tl.int32), mask=a != b)


@triton.jit(do_not_specialize=["count"])
def jump(
    first,  # (N) int32; here changed
    count,  # N
    ROWS: tl.constexpr,
):
    """Each node points to where its chain ends."""
    node = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = node < count
    at = tl.load(first + node, mask=exists, other=0)
    before = tl.load(first + at, mask=exists, other=0)
    while tl.max((before < at).to(tl.int32), 0) > 0:
        at = before
        before = tl.load(first + at, mask=exists, other=0)
    tl.store(first + node, at, mask=exists)
