"""The zero level set of a field as a closed mesh, evaluated coarse to fine and slab by slab.

The corners of a coarse grid are evaluated, then its spacing is halved until the resolution is reached. A
new corner p lies in the middle of one, two or four pairs of corners of a coarse cell, a and b, each of them
d away. How steep the field is (its Lipschitz constant L) and how sharply it bends (B) bound it there: where
f(a) and f(b) have one sign,

    |f(p)| ≥ max(|f(a)|, |f(b)|) − L d     and     |f(p)| ≥ |f(a) + f(b)| / 2 − B d.

If either is above zero, p has that sign too, and the bound stands for its value: what follows from it in turn
is a bound as well. Otherwise p is evaluated. New corners do not wait for each other: that costs a few
per cent more evaluations, and halves a grid in one go. On the last grid all corners of cells with both
signs are evaluated, so that marching cubes sees there what a dense grid would have shown it. If one of
them turns out to have another sign than it was given, the field is steeper than it says, and all is done
again with twice its constants.

Slabs follow each other along the first axis, and each grid keeps but the last plane of the slab before: the
memory needed grows with the square of the resolution, not with its cube.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.field import Field, at_a_time
from model.fused.surface import halved
from model.kernels import usable
from model.marching import marched, places_of, to_corners
from model.mesh import Mesh, Triangles

OnChunk = Callable[[], None]
"""Called between chunks of evaluations; what it raises ends the extraction."""

HALF_WIDTH = 1.04
"""The grid spans [-HALF_WIDTH, HALF_WIDTH]³: the unit ball and a margin for the closed border."""

FEWEST_CELLS = 12
"""The coarsest grid has at least as many cells along an edge, where the resolution allows, and less than
twice as many; on a GPU it has four times as many: a halving takes longer than evaluating all corners does."""

THRIFT = 1.0
"""A corner of a grid that will be halved again is evaluated if its bound is below this many of its cells:
many more will be bounded by it. No sign depends on this, only the number of evaluations."""

CERTAIN = 1e-3
"""The share of a cell by which a bound must exceed zero, and be more than rounding."""

SLAB_VALUES = (4_000_000, 40_000_000)
CHUNK = (16_384, 524_288)
"""Corners of a slab, and points evaluated at a time, on a CPU and on a GPU."""


def _nothing() -> None: ...


class NoSurface(Exception):
    """The field has no zero crossing inside the grid."""


class _SteeperThanSaid(Exception):
    """A corner has another sign than follows from the field's constants."""


@dataclass(frozen=True)
class ZeroLevel:
    """Where a field is zero, as a closed triangle mesh, and how often the field was evaluated for it."""

    vertices: NDArray[np.float32]  # (V, 3) canonical frame
    faces: NDArray[np.int32]  # (F, 3) counter-clockwise from outside
    evaluations: int


@dataclass(frozen=True)
class Extraction:
    """A mesh in the canonical frame and what it cost."""

    mesh: Mesh
    evaluations: int


def extract_surface(
    field: Field,
    resolution: int,
    skin: float = 0.0,
    *,
    dense: bool = False,
    on_chunk: OnChunk = _nothing,
) -> Extraction:
    """The closed zero level set of a field on a grid of at least `resolution` cells an edge, with normals.

    `skin` is the τ by which the field's shapes are thickened: vertices go back by it where the part is
    thick enough. Raises NoSurface.
    """
    triangles, evaluations = triangles_of(field, resolution, skin, dense=dense, on_chunk=on_chunk)
    return Extraction(triangles.mesh(), evaluations)


def triangles_of(
    field: Field,
    resolution: int,
    skin: float = 0.0,
    *,
    dense: bool = False,
    on_chunk: OnChunk = _nothing,
) -> tuple[Triangles, int]:
    """The same where the field is, and how often that was evaluated."""
    sampler = _Sampler.of(field, on_chunk)
    vertices, faces = _found(sampler, resolution, dense)
    vertices, normals = _without_skin(sampler, vertices, skin)
    return Triangles(vertices, faces, normals), sampler.evaluations


def zero_level(
    field: Field, resolution: int, *, dense: bool = False, on_chunk: OnChunk = _nothing
) -> ZeroLevel:
    """Where the field is zero, on a grid of at least `resolution` cells an edge; `dense` evaluates all of it.

    The mesh is closed at the border of the grid, whatever the field does there. Raises NoSurface.
    """
    sampler = _Sampler.of(field, on_chunk)
    vertices, faces = _found(sampler, resolution, dense)
    return ZeroLevel(vertices.cpu().numpy(), faces.int().cpu().numpy(), sampler.evaluations)


def _found(sampler: _Sampler, resolution: int, dense: bool) -> tuple[Tensor, Tensor]:
    """Vertices (V, 3) and faces (F, 3), where the field is."""
    base, halvings = _grids(resolution, at_a_time(sampler.field.device, FEWEST_CELLS, 4 * FEWEST_CELLS))
    if dense:
        base, halvings = base << halvings, 0
    while True:
        try:
            return _stitched(_slabs(sampler, base, halvings))
        except _SteeperThanSaid:
            sampler.lipschitz *= 2
            sampler.bend *= 2


def _grids(resolution: int, fewest: int) -> tuple[int, int]:
    """Cells along an edge of the coarsest grid, at least `fewest`, and how often they are halved."""
    halvings = 0
    while resolution >> halvings >= 2 * fewest:
        halvings += 1
    return -(-resolution >> halvings), halvings


@dataclass
class _Sampler:
    """Evaluates a field in chunks and counts; knows what its constants say."""

    field: Field
    on_chunk: OnChunk
    lipschitz: float
    bend: float
    evaluations: int = 0

    @classmethod
    def of(cls, field: Field, on_chunk: OnChunk) -> _Sampler:
        """What a field says of itself is asked before it is evaluated: a GPU has to be waited for."""
        return cls(field, on_chunk, field.lipschitz, field.bend)

    @torch.no_grad()
    def distance(self, points: Tensor) -> Tensor:
        """The field (N,) at (N, 3) canonical points."""
        self.evaluations += len(points)
        values = [points.new_empty(0)]
        for chunk in points.split(at_a_time(points.device, *CHUNK)) if len(points) else ():
            self.on_chunk()
            values.append(self.field.distance(chunk))
        return torch.cat(values)

    def gradient(self, points: Tensor) -> Tensor:
        """The field's gradients (N, 3) at (N, 3) canonical points."""
        self.evaluations += len(points)
        gradients = []
        for chunk in points.split(at_a_time(points.device, *CHUNK)):
            self.on_chunk()
            gradients.append(self.field.distance_and_gradient(chunk)[1])
        return torch.cat(gradients)

    def bound(self, a: Tensor, b: Tensor, distance: Tensor) -> Tensor:
        """Least |f| in the middle of corners that are `distance` away, with f's sign; 0 if that is unsure."""
        mean = (a + b).abs_().div_(2).sub_(self.bend * distance)
        larger = torch.maximum(a.abs(), b.abs()).sub_(self.lipschitz * distance)
        return torch.maximum(mean, larger).clamp_(min=0).copysign_(a).mul_(a * b > 0)


@dataclass
class _Slab:
    """Corner values of neighbouring planes of a grid, which may reach `beyond` its far ends."""

    values: Tensor  # (X, Y, Y): f, or a bound of it with the same sign
    exact: Tensor  # (X, Y, Y): whether it is f
    start: int  # index of the first plane
    cells: int  # of the grid, along an edge

    @property
    def cell(self) -> float:
        """Length of a cell's edge."""
        return 2 * HALF_WIDTH / self.cells

    def planes(self, first: int) -> _Slab:
        """Those from `first` on; counted from the last one if it is negative."""
        start = self.start + first % len(self.values)
        return _Slab(self.values[first:].clone(), self.exact[first:].clone(), start, self.cells)

    def within(self) -> _Slab:
        """The same without what is beyond the grid, or another slab's."""
        values, exact = (part[:-1, :-1, :-1].contiguous() for part in (self.values, self.exact))
        return _Slab(values, exact, self.start, self.cells)

    def points(self, corners: Tensor) -> Tensor:
        """Where (N, 3) corners of this slab, or points between them, lie: canonical frame."""
        exact = corners.to(torch.float64, copy=True)
        exact[:, 0] += self.start
        return exact.mul_(self.cell).sub_(HALF_WIDTH).float()

    def corners(self, places: Tensor) -> Tensor:
        """The corners (N, 3) whose values stand there (N,)."""
        along = self.values.stride()
        return torch.stack([places // along[0], places % along[0] // along[1], places % along[1]], dim=1)


def _slabs(sampler: _Sampler, base: int, halvings: int) -> Iterator[tuple[_Slab, Tensor]]:
    """The finest grid, slab by slab, with its crossed cells (C, 3); each begins with the last plane before.

    A grid that is to be halved goes one cell beyond its far ends, and its slabs one beyond theirs: so each
    corner is the first of a cell, and each new one belongs to one cell.
    """
    finest, beyond = base << halvings, min(halvings, 1)
    most = at_a_time(sampler.field.device, *SLAB_VALUES)
    thickness = max(1, most // ((finest + 1) ** 2 << halvings))
    before: list[_Slab | None] = [None] * (halvings + 1)
    for start in range(0, base, thickness):
        stop = min(start + thickness, base)
        slab = _evaluated(sampler, base, start, stop + beyond, base + beyond, before[0])
        for level in range(halvings + 1):
            if level > 0:
                least = (CERTAIN if level == halvings else THRIFT) * slab.cell / 2
                slab = _halved(sampler, slab, before[level], least)
            before[level] = last = slab.planes(-1 - beyond)
        slab = slab.within() if beyond else slab
        _close_border(slab)
        crossed = _settle(sampler, slab)
        grid = slice(finest + 1)
        last.values[0, grid, grid], last.exact[0, grid, grid] = slab.values[-1], slab.exact[-1]
        yield slab, crossed


def _evaluated(
    sampler: _Sampler, cells: int, first: int, last: int, farthest: int, before: _Slab | None
) -> _Slab:
    """Planes `first` to `last` of a grid, every corner up to `farthest` evaluated but those of `before`."""
    device = sampler.field.device
    values = torch.empty((last + 1 - first, farthest + 1, farthest + 1), device=device)
    slab = _Slab(values, torch.ones_like(values, dtype=torch.bool), first, cells)
    new = slice(0, None)
    if before is not None:
        new = slice(len(before.values), None)
        values[: new.start] = before.values
    corners = torch.cartesian_prod(*(torch.arange(size, device=device) for size in values[new].shape))
    corners[:, 0] += new.start
    values[new].view(-1).copy_(sampler.distance(slab.points(corners)))
    return slab


def _halved(sampler: _Sampler, coarse: _Slab, before: _Slab | None, least: float) -> _Slab:
    """The slab on a grid of half the spacing; corners whose bound is not above `least` are evaluated."""
    slab, wanted = (_halved_at_once if usable(coarse.values.device) else _bounded)(sampler, coarse, least)
    if before is not None:
        slab.values[:2], slab.exact[:2] = before.values, before.exact
        wanted = wanted[wanted >= 2 * slab.values[0].numel()]
    slab.values.view(-1)[wanted] = sampler.distance(slab.points(slab.corners(wanted)))
    return slab


def _halved_at_once(sampler: _Sampler, coarse: _Slab, least: float) -> tuple[_Slab, Tensor]:
    """The same as `_bounded` in one launch, which looks at all cells of the coarse grid."""
    bend, steep = (constant * coarse.cell / 2 for constant in (sampler.bend, sampler.lipschitz))
    values, exact, wanted = halved(coarse.values, coarse.exact, bend, steep, least)
    return _Slab(values, exact, 2 * coarse.start, 2 * coarse.cells), wanted.view(-1).nonzero().squeeze(1)


def _bounded(sampler: _Sampler, coarse: _Slab, least: float) -> tuple[_Slab, Tensor]:
    """The slab on a grid of half the spacing, new corners bounded, and where those to be evaluated stand."""
    loss = sqrt(3) * sampler.bend * coarse.cell / 2  # from a cell's corners to its middle, the farthest
    low, high = _extremes(coarse.values)
    far = (low > 2 * loss) | (high < -2 * loss)  # what the grids to come may lose is as much again
    bound = (low - loss).clamp_(min=0) + (high + loss).clamp_(max=0)
    values = torch.nn.functional.interpolate(bound[None, None], scale_factor=2)[0, 0]  # every cell as eight
    slab = _Slab(values, torch.zeros_like(values, dtype=torch.bool), 2 * coarse.start, 2 * coarse.cells)
    known = coarse.within()
    slab.values[::2, ::2, ::2], slab.exact[::2, ::2, ::2] = known.values, known.exact
    cells = _and_those_after(~far).nonzero().split(at_a_time(values.device, *CHUNK))
    wanted = torch.cat([_fill(sampler, coarse, slab, some, least) for some in cells])
    slab.exact.view(-1)[wanted] = True
    return slab, wanted


def _fill(sampler: _Sampler, coarse: _Slab, slab: _Slab, cells: Tensor, least: float) -> Tensor:
    """Bound the seven new corners of each of (N, 3) coarse cells: those next to its first.

    Returns where those stand that are to be evaluated.
    """
    first, second, length = _opposite(cells.device)
    known = places_of(cells, coarse.values) + to_corners(coarse.values)[:, None]
    around = coarse.values.view(-1)[known]  # (8, N)
    bounds = sampler.bound(around[first], around[second], slab.cell * length)
    values = bounds.amax(dim=0).clamp_(min=0).add_(bounds.amin(dim=0).clamp_(max=0))
    places = places_of(2 * cells, slab.values) + to_corners(slab.values)[1:, None]
    slab.values.view(-1)[places] = values
    return places[~(values.abs() > least)]


@cache
def _opposite(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Corners of a cell in whose middle the new corners next to its first one lie, by twos.

    By their numbers in `marching.CORNERS`, both (4, 7), some of them repeated; and how far away they are,
    (4, 7, 1), in new cells.
    """
    pairs = [[(a, new - a) for a in range(new) if a & ~new == 0 and a < new - a] for new in range(1, 8)]
    four = torch.tensor([(pair * 4)[:4] for pair in pairs])  # (7, 4, 2)
    length = torch.tensor([new.bit_count() for new in range(1, 8)]).sqrt().expand(4, 7)[:, :, None]
    return four[..., 0].T.to(device), four[..., 1].T.to(device), length.to(device)


def _extremes(values: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest value of each cell's corners."""
    low = high = values
    for axis in range(3):
        size = values.shape[axis] - 1
        low = torch.minimum(low.narrow(axis, 0, size), low.narrow(axis, 1, size))
        high = torch.maximum(high.narrow(axis, 0, size), high.narrow(axis, 1, size))
    return low, high


def _and_those_after(cells: Tensor) -> Tensor:
    """Marked cells, and those whose first corner is one of theirs."""
    for axis in range(3):
        size = cells.shape[axis] - 1
        before, cells = cells, cells.clone()
        cells.narrow(axis, 1, size).logical_or_(before.narrow(axis, 0, size))
    return cells


def _close_border(slab: _Slab) -> None:
    """Make the border of the grid outside, so that the mesh is closed whatever the field does there."""
    ends = [
        (slice(None), 0),
        (slice(None), -1),
        (slice(None), slice(None), 0),
        (slice(None), slice(None), -1),
    ]
    ends += [(0,)] if slab.start == 0 else []
    ends += [(-1,)] if slab.start + len(slab.values) == slab.cells + 1 else []
    for end in ends:
        slab.values[end].clamp_(min=slab.cell)
        slab.exact[end] = True


def _settle(sampler: _Sampler, slab: _Slab) -> Tensor:
    """Evaluate what is not exact of the corners of cells that the surface crosses; those cells (C, 3)."""
    cells = _crossed(slab.values < 0).nonzero()
    around = places_of(cells, slab.values) + to_corners(slab.values)[:, None]  # (8, C)
    wanted, values = around[~slab.exact.view(-1)[around]].unique(), slab.values.view(-1)
    found = sampler.distance(slab.points(slab.corners(wanted)))
    if ((found < 0) != (values[wanted] < 0)).any():
        raise _SteeperThanSaid
    values[wanted], slab.exact.view(-1)[wanted] = found, True
    return cells


def _crossed(inside: Tensor) -> Tensor:
    """The cells whose corners differ in sign."""
    count = inside.view(torch.int8)  # of the corners that are inside
    for axis in range(3):
        size = count.shape[axis] - 1
        count = count.narrow(axis, 0, size) + count.narrow(axis, 1, size)
    return (count & 7).bool()  # neither none nor all eight


def _stitched(slabs: Iterator[tuple[_Slab, Tensor]]) -> tuple[Tensor, Tensor]:
    """Vertices (V, 3) and faces (F, 3) of all slabs."""
    places, vertices, corners = [], [], []
    for slab, crossed in slabs:
        piece, before = marched(slab.values, crossed, slab.cell), 4 * slab.start * slab.values[0].numel()
        places.append(piece.places + before)
        vertices.append(slab.points(piece.vertices))
        corners.append(piece.corners + before)
    if not sum(map(len, places)):
        raise NoSurface("the field is positive everywhere: nothing to mesh")
    return torch.cat(vertices), torch.searchsorted(torch.cat(places), torch.cat(corners))


def _without_skin(sampler: _Sampler, points: Tensor, skin: float) -> tuple[Tensor, Tensor]:
    """Vertices (V, 3) moved in by the skin, and outward unit normals.

    At 2τ below the vertex the field is −2τ in a thick part, but back at zero in a bare sheet, which
    must stay as thick as the skin made it. In between the move fades, so that no step shows. A field that
    is flatter than a distance reaches −τ farther in.
    """
    gradients = sampler.gradient(points)
    slope = gradients.norm(dim=1, keepdim=True)
    normals = gradients / slope.clamp(min=1e-12)
    if skin > 0:
        depth = -sampler.distance(points - 2 * skin * normals) / skin
        step = skin / slope.clamp(0.5, 2)
        points = points - step * (depth - 0.5).clamp(0, 1).unsqueeze(1) * normals
    return points, normals
