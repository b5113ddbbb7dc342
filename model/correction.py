"""Faithful where observed: a smooth correction of the fitted field, from its residuals at what was seen.

A few hundred training shapes cannot express every chair, so the fitted field f misses what the sensor saw.
What is missing is taken for a draw g of a Gaussian process, known at the observed points up to their noise:

    f(x) + g(x),   g(x) = k(x, X) (k(X, X) + Σ)⁻¹ r,   k(x, y) = a² Σ_i s_i φ(|x − y| / ρ_i)

with Wendland's φ, which is zero beyond its reach: away from the data g fades and the prior's shape stays.
Measured points are equalities; free space counts only where it is violated, found in a few passes (an
active set). The same process says how far f + g may still be off: little near the data, a elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from model import kernels
from model.elementwise import Elementwise
from model.field import Field, at_a_time
from model.fused import correction as fused_correction
from model.placement import Placements
from model.problems import OUTSIDE, SURFACE, Rows

REACHES = (0.5, 0.15)
SHARES = (0.7, 0.3)
"""Reaches ρ of the two kernels, canonical units, and their shares of the variance: whole parts that stand
off, and details."""

NOISE_FLOOR = 0.005
"""Least standard deviation of a measured point, canonical units: normals, thinning, the skin."""

EMPTY_NOISE = 0.006
"""Standard deviation of what is known of empty space: lines of sight graze, outlines are guessed."""

_KERNELS = tuple(zip(REACHES, SHARES, strict=True))

LEAST_AMPLITUDE = 0.02
PASSES = 3
MOST_EMPTY = 900
CHUNK = (512, 65_536)
"""Points at a time, on a CPU and on a GPU."""


def wendland(r: Tensor) -> Tensor:
    """Wendland's compactly supported φ of smoothness C² in three dimensions: (1 − r)⁴ (4 r + 1), 0 from 1."""
    left = (1 - r).clamp_(min=0).square_().square_()  # powers are a hundred times slower
    return left * (4 * r + 1)


def slope_of_wendland(r: Tensor) -> Tensor:
    """φ'(r) / r."""
    left = (1 - r).clamp_(min=0)
    slope: Tensor = left * left * left * -20
    return slope


def _plain_correlation(squares: Tensor) -> Tensor:
    (wide, much), (narrow, little) = _KERNELS
    distance = squares.clamp(min=0).sqrt_()
    return much * wendland(distance / wide) + little * wendland(distance / narrow)


def slope(squares: Tensor) -> Tensor:
    """The correlation's derivative by the distance, over the distance; by the square of the distance too."""
    (wide, much), (narrow, little) = _KERNELS
    distance = squares.clamp(min=0).sqrt_()
    far, near = slope_of_wendland(distance / wide), slope_of_wendland(distance / narrow)
    return much / wide**2 * far + little / narrow**2 * near


def _left(number: int, reach: float) -> str:
    """What is left of a reach at the distance d, as a share: `l0` or `l1` in CUDA."""
    return f"T l{number} = d < T({reach}) ? T(1) - d / T({reach}) : T(0);"


_LEFT = " ".join(
    ["T d = x > T(0) ? sqrt(x) : T(0);", *(_left(number, reach) for number, reach in enumerate(REACHES))]
)
_SUM = " + ".join(
    f"T({share}) * l{i} * l{i} * l{i} * l{i} * (T(5) - T(4) * l{i})" for i, share in enumerate(SHARES)
)
correlation = Elementwise(_plain_correlation, "correlation", f"{_LEFT} return {_SUM};")
"""Of g at two points, by the square of their distance; 1 at distance 0."""


def lifted(points: Tensor) -> Tensor:
    """(y, 1, |y|²) of points y (M, 3): what makes a product of matrices of `squared_distances`, (M, 5)."""
    squares = points.square().sum(dim=1, keepdim=True)
    return torch.cat([points, torch.ones_like(squares), squares], dim=1)


def squared_distances(points: Tensor, others: Tensor) -> Tensor:
    """Between (N, 3) points and lifted ones (M, 5), (N, M); wrong by rounding, and so below 0 at times.

    The roots are left to the kernels: `torch.cdist` would read and write all of it twice more.
    """
    squares = points.square().sum(dim=1, keepdim=True)
    return torch.cat([-2 * points, squares, torch.ones_like(squares)], dim=1) @ others.T


def kernel(a: Tensor, b: Tensor) -> Tensor:
    """Correlations (N, M) of g between (N, 3) and (M, 3) points."""
    return correlation(squared_distances(a, lifted(b)))


@dataclass(frozen=True)
class Correction:
    """g: a weighted sum of kernels at n centres."""

    centres: Tensor  # (n, 3)
    weights: Tensor  # (n,)
    amplitude: float  # a: standard deviation of g where nothing was seen
    factor: Tensor  # (n, n) lower Cholesky factor of k(X, X) + Σ, with a = 1

    def distance(self, points: Tensor) -> Tensor:
        """g (N,) at (N, 3) points."""
        if kernels.usable(points.device):
            return fused_correction.summed(points, self.centres, self.weights, _KERNELS, sloped=False)[0]
        parts = []
        for chunk in points.split(at_a_time(points.device, *CHUNK)):
            centres, weights = self._near(chunk)
            parts.append(correlation(squared_distances(chunk, centres)) @ weights)
        return torch.cat(parts)

    def distance_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """g (N,) and its gradients (N, 3) at (N, 3) points."""
        if kernels.usable(points.device):
            return fused_correction.summed(points, self.centres, self.weights, _KERNELS, sloped=True)
        values, gradients = [], []
        for chunk in points.split(at_a_time(points.device, *CHUNK)):
            centres, weights = self._near(chunk)
            squares = squared_distances(chunk, centres)
            values.append(correlation(squares) @ weights)
            # Σ w φ'/r (x − c), without the differences of all pairs
            steep = slope(squares)
            towards = steep @ (weights[:, None] * centres[:, :3])
            gradients.append(chunk * (steep @ weights)[:, None] - towards)
        return torch.cat(values), torch.cat(gradients)

    def _near(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Lifted centres that reach into the points' bounding box, and their weights."""
        if not len(points):
            return self._lifted[:0], self.weights[:0]
        low, high = points.amin(dim=0) - REACHES[0], points.amax(dim=0) + REACHES[0]
        near = ((self.centres > low) & (self.centres < high)).all(dim=1)
        return self._lifted[near], self.weights[near]

    @cached_property
    def _lifted(self) -> Tensor:
        return lifted(self.centres)

    def deviation(self, points: Tensor) -> Tensor:
        """Standard deviation (N,) of g at (N, 3) points."""
        known = torch.linalg.solve_triangular(self.factor, kernel(self.centres, points), upper=False)
        deviation: Tensor = self.amplitude * (1 - known.square().sum(dim=0)).clamp(min=0).sqrt()
        return deviation

    @cached_property
    def lipschitz(self) -> float:
        """How steep g is, as sampled where it is steepest: half-way down the finer kernel of each centre."""
        steps = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).to(self.centres)
        points = (self.centres[:, None] + 0.3 * REACHES[1] * steps).reshape(-1, 3)
        return float(self.distance_and_gradient(points)[1].norm(dim=1).max())


@dataclass(frozen=True)
class CorrectedField:
    """f + g as a field."""

    base: Field
    correction: Correction

    @property
    def lipschitz(self) -> float:
        """No steeper than both together."""
        return self.base.lipschitz + self.correction.lipschitz

    @property
    def bend(self) -> float:
        """g bends less than it is steep."""
        return self.base.bend + self.correction.lipschitz

    @property
    def device(self) -> torch.device:
        """The base's."""
        return self.base.device

    def distance(self, points: Tensor) -> Tensor:
        """Signed distances (N,) of (N, 3) points."""
        return self.base.distance(points) + self.correction.distance(points)

    def distance_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distances (N,) and their gradients (N, 3) at (N, 3) points."""
        value, gradient = self.base.distance_and_gradient(points)
        more, slope = self.correction.distance_and_gradient(points)
        return value + more, gradient + slope


@dataclass(frozen=True)
class Shape:
    """A fitted shape where it stands, with what was observed of it."""

    decoded: Field  # of the code alone
    correction: Correction | None
    placements: Placements  # one
    rows: Rows  # of one problem
    points: Tensor  # (K, 3) of the rows, canonical
    noise: float  # standard deviation of measured points, canonical units

    @property
    def field(self) -> Field:
        """The decoded field, corrected where there is a correction."""
        return self.decoded if self.correction is None else CorrectedField(self.decoded, self.correction)


@torch.no_grad()
def correction_of(base: Field, rows: Rows, points: Tensor, noise: float) -> Correction:
    """The correction with which the field passes through what was observed.

    `rows` are those of one problem, `points` (K, 3) where they lie in the canonical frame; `noise` is the
    standard deviation of measured points, canonical units.
    """
    kind, (lower, upper) = rows.kind[0], _bounds(rows, points)
    seen, field = kind == SURFACE, base.distance(points)
    std = torch.where(seen, max(noise, NOISE_FLOOR), EMPTY_NOISE + 0.5 * noise)
    missing = _missing(field, lower, upper)
    amplitude = max(LEAST_AMPLITUDE, float((missing.square() * seen).sum().div(seen.sum()).sqrt()))
    active, correction, known = seen, None, -1
    for _ in range(PASSES):
        if correction is not None:
            missing = _missing(field + correction.distance(points), lower, upper)
        active = _with_worst(active, missing)
        centres = active.nonzero().squeeze(1)
        if len(centres) == known:
            break
        target, known = _missing(field, lower, upper)[centres], len(centres)
        correction = _solved(points[centres], target, std[centres], amplitude)
    assert correction is not None
    return correction


def _bounds(rows: Rows, points: Tensor) -> tuple[Tensor, Tensor]:
    """The rows' intervals, those of points off the surface opened: half the way there will do.

    Rows that count in the ball only say nothing outside of it.
    """
    off, silent = rows.kind[0] == OUTSIDE, rows.only_in_ball[0] & (points.norm(dim=1) > 1)
    lower = torch.where(off, 0.5 * rows.lower[0], rows.lower[0])
    return torch.where(silent, -torch.inf, lower), torch.where(off | silent, torch.inf, rows.upper[0])


def _missing(value: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """How far it is to the nearest end of the interval."""
    return torch.maximum(torch.minimum(value, upper), lower) - value


def _with_worst(active: Tensor, missing: Tensor) -> Tensor:
    """The active rows, and of the others that are violated the worst, as many as there is room for."""
    size = missing.abs() * ~active
    worst, rows = size.topk(min(MOST_EMPTY, len(size)))
    return active.index_put((rows,), active[rows] | (worst > EMPTY_NOISE / 2))


def _solved(points: Tensor, target: Tensor, std: Tensor, amplitude: float) -> Correction:
    # Double precision: neighbouring centres are nearly the same column.
    exact = points.double()
    covariance = kernel(exact, exact)
    covariance.diagonal().add_((std.double() / amplitude).square())
    factor = torch.linalg.cholesky_ex(covariance).L  # without a look whether it could be done: Σ sees to that
    weights = torch.cholesky_solve(target.double()[:, None], factor)[:, 0]
    return Correction(points, weights.float(), amplitude, factor.float())
