"""The zero level set of a decoded field as a closed mesh, evaluated coarse to fine.

A cell whose centre is farther from the surface than its own half diagonal cannot hold any of it. So
the field is evaluated at cell centres of a coarse grid, and cells that may hold the surface are split
in eight. From the last centres most corners of the final grid have a certain sign; the others are
evaluated, and then those of every cell whose corners differ in sign, until all of these are exact:
what marching cubes sees is what a dense grid would have shown it. Where the field says nothing of
distance (beyond the clamping distance it was trained with) it is still larger than that distance,
and the coarsest half diagonal is kept below it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.measure import marching_cubes
from torch import Tensor

from model.field import Field
from model.mesh import Mesh

OnChunk = Callable[[], None]
"""Called between chunks of evaluations; what it raises ends the extraction."""

HALF_WIDTH = 1.04
"""The grid spans [-HALF_WIDTH, HALF_WIDTH]³: the unit ball and a margin for the closed border."""

COARSEST_CELLS = 32
COARSE_SLACK = 1.7
SLACK = 1.1
"""How much steeper than a true distance field the decoder may be where a cell is left out: generous where
cells are few and a lost one would be a lost piece, tight at the last level, which corrects itself."""

CHUNK = 16_384


def _nothing() -> None: ...


class NoSurface(Exception):
    """The field has no zero crossing inside the grid."""


@dataclass(frozen=True)
class Extraction:
    """A mesh in the canonical frame and what it cost."""

    mesh: Mesh
    evaluations: int


@torch.no_grad()
def _evaluate(field: Field, points: NDArray[np.float32], on_chunk: OnChunk) -> NDArray[np.float32]:
    values = []
    for chunk in torch.from_numpy(points).split(CHUNK):
        on_chunk()
        values.append(field.distance(chunk.to(field.device)).cpu())
    return torch.cat(values).numpy()


def _centre_levels(resolution: int) -> list[int]:
    """Cells along an edge at which centres are evaluated, coarsest first, up to half the resolution."""
    levels = [resolution // 2] if resolution % 2 == 0 else []
    while levels and levels[0] % 2 == 0 and levels[0] // 2 >= COARSEST_CELLS:
        levels.insert(0, levels[0] // 2)
    return levels if levels and levels[0] >= COARSEST_CELLS else []


def _rounded(resolution: int) -> int:
    """The resolution, raised where it does not halve down to a coarse grid."""
    return resolution if resolution < 2 * COARSEST_CELLS else -(-resolution // 8) * 8


def _cell_size(cells: int) -> float:
    return 2 * HALF_WIDTH / cells


def _centres(indices: NDArray[np.int64], cells: int) -> NDArray[np.float32]:
    return ((indices + 0.5) * _cell_size(cells) - HALF_WIDTH).astype(np.float32)


_CORNERS = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), axis=-1).reshape(8, 3)


def dense_volume(
    field: Field, resolution: int, on_chunk: OnChunk = _nothing
) -> tuple[NDArray[np.float32], int]:
    """The field at all (resolution+1)³ corners: the reference of `sparse_volume`."""
    corners = np.indices((resolution + 1,) * 3).reshape(3, -1).T
    points = (corners * _cell_size(resolution) - HALF_WIDTH).astype(np.float32)
    values = _evaluate(field, points, on_chunk)
    return values.reshape((resolution + 1,) * 3), len(points)


def sparse_volume(
    field: Field, resolution: int, on_chunk: OnChunk = _nothing
) -> tuple[NDArray[np.float32], int]:
    """The field at (resolution+1)³ corners, exact at the corners of every cell that the surface crosses.

    Elsewhere a corner has the value of a nearby cell centre of the same sign. Returns the volume and how
    often the field was evaluated.
    """
    levels = _centre_levels(resolution)
    if not levels:
        return dense_volume(field, resolution, on_chunk)
    centres, evaluated, evaluations = _centre_volume(field, levels, on_chunk)
    volume = _corners_of(centres)
    exact = np.zeros(volume.shape, dtype=bool)
    exact[tuple(2 * evaluated.T + 1)] = True
    wanted = (np.abs(volume) <= SLACK * _reach(resolution)) & ~exact
    while wanted.any():
        corners = np.argwhere(wanted)
        points = (corners * _cell_size(resolution) - HALF_WIDTH).astype(np.float32)
        volume[wanted] = _evaluate(field, points, on_chunk)
        evaluations += len(points)
        exact |= wanted
        wanted = _crossed(volume < 0) & ~exact
    return volume, evaluations


def _centre_volume(
    field: Field, levels: list[int], on_chunk: OnChunk
) -> tuple[NDArray[np.float32], NDArray[np.int64], int]:
    """The field at the centres of the last level's cells, or of a larger cell where that is far enough.

    Returns the volume, the (N, 3) cells of the last level that were evaluated, and the evaluations.
    """
    indices = np.indices((levels[0],) * 3).reshape(3, -1).T
    volume = values = np.empty((levels[0],) * 3, dtype=np.float32)
    evaluations = 0
    for cells in levels:
        if cells != levels[0]:
            near = np.abs(values) <= COARSE_SLACK * _cell_size(cells // 2) * np.sqrt(3) / 2
            indices = (2 * indices[near][:, None, :] + _CORNERS).reshape(-1, 3)
            volume = volume.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
        values = _evaluate(field, _centres(indices, cells), on_chunk)
        evaluations += len(values)
        volume[tuple(indices.T)] = values
    return volume, indices, evaluations


def _corners_of(centres: NDArray[np.float32]) -> NDArray[np.float32]:
    """Corner values (2n+1)³ from n³ cell centres: of the cells around a corner, the value farthest from zero.

    Every second corner along each axis is a centre itself.
    """
    for axis in range(3):
        values = np.moveaxis(centres, axis, 0)
        padded = np.pad(values, ((1, 1), (0, 0), (0, 0)), mode="edge")
        low, high = padded[:-1], padded[1:]
        corners = np.empty((2 * len(values) + 1, *values.shape[1:]), values.dtype)
        corners[1::2] = values
        corners[::2] = np.where(np.abs(low) > np.abs(high), low, high)
        centres = np.moveaxis(corners, 0, axis)
    return np.ascontiguousarray(centres)


def _reach(resolution: int) -> NDArray[np.float32]:
    """How far each corner lies from the centre that its value comes from."""
    even = (np.arange(resolution + 1) % 2 == 0).astype(np.float32)
    steps = even[:, None, None] + even[:, None] + even
    return np.asarray(np.sqrt(steps) * _cell_size(resolution), dtype=np.float32)


def _crossed(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The corners of cells whose corners differ in sign."""
    some, every = inside, inside
    for axis in range(3):
        low, high = _halves(axis)
        some, every = some[low] | some[high], every[low] & every[high]
    mixed = some & ~every
    for axis in range(3):
        after, before = [(0, 0)] * 3, [(0, 0)] * 3
        after[axis], before[axis] = (0, 1), (1, 0)
        mixed = np.pad(mixed, after) | np.pad(mixed, before)
    return np.asarray(mixed)


def _halves(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """All but the last and all but the first along an axis."""
    low, high = [slice(None)] * 3, [slice(None)] * 3
    low[axis], high[axis] = slice(None, -1), slice(1, None)
    return tuple(low), tuple(high)


def triangulate(volume: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Vertices (V, 3) in the canonical frame and faces (F, 3) of the zero level of a corner volume.

    The border is made outside, so that the mesh is closed whatever the field does there.
    Raises NoSurface if nothing crosses zero.
    """
    cell = _cell_size(volume.shape[0] - 1)
    volume = np.where(volume == 0, np.float32(1e-9), volume)  # an exact zero makes degenerate triangles
    for axis in range(3):
        for border in (0, -1):
            face: list[slice | int] = [slice(None)] * 3
            face[axis] = border
            volume[tuple(face)] = np.maximum(volume[tuple(face)], cell)
    if not volume.min() < 0:  # nor where the field is not a number
        raise NoSurface("the field is positive everywhere: nothing to mesh")
    vertices, faces, _, _ = marching_cubes(volume, level=0.0, gradient_direction="descent")
    return (vertices * cell - HALF_WIDTH).astype(np.float32), faces.astype(np.int32)


def extract_surface(
    field: Field,
    resolution: int,
    skin: float = 0.0,
    *,
    dense: bool = False,
    on_chunk: OnChunk = _nothing,
) -> Extraction:
    """The closed zero level set of a field on a grid of at least `resolution` cells an edge.

    `skin` is the τ by which the field's shapes are thickened: vertices go back by it where the part is
    thick enough. Raises NoSurface.
    """
    sample = dense_volume if dense else sparse_volume
    volume, evaluations = sample(field, _rounded(resolution), on_chunk)
    vertices, faces = triangulate(volume)
    vertices, normals = _without_skin(field, vertices, skin, on_chunk)
    return Extraction(Mesh(vertices, faces, normals), evaluations + 2 * len(vertices))


def _without_skin(
    field: Field, vertices: NDArray[np.float32], skin: float, on_chunk: OnChunk
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vertices moved in by the skin, and outward unit normals.

    At 2τ below the vertex the field is −2τ in a thick part, but back at zero in a bare sheet, which
    must stay as thick as the skin made it. In between the move fades, so that no step shows.
    """
    points = torch.from_numpy(vertices).to(field.device)
    normals = torch.cat([_unit_gradient(field, part, on_chunk) for part in points.split(CHUNK)])
    if skin > 0:
        below = _evaluate(field, (points - 2 * skin * normals).cpu().numpy(), on_chunk)
        depth = -torch.from_numpy(below).to(field.device) / skin
        points = points - skin * (depth - 0.5).clamp(0, 1).unsqueeze(1) * normals
    return points.cpu().numpy(), normals.cpu().numpy()


def _unit_gradient(field: Field, points: Tensor, on_chunk: OnChunk) -> Tensor:
    on_chunk()
    _, gradient = field.distance_and_gradient(points)
    return torch.nn.functional.normalize(gradient, dim=1)
