"""Fitting a latent code, and where the shape stands, to what was observed (MAP estimation).

The decoder is frozen. Each row of an observation says in which interval the signed distance at a
point must lie; the fit minimises the robust distance to these intervals plus the Mahalanobis distance
of the code to the training codes:

    E(z, p) = Σ_k w_k ρ(r_k(z, p) / s) + λ (z − μ)ᵀ Σ⁻¹ (z − μ) / L + π(p)

with placement p and its scale s. The prior π says where a scan like this lies in its shape's frame (see
`model.placement.ExpectedPlacements`): far weaker than the data, both priors decide what they leave open.
Residuals are measured in the observation's unit, where the sensor's noise lives: measured in the canonical
one, every scan would fit best when shrunk to nothing.
`LevenbergMarquardt` is the default; `Adam` is the recipe that DeepSDF was published with. Both are
state objects over a batch of problems: call `step` until `finished`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from model.decoder import Decoder
from model.fused import steps as fused_steps
from model.graphs import recorder
from model.placement import ROTATION, Placements, gradient_by_move
from model.problems import CodedFields, Fits, FitSettings, Linearisation, Problems, Rows
from model.trees import mapped

A = TypeVar("A")
R = TypeVar("R")

CPU_ROWS = 2048
"""Rows that a CPU evaluates at a time: what goes from layer to layer then stays in its caches, which makes a
step of a decoder of 256 features 1.3 times as fast, and one of many problems no slower than of few."""

REPLAYED_STEPS = 12
"""Steps that a GPU replays in one go: how a fit stands is asked once for them all. A round has as many, which
take 5 ms."""


def placed(rows: Rows, placements: Placements) -> Tensor:
    """The canonical points (B, K, 3) of the rows."""
    return placements.apply(rows.points) + placements.turned(rows.offsets)


def _into_ball(points: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest points of the unit ball, and how far away they are (the decoder knows only the ball)."""
    radius = points.norm(dim=-1, keepdim=True)
    return points / radius.clamp(min=1), (radius.squeeze(-1) - 1).clamp(min=0)


def distances_at(fields: CodedFields, codes: Tensor, points: Tensor) -> Tensor:
    """Signed distances (B, K) at (B, K, 3) canonical points; outside the ball, those of it and on from it."""
    inside, beyond = _into_ball(points)
    return fields(codes, inside) + beyond


def residuals(distances: Tensor, rows: Rows) -> Tensor:
    """How far (B, K) signed distances lie outside the rows' intervals, signed."""
    return distances - torch.maximum(torch.minimum(distances, rows.upper), rows.lower)


def _active_weights(rows: Rows, beyond: Tensor) -> Tensor:
    return rows.weights * ~(rows.only_in_ball & (beyond > 0))


def _huber_loss(residual: Tensor, bound: Tensor) -> Tensor:
    size = residual.abs()
    return torch.where(size <= bound, 0.5 * size**2, bound * (size - 0.5 * bound))


@torch.no_grad()
def objective(fields: CodedFields, problems: Problems, settings: FitSettings) -> Tensor:
    """E of each problem where it starts, (B,): forward passes only."""
    rows, placements = problems.rows, problems.placements
    inside, beyond = _into_ball(placed(rows, placements))
    distances = fields(problems.codes, inside) + beyond
    loss = _huber_loss(residuals(distances, rows) / placements.scale[:, None], problems.huber[:, None])
    data = (_active_weights(rows, beyond) * loss).sum(dim=1)
    code = settings.prior_weight * problems.prior.distance(problems.codes)
    return data + code + placement_prior(problems, settings).cost


@dataclass(frozen=True)
class PlacementPrior:
    """π of B placements and its Gauss-Newton model in their moves; the Hessian is diagonal."""

    cost: Tensor  # (B,)
    gradient: Tensor  # (B, 7)
    stiffness: Tensor  # (B, 7)


def placement_prior(problems: Problems, settings: FitSettings) -> PlacementPrior:
    """π: near where a scan of a whole side of an object lies, quadratic; far from it, nearly level.

    A scan that shows a piece of the object only is an outlier to it, which the data must speak for: the
    logarithm of Student's t, not that of a Gaussian.
    """
    moved = problems.placements.since(problems.expected.placements)
    place, turn = moved[:, : ROTATION.start], moved[:, ROTATION]
    std = problems.expected.deviation
    off = (place / std).square().sum(dim=1) / settings.placement_tail
    cost = settings.placement_weight * settings.placement_tail * off.log1p()
    cost = cost + settings.prior_weight * (turn / settings.rotation_std).square().sum(dim=1)
    of_place = 2 * settings.placement_weight / (1 + off)[:, None] / std**2
    of_turn = torch.full_like(turn, 2 * settings.prior_weight / settings.rotation_std**2)
    stiffness = problems.freedom * torch.cat([of_place, of_turn], dim=1)
    return PlacementPrior(cost, stiffness * moved, stiffness)


@dataclass(frozen=True)
class _State:
    """B problems and where their fits stand."""

    problems: Problems  # as they started
    fits: Fits

    def of(self, picks: Tensor) -> _State:
        """The given ones."""
        return _State(self.problems.of(picks), self.fits.of(picks))

    @property
    def unfinished(self) -> Tensor:
        """Which have neither converged nor spent their steps, (B,) bool."""
        return ~self.fits.converged & (self.fits.steps_taken < self.problems.steps)


@dataclass(frozen=True)
class _Stepped:
    """What N steps make of B problems, with what is asked about each step then, in one tensor."""

    fits: Fits
    told: Tensor  # (N, 3, B) cost, residual, and 1 while unfinished


def _told_of(state: _State) -> Tensor:
    """What is asked about where the fits stand, (3, B)."""
    model = state.fits.model
    return torch.stack([model.cost, model.residual, state.unfinished.to(model.cost)])


@dataclass(frozen=True)
class Standing:
    """How the best of many fits stands, as plain numbers."""

    objective: float  # E
    residual: float  # its weighted mean |r|, the observation's unit
    unfinished: int  # problems still moving


class _Told:
    """What steps tell of their problems, as plain numbers: they are waited for once, whoever asks first."""

    def __init__(self, told: Tensor) -> None:
        self._told = told

    def standings(self, own: slice) -> list[Standing]:
        """How the best of some of the problems stands after each step, until none is unfinished."""
        standings: list[Standing] = []
        for rows in self._numbers:
            costs, residuals, unfinished = (row[own] for row in rows)
            best = costs.index(min(costs))
            standings.append(Standing(costs[best], residuals[best], int(sum(unfinished))))
            if not standings[-1].unfinished:
                break
        return standings

    @cached_property
    def _numbers(self) -> list[list[list[float]]]:
        numbers: list[list[list[float]]] = self._told.tolist()
        return numbers


class LevenbergMarquardt:
    """Second-order MAP fit of B problems at once, over code and placement.

    The authors of DeepSDF name Gauss-Newton as future work (section 7). The Jacobian of all rows costs
    one backward pass (`Decoder.distance_and_gradients`), so a step costs about what one of Adam's does.
    Robust residuals by iteratively reweighted least squares; a step that does not lower E is taken back
    and the damping raised, so the state held is always the best one. Fits may be joined for a step and
    parted after it (`joined`, `part_into`): no problem feels the others.
    """

    def __init__(self, fields: CodedFields, problems: Problems, settings: FitSettings | None = None) -> None:
        self.fields = fields
        self.settings = settings or FitSettings()
        self._problems = problems  # as they started
        self._set(None)

    def _set(self, fits: Fits | None, told: _Told | None = None, own: slice = slice(None)) -> None:
        """Stand there; nowhere yet if nobody has looked.

        What a step has `told` can be asked for: the problems are `own` of those told of.
        """
        self._fits, self._told, self._own = fits, told, own
        self._standings: list[Standing] | None = None

    @property
    def _state(self) -> _State:
        if self._fits is None:
            here = self._problems
            self._fits = self._replayed(self._begun, here) if self._replays else self._begun(here)
        return _State(self._problems, self._fits)

    def _begun(self, problems: Problems) -> Fits:
        """The fits where they start."""
        return Fits(
            problems.codes,
            problems.placements,
            self._linearise(problems),
            steps_taken=torch.zeros_like(problems.steps),
            converged=torch.zeros_like(problems.steps, dtype=torch.bool),
            damping=torch.full_like(problems.huber, self.settings.damping),
            raised=torch.full_like(problems.huber, 2.0),
        )

    @classmethod
    def joined(cls, fits: Sequence[LevenbergMarquardt]) -> LevenbergMarquardt:
        """One fit of the problems of all, in order; they have fields and settings in common."""
        together = copy(fits[0])
        together._problems = Problems.joined([fit._problems for fit in fits])
        begun = any(fit._fits is not None for fit in fits)
        parts = [fit._state.fits for fit in fits] if begun else []
        together._set(mapped(lambda *some: torch.cat(some), *parts) if begun else None)
        return together

    def part_into(self, fits: Sequence[LevenbergMarquardt]) -> None:
        """Give the fits that were joined into this one what has become of their problems."""
        first, told = 0, self._telling()
        for fit in fits:
            own = slice(first, first := first + len(fit._problems))
            fit._set(self._state.fits.of(own), told, own)

    @property
    def problems(self) -> Problems:
        """The problems, with the best codes and placements so far."""
        return replace(self._problems, codes=self.codes, placements=self.placements)

    @property
    def rows(self) -> Rows:
        """What is known of the field, for each problem."""
        return self._problems.rows

    @property
    def _replays(self) -> bool:
        return _waits_for_launches(self.fields, self.rows)

    @property
    def replayed_together(self) -> int:
        """How many fits like this one a GPU replays as one; 0 where steps are taken plainly."""
        return self.fields.recorded_rows // self.rows.weights.numel() if self._replays else 0

    @property
    def steps_taken(self) -> Tensor:
        """Steps that each problem has tried (B,)."""
        return self._state.fits.steps_taken

    @property
    def codes(self) -> Tensor:
        """The best codes so far (B, L)."""
        return self._state.fits.codes

    @property
    def placements(self) -> Placements:
        """The best placements so far."""
        return self._state.fits.placements

    @property
    def model(self) -> Linearisation:
        """E and its Gauss-Newton model there; of what is not solved for, zero."""
        return self._state.fits.model

    @property
    def cost(self) -> Tensor:
        """E of each problem (B,)."""
        return self.model.cost

    @property
    def hessian(self) -> Tensor:
        """Gauss-Newton Hessian of E (B, L + 7, L + 7)."""
        return self.model.hessian

    @property
    def residual(self) -> Tensor:
        """Weighted mean |r| of each problem (B,), the observation's unit."""
        return self.model.residual

    @property
    def finished_problems(self) -> Tensor:
        """Which problems have converged or spent their steps, (B,) bool."""
        return ~self._state.unfinished

    @property
    def standings(self) -> list[Standing]:
        """How the best fit stood after each step that the last `step` took. It waits for the device, once."""
        if self._standings is None:
            self._standings = self._telling().standings(self._own)
        return self._standings

    @property
    def standing(self) -> Standing:
        """How the best fit stands."""
        return self.standings[-1]

    def _telling(self) -> _Told:
        if self._told is None:
            self._told = _Told(_told_of(self._state)[None])
        return self._told

    @property
    def finished(self) -> bool:
        """Whether every problem has converged or spent its steps."""
        return self.standing.unfinished == 0

    def step(self) -> None:
        """Try a damped Gauss-Newton step on each unfinished problem, several where they are replayed.

        If it raises, nothing has changed.
        """
        if self._replays:
            if self._fits is None:
                made = self._replayed(self._begun_and_stepped, self._problems)
            else:
                made = self._replayed(self._stepped_and_told, self._state)
            self._set(made.fits, _Told(made.told))
            return
        state = self._state
        moving = state.unfinished.nonzero().squeeze(1)
        some = state if len(moving) == len(state.problems) else state.of(moving)
        fits = self._stepped(some)
        self._set(fits if some is state else state.fits.updated(moving, fits))

    def _replayed(self, function: Callable[[A], R], argument: A) -> R:
        """What a method makes of its argument, on a GPU."""
        settings = replace(self.settings, steps=0)  # each problem has its own number of steps
        return recorder(function, argument, function.__name__, self.fields, settings)

    def _begun_and_stepped(self, problems: Problems) -> _Stepped:
        """The first steps, with what goes before them: to replay that alone would take the host as long."""
        return self._stepped_and_told(_State(problems, self._begun(problems)))

    def _stepped_and_told(self, state: _State) -> _Stepped:
        """The fits after the steps that are replayed in one go, and what will be asked about each."""
        told = []
        for _ in range(REPLAYED_STEPS):
            state = replace(state, fits=self._stepped(state))
            told.append(_told_of(state))
        return _Stepped(state.fits, torch.stack(told))

    def _stepped(self, state: _State) -> Fits:
        """The fits after one step: of tensors alone, and the same work whatever their values are."""
        if fused_steps.usable(state.fits.codes):
            return self._stepped_in_few_launches(state)
        problems, now, unfinished = state.problems, state.fits, state.unfinished
        move, solved = self._solve(now.model, now.damping)
        length = now.codes.shape[1]
        codes = now.codes + move[:, :length]
        placements = now.placements.moved(problems.freedom * move[:, length:])
        there = replace(problems, codes=codes, placements=placements)
        model = self._linearise(there)
        decrease = now.model.cost - model.cost
        better = unfinished & solved & (decrease > 0)
        small = better & (decrease < self.settings.tolerance * now.model.cost)
        damping, raised = _adapted(now, better, decrease / _promised(now.model, move))
        moved = now.where(better, replace(now, codes=codes, placements=placements, model=model))
        return replace(
            moved,
            steps_taken=now.steps_taken + unfinished,
            converged=now.converged | unfinished & (small | (damping > 1e4)),
            damping=torch.where(unfinished, damping, now.damping),
            raised=torch.where(unfinished, raised, now.raised),
        )

    def _stepped_in_few_launches(self, state: _State) -> Fits:
        now = state.fits
        here = replace(state.problems, codes=now.codes, placements=now.placements)
        solved, promised, codes, placements = fused_steps.solved(now.model, now.damping, here)
        model = self._linearise(replace(here, codes=codes, placements=placements))
        new = replace(now, codes=codes, placements=placements, model=model)
        return fused_steps.settled(now, new, solved, promised, here.steps, self.settings.tolerance)

    def _solve(self, model: Linearisation, damping: Tensor) -> tuple[Tensor, Tensor]:
        """Damped moves (B, D) towards the model's minimum, and whether there is one, (B,) bool."""
        diagonal = model.hessian.diagonal(dim1=1, dim2=2)
        # What is not solved for has a zero row: a one on its diagonal leaves it where it is.
        idle = (diagonal == 0).to(diagonal.dtype)
        damped = model.hessian + torch.diag_embed(damping[:, None] * diagonal + idle + 1e-10)
        # Too little damping for the precision is no error, but a step refused: it asks for more.
        factor, failure = torch.linalg.cholesky_ex(damped)
        half = torch.linalg.solve_triangular(factor, model.gradient[..., None], upper=False)
        move = torch.linalg.solve_triangular(factor.mT, half, upper=True)[..., 0]
        solved = (failure == 0) & move.isfinite().all(dim=1)
        return -move.masked_fill(~solved[:, None], 0.0), solved

    def _linearise(self, problems: Problems) -> Linearisation:
        if fused_steps.usable(problems.codes):
            return fused_steps.linearised(self.fields, problems, self.settings)
        rows, placements = problems.rows, problems.placements
        distances, jacobian, beyond = self._jacobian(problems)
        scale = placements.scale[:, None]
        residual = residuals(distances, rows) / scale
        jacobian = jacobian / scale.unsqueeze(-1)
        length = problems.codes.shape[1]
        jacobian[..., length] -= residual  # the unit itself depends on the scale
        jacobian[..., length:] *= problems.freedom[:, None]
        weights, huber = _active_weights(rows, beyond), problems.huber[:, None]
        cost = (weights * _huber_loss(residual, huber)).sum(dim=1)
        robust = weights * huber / torch.maximum(residual.abs(), huber)
        # A row inside its interval has no residual and must not stiffen the model either.
        robust = robust * (residual != 0)
        weighted = robust.unsqueeze(-1) * jacobian
        hessian = weighted.transpose(1, 2) @ jacobian
        gradient = (weighted * residual.unsqueeze(-1)).sum(dim=1)
        mean_residual = (weights * residual.abs()).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-12)
        model = Linearisation(cost, gradient, hessian, mean_residual)
        return self._with_priors(model, problems)

    def _with_priors(self, model: Linearisation, problems: Problems) -> Linearisation:
        """The model with the pull of the code and of the placement to the expected ones."""
        codes, prior, settings = problems.codes, problems.prior, self.settings
        length, weight = codes.shape[1], settings.prior_weight
        model.hessian[:, :length, :length] += 2 * weight / length * prior.precision
        model.gradient[:, :length] += 2 * weight / length * prior.pull(codes)
        place = placement_prior(problems, settings)
        model.hessian.diagonal(dim1=1, dim2=2)[:, length:] += place.stiffness
        model.gradient[:, length:] += place.gradient
        cost = model.cost + weight * prior.distance(codes) + place.cost
        return replace(model, cost=cost)

    def _jacobian(self, problems: Problems) -> tuple[Tensor, Tensor, Tensor]:
        """Signed distances (B, K), their derivatives by code and move (B, K, D), and how far off the ball."""
        rows, placements = problems.rows, problems.placements
        offsets = placements.turned(rows.offsets)
        scaled = placements.scale[:, None, None] * placements.turned(rows.points)
        points = scaled + placements.translation[:, None] + offsets
        inside, beyond = _into_ball(points)
        distances, by_code, by_point = _evaluated(self.fields, problems.codes, inside)
        by_point = _gradient_beyond_ball(by_point, points)
        by_move = gradient_by_move(by_point, scaled, offsets)
        return distances + beyond, torch.cat([by_code, by_move], dim=-1), beyond


def _waits_for_launches(fields: CodedFields, rows: Rows) -> bool:
    """Whether a step takes a GPU less time than it takes to tell it what to do."""
    return rows.points.device.type == "cuda" and rows.weights.numel() <= fields.recorded_rows


def _evaluated(fields: CodedFields, codes: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`distance_and_gradients`, on a CPU in parts that fit its caches, of one problem or of several."""
    if points.device.type != "cpu":
        return fields.distance_and_gradients(codes, points)
    together = max(1, CPU_ROWS // max(1, points.shape[1]))
    rows = [
        _joined([fields.distance_and_gradients(some, part) for part in of_some.split(CPU_ROWS, dim=1)], 1)
        for some, of_some in zip(codes.split(together), points.split(together), strict=True)
    ]
    return _joined(rows, 0)


def _joined(parts: Sequence[tuple[Tensor, Tensor, Tensor]], dim: int) -> tuple[Tensor, Tensor, Tensor]:
    distances, by_code, by_point = zip(*parts, strict=True)
    return torch.cat(distances, dim), torch.cat(by_code, dim), torch.cat(by_point, dim)


def _adapted(fits: Fits, better: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Less damping the better the model foretold the decrease, ever more at refusals in a row, (B,) each.

    Nielsen, "Damping parameter in Marquardt's method", IMM-REP-1999-05, section 3.
    """
    shrink = (1 - (2 * gain - 1) ** 3).clamp(1 / 5, 2)
    damping = fits.damping * torch.where(better, shrink, fits.raised)
    return damping.clamp(1e-6, 1e6), (2 * fits.raised).masked_fill(better, 2.0)


def _promised(model: Linearisation, move: Tensor) -> Tensor:
    """The decrease of E (B,) that the model expects of (B, D) moves."""
    curved = (move[:, None] @ model.hessian @ move[..., None]).reshape(-1)
    return (-(move * model.gradient).sum(dim=1) - 0.5 * curved).clamp(min=1e-30)


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
        placements: Placements,
        clamping_distance: float,
        seed: int = 0,
    ) -> None:
        self.decoder, self.rows, self.placements = decoder, rows, placements
        self.clamping_distance = clamping_distance
        device = placements.log_scale.device
        self._generator = torch.Generator(device).manual_seed(seed)
        start = torch.randn((len(placements), code_length), generator=self._generator, device=device)
        self.codes = (self.start_std * start).requires_grad_()
        self._optimizer = torch.optim.Adam([self.codes], lr=self.rate)
        self.steps_taken = 0
        self.residual = torch.full_like(placements.log_scale, math.nan)

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
        device = self.codes.device
        picks = torch.randint(len(self.rows), (count,), generator=self._generator, device=device)
        rows = _clamped(self.rows.some(picks), self.clamping_distance)
        inside, beyond = _into_ball(placed(rows, self.placements))
        distances = self.decoder(self.codes, inside) + beyond
        clamped = distances.clamp(-self.clamping_distance, self.clamping_distance)
        weights = _active_weights(rows, beyond)
        loss = (weights * residuals(clamped, rows).abs()).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-12)
        self.residual = loss.detach() / self.placements.scale
        return loss + self.code_penalty * self.codes.square().mean(dim=1)


def _clamped(rows: Rows, clamping_distance: float) -> Rows:
    """The rows with targets within the clamping distance, as clamped distances are compared with."""
    bound = clamping_distance
    return replace(rows, lower=rows.lower.clamp(-bound, bound), upper=rows.upper.clamp(-bound, bound))
