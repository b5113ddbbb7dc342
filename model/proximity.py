"""How far points are from a triangle mesh, exactly: by a tree of boxes, or by trying all on a GPU.

Building the tree takes longer than a GPU takes for everything, and holds Python's lock meanwhile. There,
groups of faces that are too far off as a whole are passed over, then faces whose middle is too far off by
more than their radius; the few that remain are looked at one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import igl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.fused import proximity as fused_proximity
from model.kernels import usable
from model.streams import device_here

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

PAIRS = 50_000_000
"""Pairs of a point and a face, or a group of faces, that are looked at at a time."""

BITS, WIDTH = 8, 32
"""Of the coordinates by which faces come into groups, and how many are one."""

SLACK = 1e-6
"""How wrong a distance by matrix products may be, as a share of the mesh's size."""


def nearest_on_mesh(vertices: Array, faces: NDArray[np.int32], points: Array) -> tuple[Array, Indices, Array]:
    """Distances (N,) of (N, 3) points to a mesh, the faces (N,) nearest to them, and where on them (N, 3)."""
    distance, face, at = nearest_here(vertices, faces, points)
    return distance.cpu().numpy(), face.cpu().numpy(), at.cpu().numpy()


def nearest_here(
    vertices: NDArray[np.floating], faces: NDArray[np.int32], points: Array
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as tensors, where the thread works."""
    device = device_here()
    if device.type == "cpu":
        squared, face, at = igl.point_mesh_squared_distance(points, vertices.astype(float), faces)
        return torch.from_numpy(squared).sqrt(), torch.from_numpy(face).long(), torch.from_numpy(at)
    ours, theirs, others = (torch.from_numpy(part).to(device) for part in (vertices, faces, points))
    if usable(device):
        return fused_proximity.nearest(ours, theirs, others)
    ours = ours.double()
    origin, size = ours.mean(dim=0), (ours.amax(dim=0) - ours.amin(dim=0)).amax()
    corners = ((ours - origin) / size)[theirs.long()]
    distance, face, at = nearest_on_faces(corners, (others - origin) / size)
    return size * distance, face, origin + size * at


def nearest_on_faces(corners: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of faces (F, 3, 3) and points (N, 3), double precision, of size 1."""
    groups = _Groups.of(corners)
    some = points.split(max(1, PAIRS // len(groups.centres)))
    columns = zip(*(_of_chunk(corners, groups, chunk) for chunk in some), strict=True)
    distance, face, at = (torch.cat(column) for column in columns)
    return distance, face, at


@dataclass(frozen=True)
class _Groups:
    """Faces in groups of neighbours."""

    faces: Tensor  # (G, W) their numbers
    middles: Tensor  # (G, W, 3) of the faces
    radii: Tensor  # (G, W) of the balls about their middles that hold them
    centres: Tensor  # (G, 3) each the middle of a face
    reach: Tensor  # (G,) radius of the ball about the centre that holds the group

    @classmethod
    def of(cls, corners: Tensor) -> _Groups:
        """Of faces (F, 3, 3) of size 1, along Morton's curve: what is near on it is near in space."""
        middles = corners.mean(dim=1)
        radii = (corners - middles[:, None]).norm(dim=2).amax(dim=1)
        bits, axes = torch.arange(BITS, device=corners.device), torch.arange(3, device=corners.device)
        cell = ((middles - middles.amin(dim=0)) * (1 << BITS)).long()
        order = ((cell[:, :, None] >> bits & 1) << (3 * bits + axes[:, None])).sum(dim=(1, 2)).argsort()
        faces = torch.cat([order, order[-1:].expand(-len(order) % WIDTH)]).view(-1, WIDTH)
        middles, radii = middles[faces], radii[faces]
        centres = middles[:, WIDTH // 2]
        reach = ((middles - centres[:, None]).norm(dim=2) + radii).amax(dim=1)
        return cls(faces, middles, radii, centres, reach)


def _of_chunk(corners: Tensor, groups: _Groups, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    off = torch.cdist(points, groups.centres)
    nearest = groups.middles[off.argmin(dim=1)]
    reached = (points[:, None] - nearest).norm(dim=2).amin(dim=1) + SLACK  # no nearest face is farther off
    pairs = (off - groups.reach <= reached[:, None]).nonzero()
    least, where = torch.full_like(reached, torch.inf), torch.empty_like(points)
    best = torch.empty_like(reached, dtype=torch.long)
    for row, group in (part.T for part in pairs.split(PAIRS // WIDTH)):
        away = (points[row, None] - groups.middles[group]).norm(dim=2)
        pair, place = (away - groups.radii[group] <= reached[row, None]).nonzero(as_tuple=True)
        row, face = row[pair], groups.faces[group[pair], place]
        at = _nearest_on_triangles(points[row], corners[face])
        distance = (points[row] - at).norm(dim=1)
        least = least.scatter_reduce(0, row, distance, "amin")
        hit = (distance == least[row]).nonzero().squeeze(1)
        best[row[hit]], where[row[hit]] = face[hit], at[hit]
    return least, best, where


def _nearest_on_triangles(points: Tensor, corners: Tensor) -> Tensor:
    """The point (M, 3) of each triangle (M, 3, 3) that is nearest to the point (M, 3) beside it.

    That is its projection where it is inside, else the nearest one of the three edges.
    """
    a, b, c = corners.unbind(dim=1)
    edges = torch.stack([_nearest_on_segments(points, *ends) for ends in ((a, b), (b, c), (c, a))])
    which = (points - edges).norm(dim=2).argmin(dim=0)
    at = edges.gather(0, which[None, :, None].expand(1, -1, 3))[0]
    ab, ac = b - a, c - a
    normal = torch.linalg.cross(ab, ac)
    across = torch.linalg.cross(points - a, normal)
    area = _dot(normal, normal)
    of_b, of_c = -_dot(ac, across), _dot(ab, across)  # barycentric coordinates, times the area
    inside = (of_b > 0) & (of_c > 0) & (of_b + of_c < area)
    share = torch.stack([of_b, of_c], dim=1) / area.clamp(min=1e-300)[:, None]
    return torch.where(inside[:, None], a + share[:, :1] * ab + share[:, 1:] * ac, at)


def _nearest_on_segments(points: Tensor, start: Tensor, end: Tensor) -> Tensor:
    along = end - start
    share = _dot(points - start, along) / _dot(along, along).clamp(min=1e-300)
    return start + share.clamp(0, 1)[:, None] * along


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=1)
