"""What training minimises: clamped signed distances, the Eikonal term, and the prior of the codes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from model.decoder import Decoder
from model.problems import CodePrior
from model.training.compute import autocast, compiled
from model.training.draws import Batch
from model.training.recipe import Recipe
from model.training.schedules import Phase

Field = Callable[[Tensor], Tensor]
"""Signed distances (S, N) of (S, N, 3) points."""


def clamped_l1(
    predicted: Tensor, true: Tensor, clamping_distance: float, tolerance: float = 0.0, hardness: float = 0.0
) -> Tensor:
    """Mean |clamp(f, δ) − clamp(s, δ)| (DeepSDF, equation 4), with the two terms of Curriculum DeepSDF.

    An error up to the tolerance ε costs nothing. A sample on whose wrong side f is, or on whose right side
    but nearer to the surface than it should be, is hard and weighs 1 + λ; the others weigh 1 − λ
    (equations 2 and 4 there).
    """
    delta = clamping_distance
    missing = true.clamp(-delta, delta) - predicted.clamp(-delta, delta)
    error = missing.abs()
    if tolerance:
        error = (error - tolerance).relu()
    if hardness:
        error = error * (1 + hardness * (true.sign() * missing.sign()).detach())
    return error.mean()


def eikonal(field: Field, points: Tensor) -> Tensor:
    """Mean (|∇f| − 1)² at (S, N, 3) points: a signed distance has slope 1 (Gropp et al. 2020, equation 2)."""
    points = points.detach().requires_grad_()
    (slope,) = torch.autograd.grad(field(points).sum(), [points], create_graph=True)
    missing: Tensor = slope.norm(dim=-1) - 1
    return missing.square().mean()


def squared_norm(codes: Tensor, every: Tensor) -> Tensor:
    """Mean ‖z‖² of (B, L) codes (DeepSDF, equation 9)."""
    return codes.square().sum(dim=1).mean()


def norm(codes: Tensor, every: Tensor) -> Tensor:
    """Mean ‖z‖ of (B, L) codes: what the published code penalises."""
    lengths: Tensor = codes.norm(dim=1)
    return lengths.mean()


def gaussian(codes: Tensor, every: Tensor) -> Tensor:
    """Mean squared distance of (B, L) codes from the Gaussian of all (N, L) codes as they are now.

    (z − μ)ᵀ (Σ / s²)⁻¹ (z − μ), where s² is the mean variance of a dimension: directions that the codes use
    are cheap, others dear. Without the s² it would not feel the codes' size at all; with it, it is ‖z‖²
    for centred codes of equal variances, and the same weight does for both.
    """
    every = every.detach()
    prior = CodePrior.from_codes(every)
    return prior.distance(codes).mean() * every.var(dim=0).sum()


CODE_PRIORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared_norm": squared_norm,
    "norm": norm,
    "gaussian": gaussian,
}
"""By the setting `code_prior`: each takes the codes of a step (B, L) and those of all shapes (N, L)."""


class Objective:
    """The loss of a recipe, in any phase of it."""

    def __init__(self, recipe: Recipe, decoder: Decoder) -> None:
        self.settings, self.decoder = recipe.training, decoder
        self.field = compiled(decoder) if self.settings.compile else decoder

    def data_term(self, phase: Phase, codes: Tensor, points: Tensor, distances: Tensor) -> Tensor:
        """What the fields of (B, L) codes cost at (B, P, 3) points with these true distances (B, P)."""
        # It would be compiled anew for every depth while layers are blended in.
        field = self.field if phase.depth.is_integer() else self.decoder
        with autocast(phase.precision, points.device.type):
            predicted = field(codes, points, phase.depth)
        delta = self.settings.clamping_distance
        return clamped_l1(predicted, distances, delta, phase.tolerance, phase.hardness)

    def prior(self, codes: Tensor, every: Tensor) -> Tensor:
        """What a batch's codes (B, L) cost before it is weighed; `every` are all codes (N, L)."""
        return CODE_PRIORS[self.settings.code_prior](codes, every)

    def eikonal_term(self, phase: Phase, batch: Batch, codes: Tensor) -> Tensor:
        """What slopes other than 1 of the fields of (B, L) codes cost."""
        settings = self.settings
        sampled = batch.points[:, : settings.eikonal_points]
        points = batch.uniform if settings.eikonal_at == "uniform" else sampled
        slopes = eikonal(lambda where: self.decoder(codes, where, phase.depth), points)
        return settings.eikonal_weight * slopes
