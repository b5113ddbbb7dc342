"""The recipe of a completion: observe → fit → mesh → back to the scan's frame."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.checkpoint import Checkpoint
from model.field import DecodedField
from model.frame import Similarity
from model.latent import PLACEMENT_SIZE, Adam, CodePrior, FitSettings, LevenbergMarquardt, Rows, objective
from model.mesh import Mesh, to_trimesh
from model.observation import Observation, RowWeights, UnusableScan, observe, rows_of
from model.surface import NoSurface, extract_surface

Array = NDArray[np.float64]
Phase = Literal["observe", "fit", "mesh"]
_PHASE_STARTS: dict[Phase, tuple[float, float]] = {
    "observe": (0.0, 0.05),
    "fit": (0.05, 0.85),
    "mesh": (0.85, 1.0),
}

SCALE_SHARES = (1.2, 1.1, 1.0, 0.9)
"""Scales tried for each start code: shares of the largest at which the scan fits its bounding box. Above
1 because the start code's shape is not the scanned one, and its tightest side may be tighter."""


@dataclass(frozen=True)
class Progress:
    """Where a completion stands; `residual` is the mean misfit to what was observed, in radii of the scan."""

    phase: Phase
    step: int
    steps: int
    residual: float | None = None

    @property
    def fraction(self) -> float:
        """Progress of the whole completion in [0, 1]."""
        low, high = _PHASE_STARTS[self.phase]
        return low + (high - low) * min(1.0, self.step / max(1, self.steps))


OnStep = Callable[[Progress], None]


class CompletionError(Exception):
    """A completion that ends without a mesh for a reason the user can act on."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


@dataclass(frozen=True)
class CompletionReport:
    """What was done and how well the result agrees with the scan."""

    model: str
    solver: str
    steps: int
    residual: float  # mean misfit of the field to what was observed, in radii of the scan
    residual_in_scan_unit: float
    code_distance: float  # squared Mahalanobis distance a dimension to the training codes; about 1 is usual
    nearest_shape: str  # training shape with the nearest code
    scan_to_canonical: list[list[float]]  # (4, 4)
    points_used: int
    evaluations: int  # of the decoder, for the surface
    vertices: int
    faces: int
    watertight: bool
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Completion:
    """A completed mesh in the scan's frame and unit, and its report."""

    mesh: Mesh
    report: CompletionReport


@dataclass(frozen=True)
class Effort:
    """How many hypotheses are tried, and on how many rows (surface, free space) each round looks."""

    screened_rows: tuple[int, int] = (72, 48)
    rescreened: int = 256
    rescreened_rows: tuple[int, int] = (192, 96)
    tried: int = 12
    tried_rows: tuple[int, int] = (384, 256)
    tried_steps: int = 15
    finished: int = 6
    finished_rows: tuple[int, int] = (2400, 1600)


@dataclass(frozen=True)
class StartCodes:
    """C codes that a fit may start from, and the bounding box of what each decodes to."""

    codes: Tensor  # (C, L)
    extents: Tensor  # (C, 2, 3) lower and upper corner, canonical frame


@dataclass(frozen=True)
class Hypotheses:
    """B starts of a fit."""

    codes: Tensor  # (B, L)
    placements: Tensor  # (B, 4) log scale and translation
    origin: Tensor  # (B,) which start code

    def of(self, picks: Tensor) -> Hypotheses:
        """The given ones."""
        return Hypotheses(self.codes[picks], self.placements[picks], self.origin[picks])


@dataclass
class _Clock:
    """Seconds spent in each phase, and the way out for progress."""

    on_step: OnStep | None
    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def report(self, phase: Phase, step: int, steps: int, residual: float | None = None) -> None:
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now
        if self.on_step is not None:
            self.on_step(Progress(phase, step, steps, residual))


class Completer:
    """Completes scans with one checkpoint. Knows no queue and no file."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: FitSettings | None = None,
        weights: RowWeights | None = None,
        effort: Effort | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.settings = settings or FitSettings()
        self.weights = weights or RowWeights()
        self.effort = effort or Effort()

    def complete(
        self,
        points: Array,
        normals: Array | None = None,
        viewpoint: Array | None = None,
        background: Array | None = None,
        *,
        up: str = "+y",
        solver: str = "lm",
        resolution: int = 128,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> Completion:
        """Complete a partial scan whose orientation is known and whose place and size are not.

        `points` (N, 3) in any unit; `normals` (N, 3) outward; `viewpoint` (3,) of the sensor;
        `background` (B, 3) unit directions from it that met nothing, guessed from the scan's outline if
        None. All are in the scan's frame, in which the axis `up` points up and the shape faces its
        canonical front. The mesh comes back in the scan's frame and unit, closed. `on_step` is called
        after every step; what it raises goes through.
        Raises CompletionError with the codes `unusable_scan` and `no_surface`.
        """
        clock = _Clock(on_step)
        try:
            observation = observe(points, normals, viewpoint, background, up=up, seed=seed)
        except UnusableScan as error:
            raise CompletionError("unusable_scan", str(error)) from error
        clock.report("observe", 1, 1)
        fit = self.fit(observation, solver, seed, clock)
        mesh, evaluations = self.mesh(fit, resolution, clock)
        clock.report("mesh", 1, 1, fit.residual)
        to_canonical = fit.placement.after(observation.from_scan)
        mesh = mesh.moved(to_canonical.inverse())
        return Completion(
            mesh, self._report(mesh, fit, observation, to_canonical, solver, evaluations, clock)
        )

    def fit(self, observation: Observation, solver: str, seed: int, clock: _Clock | None = None) -> Fit:
        """The MAP code and placement of an observation, by solver "lm" or "adam"."""
        clock = clock or _Clock(None)
        if solver == "lm":
            return self._fit_lm(observation, seed, clock)
        if solver == "adam":
            return self._fit_adam(observation, seed, clock)
        raise CompletionError("unknown_solver", f"solver must be lm or adam, not {solver!r}")

    def _rows(self, observation: Observation, counts: tuple[int, int], seed: int) -> Rows:
        checkpoint = self.checkpoint
        return rows_of(observation, counts, checkpoint.skin, self.weights, checkpoint.device, seed)

    def start_codes(self) -> StartCodes:
        """The mean code and those of the training shapes themselves (not of their variants)."""
        checkpoint = self.checkpoint
        own = checkpoint.own_shapes
        codes, extents = checkpoint.codes[own], checkpoint.extents[own]
        mean = checkpoint.prior.mean.unsqueeze(0)
        return StartCodes(torch.cat([mean, codes]), torch.cat([extents.mean(dim=0, keepdim=True), extents]))

    def screen(
        self, observation: Observation, seed: int, starts: StartCodes, clock: _Clock | None = None
    ) -> Hypotheses:
        """The best placement of each of the best start codes, by forward passes on few points."""
        effort, clock = self.effort, clock or _Clock(None)
        tried = hypotheses(starts, observation)
        tried = self._best(
            tried, self._rows(observation, effort.screened_rows, seed), effort.rescreened, clock
        )
        rows = self._rows(observation, effort.rescreened_rows, seed + 1)
        tried = self._best(tried, rows, effort.rescreened, clock)
        seen: dict[int, int] = {}
        for index, origin in enumerate(tried.origin.tolist()):
            seen.setdefault(origin, index)
        return tried.of(torch.tensor(list(seen.values())[: effort.tried], device=tried.codes.device))

    def _best(self, starts: Hypotheses, rows: Rows, count: int, clock: _Clock) -> Hypotheses:
        """The `count` starts with the smallest objective, best first."""
        checkpoint, costs = self.checkpoint, []
        for part in torch.arange(len(starts.origin), device=checkpoint.device).split(200):
            some = starts.of(part)
            costs.append(
                objective(
                    checkpoint.decoder, checkpoint.prior, rows, some.codes, some.placements, self.settings
                )
            )
            clock.report("fit", 0, self._fit_steps)
        return starts.of(torch.cat(costs).argsort()[:count])

    def _fit_lm(self, observation: Observation, seed: int, clock: _Clock) -> Fit:
        starts = self.screen(observation, seed, self.start_codes(), clock)
        return self.fit_starts(observation, starts, self.checkpoint.prior, seed + 2, clock)

    def fit_starts(
        self,
        observation: Observation,
        starts: Hypotheses,
        prior: CodePrior,
        seed: int,
        clock: _Clock | None = None,
    ) -> Fit:
        """Levenberg-Marquardt from all starts on few rows, then from the best on many; the best end wins."""
        effort, clock = self.effort, clock or _Clock(None)
        tried = self._solver(observation, starts, prior, effort.tried_rows, effort.tried_steps, seed)
        self._run(tried, 0, clock)
        best = tried.cost.argsort()[: effort.finished]
        starts = Hypotheses(tried.codes[best], tried.placements[best], starts.origin[best])
        last = self._solver(observation, starts, prior, effort.finished_rows, self.settings.steps, seed + 1)
        self._run(last, effort.tried_steps, clock)
        winner = int(last.cost.argmin())
        return Fit(
            code=last.codes[winner],
            placement=_similarity(last.placements[winner]),
            residual=float(last.residual[winner]),
            steps=tried.steps_taken + last.steps_taken,
        )

    def _solver(
        self,
        observation: Observation,
        starts: Hypotheses,
        prior: CodePrior,
        rows: tuple[int, int],
        steps: int,
        seed: int,
    ) -> LevenbergMarquardt:
        return LevenbergMarquardt(
            self.checkpoint.decoder,
            prior,
            self._rows(observation, rows, seed),
            starts.codes,
            starts.placements,
            replace(self.settings, steps=steps),
        )

    def _run(self, solver: LevenbergMarquardt, before: int, clock: _Clock) -> None:
        while not solver.finished:
            solver.step()
            clock.report("fit", before + solver.steps_taken, self._fit_steps, float(solver.residual.min()))

    @property
    def _fit_steps(self) -> int:
        return self.effort.tried_steps + self.settings.steps

    def _fit_adam(self, observation: Observation, seed: int, clock: _Clock) -> Fit:
        checkpoint = self.checkpoint
        starts = self.screen(observation, seed, self.start_codes(), clock)
        start = starts.of(torch.tensor([0], device=checkpoint.device))
        rows = self._rows(observation, (3 * len(observation.surface), 2 * len(observation.free)), seed + 3)
        adam = Adam(
            checkpoint.decoder,
            rows,
            checkpoint.codes.shape[1],
            start.placements,
            checkpoint.clamping_distance,
            seed,
        )
        while not adam.finished:
            adam.step()
            clock.report("fit", adam.steps_taken, adam.steps, float(adam.residual[0]))
        return Fit(
            adam.codes[0].detach(), _similarity(start.placements[0]), float(adam.residual[0]), adam.steps
        )

    def mesh(self, fit: Fit, resolution: int, clock: _Clock | None = None) -> tuple[Mesh, int]:
        """The fitted shape in the canonical frame, and how often the field was evaluated for it.

        Raises CompletionError `no_surface`.
        """
        checkpoint, clock = self.checkpoint, clock or _Clock(None)

        def on_chunk() -> None:
            clock.report("mesh", 0, 1, fit.residual)

        try:
            decoded = DecodedField(checkpoint.decoder, fit.code, checkpoint.lipschitz)
            extraction = extract_surface(decoded, resolution, checkpoint.skin, on_chunk=on_chunk)
        except NoSurface as error:
            detail = f"the fitted shape is empty ({error}): check the scan's up axis, or try another model"
            raise CompletionError("no_surface", detail) from error
        return extraction.mesh, extraction.evaluations

    def _report(
        self,
        mesh: Mesh,
        fit: Fit,
        observation: Observation,
        to_canonical: Similarity,
        solver: str,
        evaluations: int,
        clock: _Clock,
    ) -> CompletionReport:
        checkpoint = self.checkpoint
        nearest = int((checkpoint.codes - fit.code).norm(dim=1).argmin())
        return CompletionReport(
            model=checkpoint.name,
            solver=solver,
            steps=fit.steps,
            residual=fit.residual,
            residual_in_scan_unit=fit.residual / observation.from_scan.scale,
            code_distance=float(checkpoint.prior.distance(fit.code.unsqueeze(0))[0]),
            nearest_shape=checkpoint.shapes[nearest],
            scan_to_canonical=to_canonical.matrix().tolist(),
            points_used=len(observation.surface),
            evaluations=evaluations,
            vertices=len(mesh.vertices),
            faces=len(mesh.faces),
            watertight=bool(to_trimesh(mesh).is_watertight),
            seconds={phase: round(spent, 3) for phase, spent in clock.seconds.items()},
        )


@dataclass(frozen=True)
class Fit:
    """The winner of a fit."""

    code: Tensor  # (L,)
    placement: Similarity  # from the observation's frame into the canonical one
    residual: float  # radii of the scan
    steps: int


def _similarity(placement: Tensor) -> Similarity:
    values = placement.detach().cpu().double()
    return Similarity(float(values[0].exp()), np.eye(3), values[1:].numpy())


def hypotheses(starts: StartCodes, observation: Observation) -> Hypotheses:
    """Every start code at every plausible scale and place.

    A partial scan's bounding box fits into the shape's, so the largest scale is where it touches in one
    axis; along each axis the scan lies at the low end, the high end or in the middle of the slack.
    """
    codes, extents = starts.codes, starts.extents
    bounds = np.quantile(observation.surface, [0.005, 0.995], axis=0)
    low, high = torch.from_numpy(bounds).to(codes)
    largest = ((extents[:, 1] - extents[:, 0]) / (high - low).clamp(min=0.05)).amin(dim=1)
    shares = torch.tensor(SCALE_SHARES).to(codes)
    ends = torch.tensor([0.0, 0.5, 1.0]).to(codes)
    places = torch.cartesian_prod(ends, ends[::2], ends)  # low, middle, high; chairs are cut at one end of y
    scales = largest[:, None] * shares  # (C, 3)
    slack = (extents[:, 1] - extents[:, 0])[:, None] - scales[..., None] * (high - low)  # (C, 3, 3)
    corner = extents[:, None, None, 0] + places * slack[:, :, None]  # (C, 3, P, 3)
    translations = corner - scales[..., None, None] * low
    logs = scales.log()[..., None, None].expand(*translations.shape[:-1], 1)
    placements = torch.cat([logs, translations], dim=-1)
    origin = torch.arange(len(codes), device=codes.device)[:, None, None].expand(placements.shape[:-1])
    flat = origin.reshape(-1)
    return Hypotheses(codes[flat], placements.reshape(-1, PLACEMENT_SIZE), flat)
