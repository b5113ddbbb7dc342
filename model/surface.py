"""The zero level set of a field as a closed mesh, evaluated coarse to fine and slab by slab.

The corners of a coarse grid are evaluated, then its spacing is halved until the resolution is reached. A
new corner p lies in the middle of pairs of known ones, a and b, each of them d away. How steep the field is
(its Lipschitz constant L) and how sharply it bends (B) bound it there: where f(a) and f(b) have one sign,

    |f(p)| ≥ max(|f(a)|, |f(b)|) − L d     and     |f(p)| ≥ |f(a) + f(b)| / 2 − B d.

If either is above zero, p has that sign too, and the bound stands for its value: what follows from it in turn
is a bound as well. Otherwise p is evaluated. On the last grid all corners of cells with both signs are
evaluated, so that marching cubes sees there what a dense grid would have shown it. If one of them turns out
to have another sign than it was given, the field is steeper than it says, and all is done again with twice
its constants.

Slabs follow each other along the first axis, and each grid keeps but the last plane of the slab before: the
memory needed grows with the square of the resolution, not with its cube.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.field import Field, at_a_time
from model.marching import marched
from model.mesh import Mesh

OnChunk = Callable[[], None]
"""Called between chunks of evaluations; what it raises ends the extraction."""

HALF_WIDTH = 1.04
"""The grid spans [-HALF_WIDTH, HALF_WIDTH]³: the unit ball and a margin for the closed border."""

FEWEST_CELLS = 12
"""The coarsest grid has at least as many cells along an edge, where the resolution allows, and less than
twice as many; on a GPU it has twice as many: launching a halving takes longer than evaluating all corners."""

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
    level = zero_level(field, resolution, dense=dense, on_chunk=on_chunk)
    vertices, normals = _without_skin(field, level.vertices, skin, on_chunk)
    evaluations = level.evaluations + (2 if skin > 0 else 1) * len(vertices)
    return Extraction(Mesh(vertices, level.faces, normals), evaluations)


def zero_level(
    field: Field, resolution: int, *, dense: bool = False, on_chunk: OnChunk = _nothing
) -> ZeroLevel:
    """Where the field is zero, on a grid of at least `resolution` cells an edge; `dense` evaluates all of it.

    The mesh is closed at the border of the grid, whatever the field does there. Raises NoSurface.
    """
    sampler = _Sampler(field, on_chunk)
    base, halvings = _grids(resolution, at_a_time(field.device, FEWEST_CELLS, 2 * FEWEST_CELLS))
    if dense:
        base, halvings = base << halvings, 0
    while True:
        try:
            vertices, faces = _stitched(_slabs(sampler, base, halvings))
            return ZeroLevel(vertices, faces, sampler.evaluations)
        except _SteeperThanSaid:
            sampler.steepening *= 2


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
    steepening: float = 1.0
    evaluations: int = 0

    @torch.no_grad()
    def distance(self, points: Tensor) -> Tensor:
        """The field (N,) at (N, 3) canonical points."""
        self.evaluations += len(points)
        values = [points.new_empty(0)]
        for chunk in points.split(at_a_time(points.device, *CHUNK)) if len(points) else ():
            self.on_chunk()
            values.append(self.field.distance(chunk))
        return torch.cat(values)

    def bend(self, distance: float) -> float:
        """How far f may be from the mean of its values at opposite points that are `distance` away."""
        return self.steepening * self.field.bend * distance

    def bound(self, a: Tensor, b: Tensor, distance: Tensor) -> Tensor:
        """Least |f| in the middle of corners that are `distance` away; 0 where they differ in sign."""
        mean = (a + b).abs_().div_(2).sub_(self.bend(1.0) * distance)
        steepest = self.steepening * self.field.lipschitz * distance
        larger = torch.maximum(a.abs(), b.abs()).sub_(steepest)
        return torch.maximum(mean, larger).mul_(a * b > 0)


@dataclass
class _Slab:
    """Corner values of neighbouring planes of a grid with N cells along an edge."""

    values: Tensor  # (X, N + 1, N + 1): f, or a bound of it with the same sign
    exact: Tensor  # (X, N + 1, N + 1): whether it is f
    start: int  # index of the first plane

    @property
    def cell(self) -> float:
        """Length of a cell's edge."""
        return 2 * HALF_WIDTH / (self.values.shape[1] - 1)

    def last_plane(self) -> _Slab:
        """What the next slab begins with."""
        return _Slab(self.values[-1:].clone(), self.exact[-1:].clone(), self.start + self.values.shape[0] - 1)

    def points(self, corners: Tensor) -> Tensor:
        """Where (N, 3) corners of this slab, or points between them, lie: canonical frame."""
        exact = corners.to(torch.float64, copy=True)
        exact[:, 0] += self.start
        return exact.mul_(self.cell).sub_(HALF_WIDTH).float()

    def places(self, corners: Tensor) -> Tensor:
        """Where the values of (…, 3) corners stand in the flattened slab, (…)."""
        along = self.values.stride()
        return corners[..., 0] * along[0] + corners[..., 1] * along[1] + corners[..., 2]


def _slabs(sampler: _Sampler, base: int, halvings: int) -> Iterator[tuple[_Slab, Tensor]]:
    """The finest grid, slab by slab, with its crossed cells; each begins with the last plane before it."""
    finest = base << halvings
    most = at_a_time(sampler.field.device, *SLAB_VALUES)
    thickness = max(1, most // ((finest + 1) ** 2 << halvings))
    before: list[_Slab | None] = [None] * (halvings + 1)
    for start in range(0, base, thickness):
        slab = _evaluated(sampler, base, start, min(start + thickness, base), before[0])
        for level in range(halvings + 1):
            if level > 0:
                least = (CERTAIN if level == halvings else THRIFT) * slab.cell / 2
                slab = _halved(sampler, slab, before[level], least)
            if level == halvings:
                _close_border(slab)
                crossed = _settle(sampler, slab)
            before[level] = slab.last_plane()
        yield slab, crossed


def _evaluated(sampler: _Sampler, cells: int, first: int, last: int, before: _Slab | None) -> _Slab:
    """Planes `first` to `last` of a grid, every corner evaluated but those of the plane before."""
    device = sampler.field.device
    values = torch.empty((last + 1 - first, cells + 1, cells + 1), device=device)
    slab = _Slab(values, torch.ones_like(values, dtype=torch.bool), first)
    new = slice(0, None)
    if before is not None:
        values[0], new = before.values[0], slice(1, None)
    corners = torch.cartesian_prod(*(torch.arange(size, device=device) for size in values[new].shape))
    corners[:, 0] += new.start
    values[new].view(-1).copy_(sampler.distance(slab.points(corners)))
    return slab


def _halved(sampler: _Sampler, coarse: _Slab, before: _Slab | None, least: float) -> _Slab:
    """The slab on a grid of half the spacing; corners whose bound is not above `least` are evaluated."""
    loss = 3 * sampler.bend(coarse.cell / 2)  # from a cell's corners to its edges, its faces, its middle
    cells = _bound_in_cells(coarse.values)
    near = ~(cells.abs() > 2 * loss)  # what the grids to come may lose is as much again
    values = _doubled((cells.abs() - loss).copysign(cells))
    values = torch.nn.functional.pad(values[None], (0, 1) * 3, mode="replicate")[0]
    slab = _Slab(values, torch.zeros_like(values, dtype=torch.bool), 2 * coarse.start)
    slab.values[::2, ::2, ::2], slab.exact[::2, ::2, ::2] = coarse.values, coarse.exact
    unknown = _corners_of(_doubled(near))
    if before is not None:
        slab.values[:1], slab.exact[:1], unknown[0] = before.values, before.exact, False
    corners = unknown.nonzero()
    odd = (corners & 1).sum(dim=1)
    for count in (1, 2, 3):
        _fill(sampler, slab, corners[odd == count], count, least)
    return slab


def _fill(sampler: _Sampler, slab: _Slab, corners: Tensor, count: int, least: float) -> None:
    """Bound or evaluate corners (N, 3) of which so many indices are odd.

    Their neighbours along the axes of these have fewer: they are known.
    """
    steps, lengths = _half_of_the_steps(count, corners.device)
    flat, place = slab.values.view(-1), slab.places(corners)
    odd = ((corners & 1) << torch.arange(3, device=corners.device)).sum(dim=1)
    move = slab.places(steps)[:, odd]  # (S, N)
    a = flat[place - move]
    bound, best = sampler.bound(a, flat[place + move], slab.cell * lengths).max(dim=0)
    values = bound.clamp(min=0).copysign(a.gather(0, best[None])[0])
    open_ = (~(bound > least)).nonzero().squeeze(1)
    values[open_] = sampler.distance(slab.points(corners[open_]))
    flat[place] = values
    slab.exact.view(-1)[place[open_]] = True


@cache
def _half_of_the_steps(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Steps to a corner's neighbours along the axes whose indices are odd, one of each two opposite ones.

    They are (S, 8, 3) for so many odd ones, by the bits of these; their lengths (S, 1).
    """
    half = [step for step in product((-1, 0, 1), repeat=count) if step > (0,) * count]
    steps = torch.zeros(len(half), 8, 3, dtype=torch.long)
    for axes in combinations(range(3), count):
        steps[:, sum(1 << axis for axis in axes), axes] = torch.tensor(half)
    return steps.to(device), torch.tensor(half).float().norm(dim=1, keepdim=True).to(device)


def _bound_in_cells(values: Tensor) -> Tensor:
    """The value nearest to zero of each cell's corners; 0 where they differ in sign."""
    for axis in range(3):
        size = values.shape[axis] - 1
        a, b = values.narrow(axis, 0, size), values.narrow(axis, 1, size)
        values = torch.where(a.abs() < b.abs(), a, b) * (a * b > 0)
    return values


def _doubled(cells: Tensor) -> Tensor:
    """Every cell as eight."""
    for axis in range(3):
        cells = cells.repeat_interleave(2, dim=axis)
    return cells


def _corners_of(cells: Tensor) -> Tensor:
    """The corners of marked cells."""
    corners = torch.zeros([size + 1 for size in cells.shape], dtype=torch.bool, device=cells.device)
    for part in product((slice(None, -1), slice(1, None)), repeat=3):
        corners[part].logical_or_(cells)
    return corners


def _close_border(slab: _Slab) -> None:
    """Make the border of the grid outside, so that the mesh is closed whatever the field does there."""
    cells = slab.values.shape[1] - 1
    planes = [slab.values[:, 0], slab.values[:, -1], slab.values[:, :, 0], slab.values[:, :, -1]]
    planes += [slab.values[0]] if slab.start == 0 else []
    planes += [slab.values[-1]] if slab.start + len(slab.values) == cells + 1 else []
    for plane in planes:
        plane.clamp_(min=slab.cell)


def _settle(sampler: _Sampler, slab: _Slab) -> Tensor:
    """Evaluate what is not exact of the corners of cells that the surface crosses; which cells those are."""
    crossed = _crossed(slab.values < 0)
    wanted = _corners_of(crossed) & ~slab.exact
    for plane in (wanted[:, 0], wanted[:, -1], wanted[:, :, 0], wanted[:, :, -1]):
        plane.fill_(False)
    corners = wanted.nonzero()
    place, values = slab.places(corners), slab.values.view(-1)
    found = sampler.distance(slab.points(corners))
    if ((found < 0) != (values[place] < 0)).any():
        raise _SteeperThanSaid
    values[place] = found
    slab.exact |= wanted
    return crossed


def _crossed(inside: Tensor) -> Tensor:
    """The cells whose corners differ in sign."""
    some = every = inside
    for axis in range(3):
        size = inside.shape[axis] - 1
        some = some.narrow(axis, 0, size) | some.narrow(axis, 1, size)
        every = every.narrow(axis, 0, size) & every.narrow(axis, 1, size)
    return some & ~every


def _stitched(slabs: Iterator[tuple[_Slab, Tensor]]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Vertices (V, 3) and faces (F, 3) of all slabs, each vertex on a plane between two of them once."""
    places, vertices, faces, count = [], [], [], 0
    for slab, crossed in slabs:
        piece = marched(slab.values, crossed, slab.cell)
        places.append(piece.places + 4 * slab.start * slab.values[0].numel())
        vertices.append(slab.points(piece.vertices))
        faces.append(piece.faces + count)
        count += len(piece.places)
    if count == 0:
        raise NoSurface("the field is positive everywhere: nothing to mesh")
    whole, number = torch.unique(torch.cat(places), return_inverse=True)
    found = vertices[0].new_empty((len(whole), 3)).index_copy_(0, number, torch.cat(vertices))
    return found.cpu().numpy(), number[torch.cat(faces)].int().cpu().numpy()


def _without_skin(
    field: Field, vertices: NDArray[np.float32], skin: float, on_chunk: OnChunk
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vertices moved in by the skin, and outward unit normals.

    At 2τ below the vertex the field is −2τ in a thick part, but back at zero in a bare sheet, which
    must stay as thick as the skin made it. In between the move fades, so that no step shows. A field that
    is flatter than a distance reaches −τ farther in.
    """
    points = torch.from_numpy(vertices).to(field.device)
    parts = points.split(at_a_time(points.device, *CHUNK))
    gradients = torch.cat([_gradient(field, part, on_chunk) for part in parts])
    slope = gradients.norm(dim=1, keepdim=True)
    normals = gradients / slope.clamp(min=1e-12)
    if skin > 0:
        depth = -_Sampler(field, on_chunk).distance(points - 2 * skin * normals) / skin
        step = skin / slope.clamp(0.5, 2)
        points = points - step * (depth - 0.5).clamp(0, 1).unsqueeze(1) * normals
    return points.cpu().numpy(), normals.cpu().numpy()


def _gradient(field: Field, points: Tensor, on_chunk: OnChunk) -> Tensor:
    on_chunk()
    return field.distance_and_gradient(points)[1]
