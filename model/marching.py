"""Marching cubes over the cells that a surface crosses, on the device where the values are.

In most cells the signs of the corners decide which edges of it the triangles join: a table says so, taken
from scikit-image. The few others, where a face has two corners of each sign across from each other or the
cell has but two opposite ones of a sign, go to scikit-image as they are (Lewiner et al. 2003), which looks at
the values; spread out, so that they are no neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.measure import marching_cubes
from torch import Tensor

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

NEAREST, FARTHEST = 1e-3, 8.0
"""Cells to which the values' size is clipped: a zero would make triangles without area, and a vertex is known
by the edge that it lies on."""

CORNERS = np.array(list(product((0, 1), repeat=3)))  # (8, 3) of a cell

EDGES = np.array([(axis, corner) for axis in range(3) for corner in range(8) if not CORNERS[corner, axis]])
"""The edges (12, 2) of a cell: along which axis, and from which corner on."""

MIDDLE, NONE = len(EDGES), -1
"""In the place of an edge's number: a vertex inside the cell, and no vertex."""


@dataclass(frozen=True)
class Piece:
    """Triangles in a grid, by what tells their corners from all others.

    The vertex on the edge from the grid's corner c along axis a has the place 4 c + a; one inside of the cell
    from c on has 4 c + 3. A cell has the vertices whose places begin with its own first corner; those of its
    other edges are other cells'.
    """

    places: Tensor  # (V,) ascending
    vertices: Tensor  # (V, 3) double precision, in grid cells from the first corner
    corners: Tensor  # (F, 3) places of triangles' corners, counter-clockwise from outside


@torch.no_grad()
def marched(values: Tensor, cells: Tensor, cell: float = 1.0) -> Piece:
    """The zero level of values (X, Y, Z), within the cells that it crosses.

    `cells` (C, 3) are their first corners, in ascending order; `cell` is the length of a cell's edge, in the
    unit of the values.
    """
    table, unsure = _tables(values.device)
    first = places_of(cells, values)
    around = _clipped(values.view(-1)[first + to_corners(values)[:, None]], cell)  # (8, C)
    signs = ((around < 0) << torch.arange(8, device=cells.device)[:, None]).sum(dim=0)
    where, edges = _by_table(table, signs)
    several = unsure[signs].nonzero().squeeze(1)
    lewiner = _by_lewiner(around[:, several].T.cpu().numpy())
    of_several, others, within, middles = (torch.from_numpy(part).to(cells.device) for part in lewiner)
    where, edges = torch.cat([where, several[of_several]]), torch.cat([edges, others])
    corners = 4 * first[where, None] + _moves(values.stride(), values.device)[1][edges]
    crossed, along = _on_own_edges(around)
    crossed[several[within], 3], along[several[within], 3] = True, middles
    cell_of, axis = crossed.nonzero().T
    return Piece(4 * first[cell_of] + axis, cells[cell_of] + along[cell_of, axis], corners)


def places_of(corners: Tensor, values: Tensor) -> Tensor:
    """Where the values of (N, 3) corners stand among those of a flattened grid, (N,)."""
    along = values.stride()
    return corners[:, 0] * along[0] + corners[:, 1] * along[1] + corners[:, 2]


def to_corners(values: Tensor) -> Tensor:
    """How far in a flattened grid the values of a cell's corners stand behind that of its first, (8,)."""
    return _moves(values.stride(), values.device)[0]


@lru_cache(maxsize=64)
def _moves(along: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The same by a grid's strides; and how far places of vertices (13,) are behind 4 times the first's."""
    corners = CORNERS @ along
    axis, corner = np.array([*EDGES, (3, 0)]).T
    return torch.from_numpy(corners).to(device), torch.from_numpy(4 * corners[corner] + axis).to(device)


def _clipped(values: Tensor, cell: float) -> Tensor:
    size = (values / cell).abs_().clamp_(NEAREST, FARTHEST)
    return torch.where(values < 0, -size, size)


def _by_table(table: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    """The triangles of cells with such signs (C,): in which cell (F,), and which edges (F, 3) they join."""
    joined = table[signs].view(-1, 3)
    rows = (joined[:, 0] != NONE).nonzero().squeeze(1)
    return rows // table.shape[1], joined[rows]


def _on_own_edges(around: Tensor) -> tuple[Tensor, Tensor]:
    """Which edges from their first corner on cells with such values (8, C) have a vertex on, and where.

    For each axis, and for a vertex inside, which none has yet: (C, 4), and (C, 4, 3) in cells.
    """
    near, far = around[:1], torch.stack([around[4], around[2], around[1]])
    crossed = torch.nn.functional.pad((near < 0) != (far < 0), (0, 0, 0, 1))
    near, far = near.double().abs(), far.double().abs()
    along = torch.zeros((around.shape[1], 4, 3), dtype=torch.float64, device=around.device)
    along[:, :3].diagonal(dim1=1, dim2=2).copy_((near / (near + far)).T)
    return crossed.T, along


@cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """By the bits of a cell's corners below zero: the edges (256, T, 3) that triangles join, and whether they
    are unsure (256,).
    """
    below = np.arange(256)[:, None] >> np.arange(8) & 1
    cells, joined, _, _ = _by_lewiner(np.where(below, -1.0, 1.0))
    unsure = np.array([_is_unsure(corners.reshape(2, 2, 2)) for corners in below])
    sure = ~unsure[cells]
    cells, joined = cells[sure], joined[sure]
    order = np.argsort(cells, kind="stable")
    number = np.arange(len(cells)) - np.searchsorted(cells[order], cells[order])
    table = np.full((256, number.max() + 1, 3), NONE)
    table[cells[order], number] = joined[order]
    return torch.from_numpy(table).to(device), torch.from_numpy(unsure).to(device)


def _is_unsure(below: Indices) -> bool:
    """Whether the signs (2, 2, 2) leave open how the surface passes through the cell."""
    faces = [face for axis in range(3) for face in np.moveaxis(below, axis, 0)]
    across = any(face[0, 0] == face[1, 1] != face[0, 1] == face[1, 0] for face in faces)
    few = np.argwhere(below == (below.sum() <= 4))
    return across or (len(few) == 2 and bool((few.sum(axis=0) == 1).all()))


def _by_lewiner(cells: Array) -> tuple[Indices, Indices, Indices, Array]:
    """The triangles of cells with such corners (C, 8), by scikit-image.

    In which cell (F,) they are and which edges (F, 3) they join; which cells (M,) have a vertex inside, and
    where in the cell (M, 3).
    """
    if not len(cells):
        return np.empty(0, int), np.empty((0, 3), int), np.empty(0, int), np.empty((0, 3))
    side = int(np.ceil(np.cbrt(len(cells))))
    low = 2 * np.stack(np.unravel_index(np.arange(len(cells)), 3 * [side]), axis=1)
    volume, mask = np.ones(3 * [2 * side], np.float32), np.zeros(3 * [2 * side], bool)
    volume[tuple(np.moveaxis(low[:, None] + CORNERS, 2, 0))] = cells
    mask[tuple(low.T + 1)] = True  # it looks for a cell's mark at its far corner
    vertices, faces, _, _ = marching_cubes(volume, level=0.0, gradient_direction="descent", mask=mask)
    cell = (vertices // 2).astype(int)
    local = vertices - 2 * cell
    edge = _numbers()[tuple((np.floor(local) + np.ceil(local)).astype(int).T)]
    cell = np.ravel_multi_index(tuple(cell.T), 3 * [side])
    inside = edge == MIDDLE
    return cell[faces[:, 0]], edge[faces], cell[inside], local[inside].astype(float)


@cache
def _numbers() -> Indices:
    """Which edge a point lies on, by twice its coordinates (3, 3, 3), where those between corners are 1."""
    numbers = np.full((3, 3, 3), NONE)
    numbers[1, 1, 1] = MIDDLE
    for number, (axis, corner) in enumerate(EDGES):
        numbers[tuple(2 * CORNERS[corner] + np.eye(3, dtype=int)[axis])] = number
    return numbers
