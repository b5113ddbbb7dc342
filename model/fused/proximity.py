"""Distances to a mesh on a GPU in a few launches, by `model.kernels.proximity`, for `model.proximity`."""

from __future__ import annotations

import torch
from torch import Tensor

from model.kernels import launch

BITS, WIDTH = 8, 32
"""Of the coordinates by which faces come into groups, and how many are one; so many groups are again one."""

SLACK = 1e-9
"""By how much a distance may be rounded, as a share of the mesh's size."""

ROWS = 128
"""Faces that a program places."""


def nearest(vertices: Tensor, faces: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distances (N,) of (N, 3) points to a mesh, the faces (N,) nearest to them, and where on them (N, 3).

    Of a mesh with (V, 3) vertices and (F, 3) faces.
    """
    from model.kernels.proximity import bound, place, search

    low, high = vertices.double().aminmax(dim=0)
    size = (high - low).amax()
    frame, count = torch.cat([low, size[None]]), len(faces)
    corners, code = points.new_empty(count, 9), points.new_empty(count, dtype=torch.int32)
    launch(place, (-(-count // ROWS),), vertices, faces, frame, corners, code, count, BITS=BITS, ROWS=ROWS)
    order = code.argsort()
    order = torch.cat([order, order[-1:].expand(-count % WIDTH**2)])
    balls = points.new_empty(len(order) // WIDTH, 4)
    launch(bound, (len(balls),), corners, order, balls, WIDTH=WIDTH, num_warps=1)
    scaled = (points - low) / size
    squares, where = points.new_empty(len(points)), torch.empty_like(scaled)
    found = torch.empty_like(squares, dtype=torch.long)
    larger = _larger(balls)
    launch(
        search, (len(points),),
        scaled, corners, order, balls, larger, squares, found, where, len(larger),
        SLACK=SLACK, WIDTH=WIDTH, num_warps=1,
    )  # fmt: skip
    return squares.sqrt() * size, found, low + where * size


def _larger(balls: Tensor) -> Tensor:
    """Balls (S, 4) that hold `WIDTH` of (S * WIDTH, 4) balls each."""
    inner = balls.view(-1, WIDTH, 4)
    centre = inner[:, WIDTH // 2, :3]
    reach = ((inner[:, :, :3] - centre[:, None]).norm(dim=2) + inner[:, :, 3]).amax(dim=1)
    return torch.cat([centre, reach[:, None]], dim=1)
