"""How sure a completion is: the Laplace posterior of code and placement, and what the correction leaves open.

At the MAP the objective's Hessian H is there already. Scaled so that its prior term is the Gaussian of the
training codes, exp(−κE) with κ = L / 2λ is the posterior, and its covariance is that of a Gaussian around
the MAP:

    Σ = (Σ_prior⁻¹ + κ H_data / T)⁻¹

T tempers the data, whose residuals are not independent: a backrest that the decoder cannot express is off as
a whole. How far off the surface may lie along its normal is then, by the implicit function theorem,

    σ(x)² = u(x)² · (J Σ Jᵀ / |∇f|² + d(x)² + a²) + noise² + ripple²

with J = ∂f/∂(z, placement), d how far the other ends of the fit are from the winner at x (a Gaussian around
one valley knows nothing of the others), a what no code expresses, and u in [0, 1] the share of all this that
the correction's process keeps at x: near 0 where the sensor looked, 1 elsewhere and without a correction.
T and a are chosen on validation shapes and stand in the checkpoint's card.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.consensus import likelihoods
from model.correction import Correction
from model.decoder import Decoder
from model.field import at_a_time
from model.fitting import Ends, Fit
from model.latent import distances_at, placement_prior
from model.neighbours import Neighbours
from model.placement import MOVE_SIZE, Placements, gradient_by_move
from model.problems import FitSettings

RIPPLE = 0.005
"""How far off a surface is even where it was seen without noise, canonical units: the grid, the decoder."""

FARTHEST_APART = 0.1
"""Signed distances of two ends that differ by more say no more: fields end at the clamping distance."""

LOOKED_AT = 3000
"""Vertices at which the deviation is computed; it is smooth, and the others are told by the nearest three."""


CHUNK = (2048, 65_536)
"""Points at a time, on a CPU and on a GPU."""


@dataclass(frozen=True)
class Calibration:
    """What was chosen on validation shapes so that the deviations come true."""

    temperature: float = 100.0  # T
    inadequacy: float = 0.03  # a, canonical units


@dataclass(frozen=True)
class Posterior:
    """A Gaussian over code and move (L + 7) around the MAP."""

    code: Tensor  # (L,)
    placement: Placements  # one
    covariance: Tensor  # (L + 7, L + 7); zero for what was not solved for
    ends: Ends | None = None  # of all fits

    @property
    def of_placement(self) -> Tensor:
        """Covariance (7, 7) of the move: log scale, translation, rotation vector; canonical units."""
        return self.covariance[-MOVE_SIZE:, -MOVE_SIZE:]

    def draws(self, count: int, seed: int = 0) -> list[tuple[Tensor, Placements]]:
        """Codes (L,) and placements that agree with the scan about as well as the MAP."""
        if count == 0:
            return []
        generator = torch.Generator().manual_seed(seed)
        values, vectors = torch.linalg.eigh(self.covariance.double().cpu())
        root = vectors * values.clamp(min=0).sqrt()
        steps = torch.randn(count, len(values), generator=generator, dtype=torch.float64) @ root.T
        steps = steps.float().to(self.code.device)
        length = len(self.code)
        return [(self.code + step[:length], self.placement.moved(step[None, length:])) for step in steps]

    def deviation(self, decoder: Decoder, points: Tensor) -> Tensor:
        """√(J Σ Jᵀ) / |∇f| at (N, 3) canonical points: canonical units, (N,)."""
        variances = []
        for chunk in points.split(at_a_time(points.device, *CHUNK)):
            _, by_code, by_point = decoder.distance_and_gradients(self.code[None], chunk[None])
            scaled = chunk[None] - self.placement.translation[:, None]
            by_move = gradient_by_move(by_point, scaled, torch.zeros_like(scaled))
            jacobian = torch.cat([by_code, by_move], dim=-1)[0]
            variance = ((jacobian @ self.covariance) * jacobian).sum(dim=1).clamp(min=0)
            variances.append(variance / by_point[0].square().sum(dim=1).clamp(min=0.25))
        return torch.cat(variances).sqrt()

    def disagreement(self, decoder: Decoder, points: Tensor) -> Tensor:
        """How far the ends of the fit are from the winner at (N, 3) canonical points: canonical units, (N,).

        A root mean square, each end weighted as `model.consensus` weights it. 0 where there is but one.
        """
        if self.ends is None or len(self.ends.codes) < 2:
            return torch.zeros_like(points[:, 0])
        observed = self.placement.inverted(points[None])
        ends, scale = self.ends, self.placement.scale
        there = ends.placements.apply(observed.expand(len(ends.codes), -1, -1))
        distances = scale * distances_at(decoder, ends.codes, there) / ends.placements.scale[:, None]
        own = distances_at(decoder, self.code[None], points[None])
        apart = (distances - own).clamp(-FARTHEST_APART, FARTHEST_APART)
        weights = likelihoods(ends.cost)
        return (weights @ apart.square() / weights.sum()).sqrt()


def laplace(fit: Fit, settings: FitSettings, calibration: Calibration) -> Posterior:
    """The posterior around a fit."""
    length, weight = len(fit.best.code), settings.prior_weight
    evidence = length / (2 * weight)  # κ
    freedom = fit.problem.freedom[0]
    std = torch.cat([fit.problem.expected.deviation[0], freedom.new_full((3,), settings.rotation_std)])
    prior = fit.problem.prior.precision[0]
    own = torch.zeros_like(fit.hessian)  # of the priors, as E weighs them
    own[:length, :length] = 2 * weight / length * prior
    own.diagonal()[length:] += placement_prior(fit.problem, settings).stiffness[0]
    precision = evidence * (fit.hessian - own) / calibration.temperature
    precision[:length, :length] += prior
    precision.diagonal()[length:] += 1 / std**2
    free = torch.cat([torch.ones_like(fit.best.code), freedom])
    both = free[:, None] * free
    precision = (precision * both).double()
    precision.diagonal().add_(1 - free)  # what was not solved for stands apart from all else
    inverse = torch.linalg.inv_ex(precision).inverse.float()
    covariance = both * (inverse + inverse.T) / 2
    return Posterior(fit.best.code, fit.problem.placements, covariance, fit.ends)


def vertex_deviation(
    vertices: Tensor,
    posterior: Posterior,
    decoder: Decoder,
    correction: Correction | None,
    noise: float,
    calibration: Calibration,
) -> Tensor:
    """Standard deviation (V,) of the surface along its normal at (V, 3) vertices, canonical units."""
    count = min(LOOKED_AT, len(vertices))
    looked = np.random.default_rng(0).choice(len(vertices), count, replace=False, shuffle=False)
    points = vertices[torch.from_numpy(looked).to(vertices.device)]
    spread = posterior.deviation(decoder, points).square() + posterior.disagreement(decoder, points).square()
    spread = spread + calibration.inadequacy**2
    if correction is not None:
        spread = spread * (correction.deviation(points) / correction.amplitude).square()
    deviation = (spread + noise**2 + RIPPLE**2).sqrt()
    far, which = Neighbours(points.double()).nearest_here(vertices.double(), min(3, count))
    weight = 1 / far.view(len(vertices), -1).clamp(min=1e-6).to(deviation)
    return (weight * deviation[which.view(weight.shape)]).sum(dim=1) / weight.sum(dim=1)
