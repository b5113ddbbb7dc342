"""The zero level set of a decoded field as a closed mesh, evaluated coarse to fine.

A cell whose centre is farther from the surface than its own half diagonal cannot hold any of it. So
the field is evaluated at cell centres of a coarse grid, cells that may hold the surface are split in
eight, and only the corners of the last ones are evaluated for marching cubes. Where the field says
nothing of distance (beyond the clamping distance it was trained with) it is still larger than that
distance, and the coarsest half diagonal is kept below it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.measure import marching_cubes
from torch import Tensor

from model.decoder import Decoder
from model.mesh import Mesh

Field = Callable[[Tensor], Tensor]
"""Signed distances (N,) of (N, 3) canonical points."""

OnChunk = Callable[[], None]
"""Called between chunks of evaluations; what it raises ends the extraction."""

HALF_WIDTH = 1.04
"""The grid spans [-HALF_WIDTH, HALF_WIDTH]³: the unit ball and a margin for the closed border."""

COARSEST_CELLS = 32
SLACK = 1.1
"""How much steeper than a true distance field the decoder may be where a cell is left out."""

CHUNK = 65_536


class NoSurface(Exception):
    """The field has no zero crossing inside the grid."""


@dataclass(frozen=True)
class Extraction:
    """A mesh in the canonical frame and what it cost."""

    mesh: Mesh
    evaluations: int


def decoded_field(decoder: Decoder, code: Tensor, on_chunk: OnChunk = lambda: None) -> Field:
    """f(z, ·) of one (L,) code, its part of the network computed once; `on_chunk` is called at each use."""
    constants = [constant.unsqueeze(1) for constant in decoder.fold(code.unsqueeze(0))]

    def field(points: Tensor) -> Tensor:
        on_chunk()
        return decoder.evaluate(constants, points.unsqueeze(0)).squeeze(0)

    return field


@torch.no_grad()
def _evaluate(field: Field, points: NDArray[np.float32], device: torch.device) -> NDArray[np.float32]:
    chunks = torch.from_numpy(points).split(CHUNK)
    return torch.cat([field(chunk.to(device)).cpu() for chunk in chunks]).numpy()


def _levels(resolution: int) -> list[int]:
    """Cells along an edge, coarsest first, each twice the one before."""
    levels = [resolution]
    while levels[0] % 2 == 0 and levels[0] // 2 >= COARSEST_CELLS:
        levels.insert(0, levels[0] // 2)
    return levels


def _cell_size(cells: int) -> float:
    return 2 * HALF_WIDTH / cells


def _centres(indices: NDArray[np.int64], cells: int) -> NDArray[np.float32]:
    return ((indices + 0.5) * _cell_size(cells) - HALF_WIDTH).astype(np.float32)


_CORNERS = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), axis=-1).reshape(8, 3)


def dense_volume(field: Field, resolution: int, device: torch.device) -> tuple[NDArray[np.float32], int]:
    """The field at all (resolution+1)³ corners: the reference of `sparse_volume`."""
    corners = np.indices((resolution + 1,) * 3).reshape(3, -1).T
    points = (corners * _cell_size(resolution) - HALF_WIDTH).astype(np.float32)
    values = _evaluate(field, points, device)
    return values.reshape((resolution + 1,) * 3), len(points)


def sparse_volume(field: Field, resolution: int, device: torch.device) -> tuple[NDArray[np.float32], int]:
    """The field at (resolution+1)³ corners, exact at the corners of cells that may hold the surface.

    Elsewhere a corner has the value of the centre of a larger cell around it, which has its sign.
    Returns the volume and how often the field was evaluated.
    """
    levels = _levels(resolution)
    indices = np.indices((levels[0],) * 3).reshape(3, -1).T
    volume = np.empty((levels[0],) * 3, dtype=np.float32)
    evaluations = 0
    for cells in levels:
        values = _evaluate(field, _centres(indices, cells), device)
        evaluations += len(values)
        volume[tuple(indices.T)] = values
        near = np.abs(values) <= SLACK * _cell_size(cells) * np.sqrt(3) / 2
        if cells != resolution:
            volume = volume.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
            indices = (2 * indices[near][:, None, :] + _CORNERS).reshape(-1, 3)
        else:
            indices = indices[near]
    return _with_exact_corners(field, volume, indices, device, evaluations)


def _with_exact_corners(
    field: Field,
    volume: NDArray[np.float32],
    cells: NDArray[np.int64],
    device: torch.device,
    evaluations: int,
) -> tuple[NDArray[np.float32], int]:
    resolution = volume.shape[0]
    # A corner takes the value of the cell at its lower side, the last cell's at the upper border.
    volume = np.pad(volume, ((0, 1),) * 3, mode="edge")
    wanted = np.zeros(volume.shape, dtype=bool)
    for corner in _CORNERS:
        wanted[tuple((cells + corner).T)] = True
    corners = np.argwhere(wanted)
    points = (corners * _cell_size(resolution) - HALF_WIDTH).astype(np.float32)
    volume[wanted] = _evaluate(field, points, device)
    return volume, evaluations + len(points)


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
    decoder: Decoder,
    code: Tensor,
    resolution: int,
    skin: float = 0.0,
    *,
    dense: bool = False,
    on_chunk: OnChunk = lambda: None,
) -> Extraction:
    """The closed zero level set of f(code, ·) on a grid of `resolution` cells an edge.

    `code` is (L,). `skin` is the τ by which the decoder's shapes are thickened: vertices go back by it
    where the part is thick enough. Raises NoSurface.
    """
    field = decoded_field(decoder, code, on_chunk)
    sample = dense_volume if dense else sparse_volume
    volume, evaluations = sample(field, resolution, code.device)
    vertices, faces = triangulate(volume)
    vertices, normals = _without_skin(decoder, code, vertices, skin)
    return Extraction(Mesh(vertices, faces, normals), evaluations + 2 * len(vertices))


def _without_skin(
    decoder: Decoder, code: Tensor, vertices: NDArray[np.float32], skin: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vertices moved in by the skin, and outward unit normals.

    At 2τ below the vertex the field is −2τ in a thick part, but back at zero in a bare sheet, which
    must stay as thick as the skin made it. In between the move fades, so that no step shows.
    """
    points = torch.from_numpy(vertices).to(code.device)
    normals = torch.cat([_unit_gradient(decoder, code, part) for part in points.split(CHUNK)])
    if skin > 0:
        below = _evaluate(
            decoded_field(decoder, code), (points - 2 * skin * normals).cpu().numpy(), code.device
        )
        depth = -torch.from_numpy(below).to(code.device) / skin
        points = points - skin * (depth - 0.5).clamp(0, 1).unsqueeze(1) * normals
    return points.cpu().numpy(), normals.cpu().numpy()


def _unit_gradient(decoder: Decoder, code: Tensor, points: Tensor) -> Tensor:
    _, gradient = decoder.distance_and_normals(code.unsqueeze(0), points.unsqueeze(0))
    return torch.nn.functional.normalize(gradient.squeeze(0), dim=1)
