"""Nearest neighbours: by a tree on as many cores as torch may use, or on a GPU by trying all.

Who asks need not know which: it follows from where the thread works (`model.streams`). And along which
axis they vary least.
"""

from __future__ import annotations

from functools import cached_property
from math import pi, sqrt

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from model.fused import points as fused_points
from model.kernels import usable
from model.streams import here

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

PAIRS = 50_000_000
"""Pairs of points that a GPU tries at a time."""

ALIKE = 1e-4
"""Eigenvalues that differ by less than about the root of this share of them are left to LAPACK."""

MOST_PAIRS = 20_000_000_000
"""Of more pairs a tree is the faster one: trying all grows with the square of a scan."""


class Neighbours:
    """Points (M, D) of which the nearest to others are looked for."""

    def __init__(self, points: ArrayLike | Tensor) -> None:
        self.points = here(points)

    def nearest(self, others: ArrayLike | Tensor, count: int = 1) -> tuple[Array, Indices]:
        """Distances and numbers of the `count` points nearest to each of (N, D) others, ascending.

        Both (N, count), or (N,) of one. `count` is M at most.
        """
        distances, numbers = self.nearest_here(others, count)
        return distances.cpu().numpy(), numbers.cpu().numpy()

    def nearest_here(self, others: ArrayLike | Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
        """The same as tensors, where the thread works."""
        others = here(others)
        if others.device.type == "cuda" and len(others) * len(self.points) <= MOST_PAIRS:
            at_once = usable(others.device) and self.points.shape[1] == 3
            search = fused_points.nearest if at_once else nearest_by_trying
            distances, numbers = search(self.points, others, count)
            return (distances[:, 0], numbers[:, 0]) if count == 1 else (distances, numbers)
        found = self._tree.query(others.cpu().numpy(), k=count, workers=torch.get_num_threads())
        distances, numbers = (torch.from_numpy(np.asarray(part)).to(others.device) for part in found)
        return distances, numbers

    def gap(self, others: ArrayLike | Tensor) -> float:
        """The least distance from any of these points to any of the others."""
        return float(self.nearest_here(others)[0].min())

    @cached_property
    def _tree(self) -> cKDTree:
        return cKDTree(self.points.cpu().numpy())


def nearest_by_trying(points: Tensor, others: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Distances and numbers (N, count) of those of (M, D) points that are nearest to each of (N, D) others.

    All in double precision. The points go into groups, whichever: the nearest `count` of all lie in the
    `count` groups whose own nearest is nearest, and only there they are put in order.
    """
    middle = points.mean(dim=0)  # far from the origin squares would lose what tells neighbours apart
    points, others = points - middle, others - middle
    width = max(1, round(sqrt(len(points) / count)))
    empty = -len(points) % width
    lifted = torch.nn.functional.pad(
        torch.cat([-2 * points, points.square().sum(dim=1, keepdim=True)], dim=1), (0, 0, 0, empty)
    )
    lifted[len(points) :, -1] = torch.inf
    chunks = others.split(max(1, PAIRS // len(lifted)))
    columns = zip(*(_nearest_to(points, lifted, chunk, width, count) for chunk in chunks), strict=True)
    distances, numbers = (torch.cat(column) for column in columns)
    return distances, numbers


def _nearest_to(
    points: Tensor, lifted: Tensor, others: Tensor, width: int, count: int
) -> tuple[Tensor, Tensor]:
    """The same for some of the others; `lifted` (M', D + 1) are (-2 p, |p|²) in groups of `width`."""
    off = torch.nn.functional.pad(others, (0, 1), value=1.0) @ lifted.T  # |p - x|² - |x|²
    numbers = off.argmin(dim=1, keepdim=True) if count == 1 else _least(off, width, count)
    distances = (points[numbers] - others[:, None]).norm(dim=2)  # without what the products lost
    distances, order = distances.sort(dim=1)
    return distances, numbers.gather(1, order)


def _least(values: Tensor, width: int, count: int) -> Tensor:
    """Where in each row the `count` least of values (N, M') are, in any order: (N, count)."""
    groups = values.view(len(values), values.shape[1] // width, width)
    least = groups.amin(dim=2).topk(min(count, groups.shape[1]), largest=False, sorted=False).indices
    some = groups.gather(1, least[:, :, None].expand(-1, -1, width)).flatten(1)
    place = some.topk(count, largest=False, sorted=False).indices
    return least.gather(1, place // width) * width + place % width


def least_axes(points: ArrayLike | Tensor, numbers: Indices | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Along which axis (B, 3) those of (N, 3) points vary least that (B, K) numbers name, and how much.

    Returns unit axes, variances (B,) along them and the sums (B,) of the variances along all three, where the
    thread works.
    """
    points = here(points)
    numbers = torch.as_tensor(numbers, device=points.device)
    if usable(points.device):
        return fused_points.axes(points, numbers)
    # Of three rows a CPU finds points sooner than of as many columns.
    around = points.T.contiguous()[:, numbers]  # (3, B, K)
    around -= around.mean(dim=2, keepdim=True)
    patches = around.transpose(0, 1)  # (B, 3, K)
    covariance = torch.bmm(patches, patches.mT) / around.shape[2]
    axes, least = _least_eigenvectors(covariance)
    return axes, least, covariance.diagonal(dim1=1, dim2=2).sum(dim=1)


def _least_eigenvectors(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """To the least eigenvalue of symmetric matrices (B, 3, 3) the vector (B, 3), and itself (B,).

    The value is by Smith's formula (1961). What is left of a matrix without it has two rows across the
    vector. Where all rows are nearly in one line, two eigenvalues are nearly the same.
    """
    one = torch.eye(3, dtype=matrices.dtype, device=matrices.device)
    middle = matrices.diagonal(dim1=1, dim2=2).mean(dim=1)
    off = matrices - middle[:, None, None] * one
    size = (off.square().sum(dim=(1, 2)) / 6).sqrt()
    off /= size.clamp(min=1e-300)[:, None, None]
    determinant = (off[:, 0] * torch.linalg.cross(off[:, 1], off[:, 2])).sum(dim=1)
    least = 2 * ((determinant / 2).clamp(-1, 1).arccos() / 3 + 2 * pi / 3).cos()
    rows = off - least[:, None, None] * one
    across = torch.linalg.cross(rows, rows.roll(-1, dims=1))
    length, best = across.norm(dim=2).max(dim=1)
    values = middle + size * least
    vectors = across[torch.arange(len(best), device=best.device), best] / length.clamp(min=1e-300)[:, None]
    alike = (length < ALIKE).nonzero().squeeze(1)
    if len(alike):
        exact, axes = torch.linalg.eigh(matrices[alike])
        values[alike], vectors[alike] = exact[:, 0], axes[:, :, 0]
    return vectors, values
