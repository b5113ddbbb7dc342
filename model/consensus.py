"""Which of several ends of a fit to believe: the one that the others are nearest to.

Fits of one scan end in several valleys with nearly the same objective, since they differ where nothing was
seen: the lowest is no more often right than any other. What most of them have in common is: like a median,
the end with the least mean distance from the others avoids the odd one out.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from model.latent import distances_at
from model.placement import Placements
from model.problems import CodedFields

PROBES = 3000
HALF_WIDTH = 1.3
"""Places at which ends are compared: uniform in [-HALF_WIDTH, HALF_WIDTH]³ of the observation's frame."""

CLAMP = 0.03
"""Signed distances beyond it say nothing about the surface; the observation's unit."""


@torch.no_grad()
def central(fields: CodedFields, codes: Tensor, placements: Placements, cost: Tensor) -> int:
    """The number of the most central of B fits: codes (B, L), placements (B) and objectives (B,).

    The distance of two ends is the mean difference of their clamped signed distances.
    """
    distances = _profiles(fields, codes, placements)
    apart = torch.cdist(distances, distances, p=1)  # (B, B)
    return int((apart @ likelihoods(cost)).argmin())


def likelihoods(cost: Tensor) -> Tensor:
    """How much each end counts, (B,): exp(1 − E / E_lowest). Of twice the lowest objective, a third."""
    return (1 - cost / cost.min().clamp(min=1e-30)).exp()


def _profiles(fields: CodedFields, codes: Tensor, placements: Placements) -> Tensor:
    """Clamped signed distances (B, PROBES) of each end, the observation's unit."""
    points = placements.apply(_probes(codes.device).expand(len(codes), -1, -1))
    return (distances_at(fields, codes, points) / placements.scale[:, None]).clamp(-CLAMP, CLAMP)


@cache
def _probes(device: torch.device) -> Tensor:
    """Where ends are compared, (PROBES, 3): the same places for all."""
    generator = torch.Generator().manual_seed(0)
    return (HALF_WIDTH * (2 * torch.rand(PROBES, 3, generator=generator) - 1)).to(device)
