"""What codes are good for besides completion: auto-encoding whole shapes, going between two, looking up.

DeepSDF, sections 6.1, 6.2 and 6.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.checkpoint import Checkpoint
from model.latent import LevenbergMarquardt
from model.mesh import Mesh
from model.problems import FitSettings, Problems, Rows, rows_of_samples
from model.surface import extract_surface

Array = NDArray[np.float64]

ENCODED_SAMPLES = 8000
ENCODING = FitSettings(prior_weight=1e-7, huber=0.005, steps=40)
"""Whole shapes are known much better than scans: less prior, and outliers begin earlier."""


@dataclass(frozen=True)
class NearShape:
    """A training shape and how far its code is."""

    shape: str
    distance: float  # root mean squared Mahalanobis distance a dimension; about 1.4 between two shapes


def encode_samples(
    checkpoint: Checkpoint, points: Array, distances: Array, count: int = ENCODED_SAMPLES, seed: int = 0
) -> Tensor:
    """The code (L,) of a shape of which (N,) signed distances at (N, 3) canonical points are known.

    Distances are those of the shape itself; the checkpoint's skin is added here. `count` of them are
    looked at.
    """
    picks = np.random.default_rng(seed).permutation(len(points))[:count]
    samples = torch.from_numpy(np.asarray(points[picks], dtype=np.float32))[None]
    values = torch.from_numpy(np.asarray(distances[picks], dtype=np.float32))[None] - checkpoint.skin
    device = checkpoint.device
    return encode_rows(
        checkpoint, rows_of_samples(samples.to(device), values.to(device), checkpoint.clamping_distance)
    )


def encode_rows(checkpoint: Checkpoint, rows: Rows) -> Tensor:
    """The code (L,) that fits the rows of one problem best, from the mean and the three nearest codes."""
    codes = torch.cat([checkpoint.prior.mean[None], nearest_codes(checkpoint, rows)[:3]])
    problems = Problems.start(rows, codes, checkpoint.prior, settings=ENCODING)
    solver = LevenbergMarquardt(checkpoint.decoder, problems, ENCODING)
    while not solver.finished:
        solver.step()
    return solver.codes[int(solver.cost.argmin())]


@torch.no_grad()
def nearest_codes(checkpoint: Checkpoint, rows: Rows) -> Tensor:
    """Training codes (N, L), those whose field fits the rows of one problem best first."""
    some = rows.some(torch.arange(0, len(rows), 8, device=checkpoint.device))
    codes = checkpoint.starts.codes
    fields = checkpoint.decoder(codes, some.points.expand(len(codes), -1, -1))
    misfit = (fields - torch.maximum(torch.minimum(fields, some.upper), some.lower)).abs().mean(dim=1)
    return codes[misfit.argsort()]


def decode(checkpoint: Checkpoint, code: Tensor, resolution: int = 128) -> Mesh:
    """The closed mesh of an (L,) code in the canonical frame. Raises NoSurface."""
    return extract_surface(checkpoint.field(code), resolution, checkpoint.skin).mesh


def between(first: Tensor, last: Tensor, count: int) -> Tensor:
    """`count` codes (count, L) at even steps from one (L,) code to another, both included."""
    share = torch.linspace(0, 1, count, device=first.device)[:, None]
    return torch.lerp(first[None], last[None], share)


def nearest_shapes(checkpoint: Checkpoint, code: Tensor, count: int = 5) -> list[NearShape]:
    """The training shapes whose codes are nearest to an (L,) code, in the metric of the code prior."""
    rows = checkpoint.own_shapes
    apart = checkpoint.codes[rows] - code
    distances = ((apart @ checkpoint.prior.precision) * apart).mean(dim=1).clamp(min=0).sqrt()
    least, order = (part.tolist() for part in distances.topk(min(count, len(rows)), largest=False))
    return [NearShape(checkpoint.shapes[rows[i]], far) for i, far in zip(order, least, strict=True)]
