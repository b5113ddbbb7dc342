"""What fits are given and where they stand: rows of evidence, priors, problems and states, B at once.

Knows no solver: `model.latent` takes the steps, and `model.fused.steps` takes them on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.placement import FREEDOM, MOVE_SIZE, ExpectedPlacements, Placements
from model.trees import mapped

SURFACE, OUTSIDE, FREE, BACKGROUND = range(4)


KINDS = ("surface", "outside", "free space", "background")
"""Kinds of rows: measured points, η off them towards the sensor, lines of sight, rays that met nothing."""


@dataclass(frozen=True)
class Rows:
    """What is known of the field at K points, for B problems.

    The point of row k is placement(points_k) with the turned offset added. Equality is the interval
    [s, s]; free space is [0, ∞). A row of weight 0 is padding.
    """

    points: Tensor  # (B, K, 3) in the observation's frame, before the placement
    offsets: Tensor  # (B, K, 3) canonical units, observation's axes: η along the normal, or 0
    lower: Tensor  # (B, K) signed distance, canonical units
    upper: Tensor  # (B, K)
    weights: Tensor  # (B, K)
    only_in_ball: Tensor  # (B, K) bool: the row says nothing once its point leaves the unit ball
    kind: Tensor  # (B, K) int8, one of `KINDS`

    def __len__(self) -> int:
        return self.points.shape[1]

    def of(self, problems: Tensor) -> Rows:
        """The rows of the given problems."""
        return Rows(*(part[problems] for part in self.parts()))

    def some(self, picks: Tensor) -> Rows:
        """The given rows of every problem."""
        return Rows(*(part[:, picks] for part in self.parts()))

    def expanded(self, problems: int) -> Rows:
        """The rows of one problem, for many."""
        return Rows(*(part.expand(problems, *part.shape[1:]) for part in self.parts()))

    def padded(self, count: int) -> Rows:
        """As many more rows of weight 0 as make `count`."""
        missing = count - len(self)
        if missing == 0:
            return self
        return Rows(
            *(torch.cat([part, torch.zeros_like(part[:, :1]).expand(-1, missing, *part.shape[2:])], dim=1)
              for part in self.parts())
        )  # fmt: skip

    @classmethod
    def joined(cls, parts: list[Rows]) -> Rows:
        """All problems of the parts, in order; shorter ones are padded."""
        count = max(len(part) for part in parts)
        columns = zip(*(part.padded(count).parts() for part in parts), strict=True)
        return cls(*(torch.cat(column) for column in columns))

    def parts(self) -> tuple[Tensor, ...]:
        """All tensors, in the order of the fields."""
        return (
            self.points, self.offsets, self.lower, self.upper, self.weights, self.only_in_ball, self.kind
        )  # fmt: skip


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
        kind=torch.full_like(distances, SURFACE, dtype=torch.int8),
    )


@dataclass(frozen=True)
class CodePrior:
    """Codes as a Gaussian: a better MAP prior than DeepSDF's ‖z‖²/σ² (isotropic, zero mean).

    Of all training codes, or, with a first dimension B, of the codes that each of B scans suggests.
    """

    mean: Tensor  # (L,) or (B, L)
    precision: Tensor  # (L, L) or (B, L, L)

    @classmethod
    def from_codes(cls, codes: Tensor, shrinkage: float = 0.1) -> CodePrior:
        """Mean and precision of (N, L) codes, the covariance shrunk towards its diagonal's mean."""
        mean = codes.mean(dim=0)
        centred = codes - mean
        covariance = centred.T @ centred / max(1, len(codes) - 1)
        isotropic = covariance.diagonal().mean().clamp(min=1e-8)
        eye = torch.eye(codes.shape[1], dtype=codes.dtype, device=codes.device)
        return cls(mean, torch.linalg.inv((1 - shrinkage) * covariance + shrinkage * isotropic * eye))

    @classmethod
    def joined(cls, parts: list[CodePrior]) -> CodePrior:
        """Those of all parts, in order, each with a first dimension."""
        return cls(torch.cat([part.mean for part in parts]), torch.cat([part.precision for part in parts]))

    def of(self, picks: Tensor) -> CodePrior:
        """Those of the given scans."""
        return CodePrior(self.mean[picks], self.precision[picks])

    def expanded(self, count: int) -> CodePrior:
        """For `count` scans; one that is of each of them already stays as it is."""
        if self.mean.dim() == 2:
            return self
        return CodePrior(self.mean.expand(count, -1), self.precision.expand(count, -1, -1))

    def pull(self, codes: Tensor) -> Tensor:
        """Σ⁻¹ (z − μ) of (B, L) codes."""
        centred = (codes - self.mean)[:, None]
        pulled: Tensor = (centred @ self.precision)[:, 0]
        return pulled

    def distance(self, codes: Tensor) -> Tensor:
        """Squared Mahalanobis distance a dimension, (B,) for (B, L) codes; about 1 for a training code."""
        return (self.pull(codes) * (codes - self.mean)).mean(dim=1)


@dataclass(frozen=True)
class FitSettings:
    """How a fit weighs and walks."""

    prior_weight: float = 2e-6  # λ
    huber: float = 0.03  # residuals beyond it count linearly; the observation's unit
    steps: int = 30
    tolerance: float = 1e-3  # relative decrease of E under which a problem is done
    damping: float = 0.1  # start of the trust region's damping
    placement_weight: float = 6e-6  # how much π says
    placement_tail: float = 2.0  # standard deviations, squared, beyond which π's pull fades
    rotation_std: float = 1.0  # radians; weak, since the start is one of many hypotheses


@dataclass(frozen=True)
class Problems:
    """B fits: what was observed, where each starts, and what of its placement is free."""

    rows: Rows
    codes: Tensor  # (B, L)
    placements: Placements
    prior: CodePrior  # of each
    expected: ExpectedPlacements
    freedom: Tensor  # (B, 7) 1 where the move is solved for, else 0
    huber: Tensor  # (B,) observation's unit
    steps: Tensor  # (B,) at most

    @classmethod
    def start(
        cls,
        rows: Rows,
        codes: Tensor,
        prior: CodePrior,
        placements: Placements | None = None,
        pose: str = "known",
        settings: FitSettings | None = None,
        expected: ExpectedPlacements | None = None,
    ) -> Problems:
        """Fits of (B, L) codes to rows of B problems, or to the same rows for all; `pose` as in `FREEDOM`.

        Where no placement is `expected`, the one to start from is.
        """
        settings, count = settings or FitSettings(), len(codes)
        placements = placements or Placements.identity(count, codes.device)
        return cls(
            rows=rows if rows.points.shape[0] == count else rows.expanded(count),
            codes=codes,
            placements=placements,
            prior=prior.expanded(count),
            expected=expected or ExpectedPlacements.around(placements),
            freedom=codes.new_tensor(FREEDOM[pose]).expand(count, MOVE_SIZE),
            huber=codes.new_full((count,), settings.huber),
            steps=torch.full((count,), settings.steps, device=codes.device),
        )

    def __len__(self) -> int:
        return len(self.codes)

    def of(self, picks: Tensor) -> Problems:
        """The given ones."""
        return Problems(
            self.rows.of(picks),
            self.codes[picks],
            self.placements.of(picks),
            self.prior.of(picks),
            self.expected.of(picks),
            self.freedom[picks],
            self.huber[picks],
            self.steps[picks],
        )

    @classmethod
    def joined(cls, parts: list[Problems]) -> Problems:
        """All problems of the parts, in order."""
        return cls(
            Rows.joined([part.rows for part in parts]),
            torch.cat([part.codes for part in parts]),
            Placements.joined([part.placements for part in parts]),
            CodePrior.joined([part.prior for part in parts]),
            ExpectedPlacements.joined([part.expected for part in parts]),
            torch.cat([part.freedom for part in parts]),
            torch.cat([part.huber for part in parts]),
            torch.cat([part.steps for part in parts]),
        )


class CodedFields(Protocol):
    """Fields that a code picks out: the decoder, or shapes on grids."""

    @property
    def recorded_rows(self) -> int:
        """Rows of all problems up to which a GPU replays a recorded step, finished problems and all.

        With more it has enough to do, and the finished ones are left out, as on a CPU.
        """

    def __call__(self, codes: Tensor, points: Tensor) -> Tensor:
        """Signed distances (B, K) for (B, L) codes and (B, K, 3) points."""

    def distance_and_gradients(self, codes: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Signed distances (B, K), their gradients in the code (B, K, L) and in the point (B, K, 3)."""


@dataclass(frozen=True)
class Linearisation:
    """E and its Gauss-Newton model at one state, for B problems; D = L + 7, the code before the move."""

    cost: Tensor  # (B,)
    gradient: Tensor  # (B, D)
    hessian: Tensor  # (B, D, D)
    residual: Tensor  # (B,) weighted mean |r|, the observation's unit


@dataclass(frozen=True)
class Fits:
    """Where the fits of B problems stand: all that a step changes."""

    codes: Tensor  # (B, L) the best so far
    placements: Placements  # the best so far
    model: Linearisation  # there
    steps_taken: Tensor  # (B,)
    converged: Tensor  # (B,) bool
    damping: Tensor  # (B,)
    raised: Tensor  # (B,) factor of the damping at the next refusal

    def of(self, picks: Tensor | slice) -> Fits:
        """Those of the given problems."""
        return mapped(lambda part: part[picks], self)

    def where(self, taken: Tensor, other: Fits) -> Fits:
        """`other` where `taken` (B,) holds, else this."""
        return mapped(lambda old, new: torch.where(_beside(taken, old), new, old), self, other)

    def updated(self, problems: Tensor, other: Fits) -> Fits:
        """This, with `other` for the given problems."""
        return mapped(lambda old, new: old.index_put((problems,), new), self, other)


def _beside(problems: Tensor, part: Tensor) -> Tensor:
    """(B,) values, shaped to go with a (B, …) part."""
    return problems.reshape(-1, *[1] * (part.dim() - 1))
