"""Marching cubes over the cells that a surface crosses, on the device where the values are.

In most cells the signs of the corners decide which edges of it the triangles join: a table says so, taken
from scikit-image. The few others, where a face has two corners of each sign across from each other or the
cell has but two opposite ones of a sign, go to scikit-image as they are (Lewiner et al. 2003), which looks at
the values; spread out, so that they are no neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
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
    """Triangles in a grid, with what tells their vertices from those of other pieces.

    The vertex on the edge from the grid's corner c along axis a has the place 4 c + a; one inside of the cell
    from c on has 4 c + 3.
    """

    places: Tensor  # (V,) ascending
    vertices: Tensor  # (V, 3) double precision, in cells from the first corner
    faces: Tensor  # (F, 3) counter-clockwise from outside


@torch.no_grad()
def marched(values: Tensor, crossed: Tensor, cell: float = 1.0) -> Piece:
    """The zero level of values (X, Y, Z), within the cells (X - 1, Y - 1, Z - 1) that it crosses.

    `cell` is the length of a cell's edge, in the unit of the values.
    """
    device, steps = values.device, torch.tensor([*values.stride(), 0], device=values.device)
    table, unsure, edges, corners = (part.to(device) for part in _tables())
    first = (crossed.nonzero() * steps[:3]).sum(dim=1)
    around = _clipped(values.view(-1)[first[:, None] + (corners * steps[:3]).sum(dim=1)], cell)  # (C, 8)
    signs = ((around < 0) << torch.arange(8, device=device)).sum(dim=1)
    cells, joined = _by_table(table, signs)
    several = unsure[signs].nonzero().squeeze(1)
    of_several, others, within, middles = _by_lewiner(around[several].cpu().numpy())
    cells = torch.cat([cells, several[torch.from_numpy(of_several).to(device)]])
    joined = torch.cat([joined, torch.from_numpy(others).to(device)])
    start = first[cells, None] + (corners[edges[:, 1]] * steps[:3]).sum(dim=1)[joined]
    places, faces = torch.unique(4 * start + edges[:, 0][joined], return_inverse=True)
    vertices = _vertices(values, places, steps, cell)
    inside = 4 * first[several[torch.from_numpy(within).to(device)]] + 3
    vertices[torch.searchsorted(places, inside)] += torch.from_numpy(middles).to(device)
    return Piece(places, vertices, faces)


def _clipped(values: Tensor, cell: float) -> Tensor:
    size = (values / cell).abs_().clamp_(NEAREST, FARTHEST)
    return torch.where(values < 0, -size, size)


def _by_table(table: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    """The triangles of cells with such signs (C,): in which cell (F,), and which edges (F, 3) they join."""
    joined = table[signs].view(-1, 3)
    rows = (joined[:, 0] != NONE).nonzero().squeeze(1)
    return rows // table.shape[1], joined[rows]


def _vertices(values: Tensor, places: Tensor, steps: Tensor, cell: float) -> Tensor:
    """Where on their edges (V, 3) the values are zero; of those inside of a cell, its first corner."""
    start, axis = places // 4, places % 4
    flat = values.view(-1)
    near, far = (_clipped(flat[at], cell).double().abs() for at in (start, start + steps[axis]))
    corner = torch.stack([start // steps[0], start % steps[0] // steps[1], start % steps[1]], dim=1)
    along = torch.eye(4, 3, dtype=torch.float64, device=values.device)[axis]
    return corner + (near / (near + far))[:, None] * along


@cache
def _tables() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What there is to know of cells, by the bits of their corners below zero where it depends on these.

    The edges (256, T, 3) that triangles join; whether it is unsure (256,); the axis and the first corner
    (13, 2) of an edge, and of a vertex inside; the corners (8, 3).
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
    edges = np.concatenate([EDGES, [[3, 0]]])
    a, b, c, d = (torch.from_numpy(part) for part in (table, unsure, edges, CORNERS))
    return a, b, c, d


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
