"""Fitting a latent code, and where the shape stands, to what was observed (MAP estimation).

The decoder is frozen. Each row of an observation says in which interval the signed distance at a
point must lie; the fit minimises the robust distance to these intervals plus the Mahalanobis distance
of the code to the training codes:

    E(z, p) = Σ_k w_k ρ(r_k(z, p) / s) + λ (z − μ)ᵀ Σ⁻¹ (z − μ) / L + λ ‖p − p₀‖² / σ_p²

with placement p and its scale s. Residuals are measured in the observation's unit, where the sensor's
noise lives: measured in the canonical one, every scan would fit best when shrunk to nothing.
`LevenbergMarquardt` is the default; `Adam` is the recipe that DeepSDF was published with. Both are
state objects over a batch of problems: call `step` until `finished`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.decoder import Decoder

PLACEMENT_SIZE = 4
"""A placement is (log scale, translation): canonical x = e^{log scale} · p + translation."""


@dataclass(frozen=True)
class Rows:
    """What is known of the field at K points, for B problems (or B = 1, shared by all).

    The point of row k is placement(points_k) + offsets_k. Equality is the interval [s, s]; free space
    is [0, ∞).
    """

    points: Tensor  # (B, K, 3) in the observation's frame, before the placement
    offsets: Tensor  # (B, K, 3) canonical units: ±η along the normal
    lower: Tensor  # (B, K) signed distance, canonical units
    upper: Tensor  # (B, K)
    weights: Tensor  # (B, K)
    only_in_ball: Tensor  # (B, K) bool: the row says nothing once its point leaves the unit ball

    def __len__(self) -> int:
        return self.points.shape[1]

    def of(self, problems: Tensor) -> Rows:
        """The rows of the given problems; shared rows stay shared."""
        return self if self.points.shape[0] == 1 else Rows(*(part[problems] for part in self._parts()))

    def some(self, picks: Tensor) -> Rows:
        """The given rows of every problem."""
        return Rows(*(part[:, picks] for part in self._parts()))

    def _parts(self) -> tuple[Tensor, ...]:
        return self.points, self.offsets, self.lower, self.upper, self.weights, self.only_in_ball


def rows_of_samples(points: Tensor, distances: Tensor, clamping_distance: float) -> Rows:
    """Rows that say: these (B, K, 3) canonical points have these (B, K) signed distances.

    Beyond the clamping distance a sample says only that the field is at least that far from zero.
    """
    delta = clamping_distance
    return Rows(
        points=points,
        offsets=torch.zeros_like(points),
        lower=torch.where(distances <= -delta, -math.inf, distances).clamp(max=delta),
        upper=torch.where(distances >= delta, math.inf, distances).clamp(min=-delta),
        weights=torch.full_like(distances, 1 / distances.shape[1]),
        only_in_ball=torch.zeros_like(distances, dtype=torch.bool),
    )


@dataclass(frozen=True)
class CodePrior:
    """The training codes as a Gaussian: a better MAP prior than DeepSDF's ‖z‖²/σ² (isotropic, zero mean)."""

    mean: Tensor  # (L,)
    precision: Tensor  # (L, L)

    @classmethod
    def from_codes(cls, codes: Tensor, shrinkage: float = 0.1) -> CodePrior:
        """Mean and precision of (N, L) codes, the covariance shrunk towards its diagonal's mean."""
        mean = codes.mean(dim=0)
        centred = codes - mean
        covariance = centred.T @ centred / max(1, len(codes) - 1)
        isotropic = covariance.diagonal().mean().clamp(min=1e-8)
        eye = torch.eye(codes.shape[1], dtype=codes.dtype, device=codes.device)
        return cls(mean, torch.linalg.inv((1 - shrinkage) * covariance + shrinkage * isotropic * eye))

    def distance(self, codes: Tensor) -> Tensor:
        """Squared Mahalanobis distance a dimension, (B,) for (B, L) codes; about 1 for a training code."""
        centred = codes - self.mean
        return ((centred @ self.precision) * centred).mean(dim=1)


@dataclass(frozen=True)
class FitSettings:
    """How a fit weighs and walks."""

    prior_weight: float = 2e-6  # λ
    huber: float = 0.03  # residuals beyond it count linearly; the observation's unit
    steps: int = 30
    tolerance: float = 1e-3  # relative decrease of E under which a problem is done
    damping: float = 0.1  # start of the trust region's damping
    solve_placement: bool = True
    placement_std: float = (
        0.3  # of log scale and translation about their start: a scan must not shrink to a point
    )


def placed(rows: Rows, placements: Tensor) -> Tensor:
    """The canonical points (B, K, 3) of the rows under (B, 4) placements."""
    scale = placements[:, :1].exp().unsqueeze(1)
    return scale * rows.points + placements[:, None, 1:] + rows.offsets


def _into_ball(points: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest points of the unit ball, and how far away they are (the decoder knows only the ball)."""
    radius = points.norm(dim=-1, keepdim=True)
    return points / radius.clamp(min=1), (radius.squeeze(-1) - 1).clamp(min=0)


def residuals(distances: Tensor, rows: Rows) -> Tensor:
    """How far (B, K) signed distances lie outside the rows' intervals, signed."""
    return distances - torch.maximum(torch.minimum(distances, rows.upper), rows.lower)


def _active_weights(rows: Rows, beyond: Tensor) -> Tensor:
    return rows.weights * ~(rows.only_in_ball & (beyond > 0))


def _huber_loss(residual: Tensor, bound: float) -> Tensor:
    size = residual.abs()
    return torch.where(size <= bound, 0.5 * size**2, bound * (size - 0.5 * bound))


@torch.no_grad()
def objective(
    decoder: Decoder, prior: CodePrior, rows: Rows, codes: Tensor, placements: Tensor, settings: FitSettings
) -> Tensor:
    """E of (B, L) codes under (B, 4) placements, (B,): forward passes only, for screening many starts."""
    inside, beyond = _into_ball(placed(rows, placements))
    distances = decoder(codes, inside) + beyond
    loss = _huber_loss(residuals(distances, rows) / placements[:, :1].exp(), settings.huber)
    data = (_active_weights(rows, beyond) * loss).sum(dim=1)
    return data + settings.prior_weight * prior.distance(codes)


@dataclass(frozen=True)
class _Linearisation:
    """E and its Gauss-Newton model at one state, for B problems."""

    cost: Tensor  # (B,)
    gradient: Tensor  # (B, D)
    hessian: Tensor  # (B, D, D)
    residual: Tensor  # (B,) weighted mean |r|, the observation's unit

    def updated(self, problems: Tensor, new: _Linearisation) -> _Linearisation:
        """This one with the given problems' rows replaced by `new`'s."""
        out = [part.clone() for part in (self.cost, self.gradient, self.hessian, self.residual)]
        parts = (new.cost, new.gradient, new.hessian, new.residual)
        for old, part in zip(out, parts, strict=True):
            old[problems] = part
        return _Linearisation(*out)

    def of(self, picks: Tensor) -> _Linearisation:
        return _Linearisation(
            self.cost[picks], self.gradient[picks], self.hessian[picks], self.residual[picks]
        )


class LevenbergMarquardt:
    """Second-order MAP fit of B problems at once, over code and placement.

    The authors of DeepSDF name Gauss-Newton as future work (section 7). The Jacobian of all rows costs
    one backward pass (`Decoder.distance_and_gradients`), so a step costs about what one of Adam's does.
    Robust residuals by iteratively reweighted least squares; a step that does not lower E is taken back
    and the damping raised, so the state held is always the best one.
    """

    def __init__(
        self,
        decoder: Decoder,
        prior: CodePrior,
        rows: Rows,
        codes: Tensor,
        placements: Tensor | None = None,
        settings: FitSettings | None = None,
    ) -> None:
        self.decoder, self.prior, self.rows = decoder, prior, rows
        self.settings = settings or FitSettings()
        self.codes = codes.clone()
        self.placements = (
            codes.new_zeros(len(codes), PLACEMENT_SIZE) if placements is None else placements.clone()
        )
        self._start = self.placements.clone()
        self.steps_taken = 0
        self.finished_problems = torch.zeros(len(codes), dtype=torch.bool, device=codes.device)
        self._damping = torch.full_like(codes[:, 0], self.settings.damping)
        self._model = self._linearise(rows, self.codes, self.placements, self._start)

    @property
    def cost(self) -> Tensor:
        """E of each problem (B,)."""
        return self._model.cost

    @property
    def residual(self) -> Tensor:
        """Weighted mean |r| of each problem (B,), the observation's unit."""
        return self._model.residual

    @property
    def finished(self) -> bool:
        """Whether every problem has converged or the steps are spent."""
        return self.steps_taken >= self.settings.steps or bool(self.finished_problems.all())

    def step(self) -> None:
        """Try one damped Gauss-Newton step on every unfinished problem."""
        active = (~self.finished_problems).nonzero().squeeze(1)
        move = self._solve(self._model.of(active), self._damping[active])
        codes = self.codes[active] + move[:, : self.codes.shape[1]]
        placements = self.placements[active]
        if self.settings.solve_placement:
            placements = placements + move[:, self.codes.shape[1] :]
        tried = self._linearise(self.rows.of(active), codes, placements, self._start[active])
        before = self._model.cost[active]
        better = tried.cost < before
        small = better & (before - tried.cost < self.settings.tolerance * before)
        kept = active[better]
        self.codes[kept], self.placements[kept] = codes[better], placements[better]
        self._model = self._model.updated(kept, tried.of(better))
        damping = torch.where(better, self._damping[active] / 3, self._damping[active] * 4)
        self._damping[active] = damping.clamp(1e-6, 1e6)
        self.finished_problems[active] = small | (damping > 1e4)
        self.steps_taken += 1

    def _solve(self, model: _Linearisation, damping: Tensor) -> Tensor:
        diagonal = model.hessian.diagonal(dim1=1, dim2=2)
        damped = model.hessian + torch.diag_embed(damping[:, None] * diagonal + 1e-10)
        move: Tensor = torch.linalg.solve(damped, model.gradient)
        return -move

    def _linearise(self, rows: Rows, codes: Tensor, placements: Tensor, start: Tensor) -> _Linearisation:
        settings = self.settings
        distances, jacobian = self._jacobian(rows, codes, placements)
        beyond = _into_ball(placed(rows, placements))[1]
        scale = placements[:, :1].exp()
        residual = residuals(distances, rows) / scale
        jacobian = jacobian / scale.unsqueeze(-1)
        if settings.solve_placement:
            jacobian[..., codes.shape[1]] -= residual  # the unit itself depends on the scale
        weights = _active_weights(rows, beyond)
        cost = (weights * _huber_loss(residual, settings.huber)).sum(dim=1)
        robust = weights * settings.huber / residual.abs().clamp(min=settings.huber)
        # A row inside its interval has no residual and must not stiffen the model either.
        robust = robust * (residual != 0)
        weighted = robust.unsqueeze(-1) * jacobian
        hessian = weighted.transpose(1, 2) @ jacobian
        gradient = (weighted * residual.unsqueeze(-1)).sum(dim=1)
        mean_residual = (weights * residual.abs()).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-12)
        model = _Linearisation(cost, gradient, hessian, mean_residual)
        return self._with_priors(model, codes, placements - start)

    def _with_priors(self, model: _Linearisation, codes: Tensor, moved: Tensor) -> _Linearisation:
        """The model with the pull of the code to the training codes, and of the placement to its start."""
        length, weight = codes.shape[1], self.settings.prior_weight
        pull = 2 * weight / length * self.prior.precision
        model.hessian[:, :length, :length] += pull
        model.gradient[:, :length] += (codes - self.prior.mean) @ pull
        cost = model.cost + weight * self.prior.distance(codes)
        if self.settings.solve_placement:
            stiffness = 2 * weight / self.settings.placement_std**2
            model.hessian.diagonal(dim1=1, dim2=2)[:, length:] += stiffness
            model.gradient[:, length:] += stiffness * moved
            cost = cost + 0.5 * stiffness * moved.square().sum(dim=1)
        return replace(model, cost=cost)

    def _jacobian(self, rows: Rows, codes: Tensor, placements: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distances (B, K) and their derivatives by code and placement (B, K, D)."""
        points = placed(rows, placements)
        inside, beyond = _into_ball(points)
        distances, by_code, by_point = self.decoder.distance_and_gradients(codes, inside)
        if not self.settings.solve_placement:
            return distances + beyond, by_code
        by_point = _gradient_beyond_ball(by_point, points)
        scaled = placements[:, :1].exp().unsqueeze(1) * rows.points
        by_scale = (by_point * scaled).sum(dim=-1, keepdim=True)
        return distances + beyond, torch.cat([by_code, by_scale, by_point], dim=-1)


def _gradient_beyond_ball(by_point: Tensor, points: Tensor) -> Tensor:
    """∂/∂x of f(nearest point of the ball) + distance to the ball."""
    radius = points.norm(dim=-1, keepdim=True)
    outward = points / radius.clamp(min=1e-9)
    tangential = by_point - (by_point * outward).sum(dim=-1, keepdim=True) * outward
    return torch.where(radius > 1, tangential / radius + outward, by_point)


class Adam:
    """The fit as published: 800 steps of Adam on a random 8,000 rows each, placement fixed.

    Learning rate 5e-3, a tenth of it from half-way; start N(0, 0.01²); clamped L1 plus 1e-4 · mean z².
    Kept as it was as the yardstick of `LevenbergMarquardt`.
    """

    steps = 800
    rows_per_step = 8000
    start_std = 0.01
    rate = 5e-3
    code_penalty = 1e-4

    def __init__(
        self,
        decoder: Decoder,
        rows: Rows,
        code_length: int,
        placements: Tensor,
        clamping_distance: float,
        seed: int = 0,
    ) -> None:
        self.decoder, self.rows, self.placements = decoder, rows, placements
        self.clamping_distance = clamping_distance
        self._generator = torch.Generator(placements.device).manual_seed(seed)
        shape = (len(placements), code_length)
        start = torch.randn(shape, generator=self._generator, device=placements.device)
        self.codes = (self.start_std * start).requires_grad_()
        self._optimizer = torch.optim.Adam([self.codes], lr=self.rate)
        self.steps_taken = 0
        self.residual = torch.full_like(placements[:, 0], math.nan)

    @property
    def finished(self) -> bool:
        """Whether the steps are spent."""
        return self.steps_taken >= self.steps

    def step(self) -> None:
        """One step of Adam."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate if self.steps_taken < self.steps // 2 else self.rate / 10
        loss = self._loss()
        self._optimizer.zero_grad()
        loss.sum().backward()
        self._optimizer.step()
        self.steps_taken += 1

    def _loss(self) -> Tensor:
        count = min(self.rows_per_step, len(self.rows))
        picks = torch.randint(
            len(self.rows), (count,), generator=self._generator, device=self.placements.device
        )
        rows = _clamped(self.rows.some(picks), self.clamping_distance)
        inside, beyond = _into_ball(placed(rows, self.placements))
        distances = self.decoder(self.codes, inside) + beyond
        clamped = distances.clamp(-self.clamping_distance, self.clamping_distance)
        weights = _active_weights(rows, beyond)
        loss = (weights * residuals(clamped, rows).abs()).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-12)
        self.residual = loss.detach() / self.placements[:, 0].exp()
        return loss + self.code_penalty * self.codes.square().mean(dim=1)


def _clamped(rows: Rows, clamping_distance: float) -> Rows:
    """The rows with targets within the clamping distance, as clamped distances are compared with."""
    bound = clamping_distance
    return replace(rows, lower=rows.lower.clamp(-bound, bound), upper=rows.upper.clamp(-bound, bound))
