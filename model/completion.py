"""The recipe of a completion: observe → fit → mesh → back to the scan's frame."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from model.batch import Steps, aside, to_the_end
from model.checkpoint import Checkpoint
from model.correction import Shape, correction_of
from model.field import Field
from model.fitting import Effort, Fit, Fitter, Look
from model.latent import placed
from model.mesh import Mesh, Triangles, components_of, deviation_colors, simplified
from model.neighbours import Neighbours
from model.observation import Observation, RowWeights, UnusableScan, View, observe
from model.placement import FREEDOM, Placements
from model.problems import FitSettings
from model.report import CompletionReport, Finished, report_of
from model.streams import working_on
from model.surface import Extraction, NoSurface, triangles_of
from model.uncertainty import Calibration, Posterior, laplace, vertex_deviation

Array = NDArray[np.float64]
Phase = Literal["observe", "fit", "refine", "mesh"]
_PHASE_STARTS: dict[Phase, tuple[float, float]] = {
    "observe": (0.0, 0.05),
    "fit": (0.05, 0.75),
    "refine": (0.75, 0.8),
    "mesh": (0.8, 1.0),
}


CORRECTION_ROWS = (3000, 3000)
"""Rows (surface, free space) that the correction looks at."""


COMPONENTS = {"main": 0.01, "largest": 1.0, "all": 0.0}
"""Share of the largest connected part's area that a part needs to stay: crumbs are no part of an object.
Except with "all", parts of which nothing was seen go too."""

PREVIEW_RESOLUTION = 32
"""Cells along an edge for a mesh that is to be had at once: a few thousand evaluations."""

UNSEEN_COLOR = 184
"""Grey of what the scan did not see."""


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
OnPreview = Callable[[Mesh, Array], None]
"""Called with a coarse mesh in the scan's frame, and the rotation (3, 3) that turns the scan's up to +y."""


class CompletionError(Exception):
    """A completion that ends without a mesh for a reason the user can act on."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


@dataclass(frozen=True)
class Completion:
    """A completed mesh in the scan's frame and unit, its report, and others that agree with the scan too."""

    mesh: Mesh
    report: CompletionReport
    alternatives: list[Mesh] = field(default_factory=list)
    up: Array = field(default_factory=lambda: np.eye(3))  # (3, 3) turns the scan's up to +y, for viewers


@dataclass(frozen=True)
class MeshOptions:
    """What the surface shall be like."""

    resolution: int = 128
    components: str = "main"  # one of `COMPONENTS`
    target_faces: int | None = None
    color: str = "scan"  # or "uncertainty", "none"


@dataclass(frozen=True)
class _Wanted:
    """What was asked for, as far as it is needed once the fit is done."""

    pose: str
    solver: str
    refine: bool
    samples: int
    seed: int
    mesh: MeshOptions


@dataclass
class _Clock:
    """Seconds spent in each phase, and the way out for progress."""

    on_step: OnStep | None
    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def count(self, phase: str) -> None:
        """The time since it was last counted goes to a phase."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now

    def report(self, phase: Phase, step: int, steps: int, residual: float | None = None) -> None:
        """The same, and tell where the completion stands."""
        self.count(phase)
        if self.on_step is not None:
            self.on_step(Progress(phase, step, steps, residual))


class Completer:
    """Completes scans with one checkpoint. Knows no queue and no file.

    `completing` is the recipe. It pauses at every step, so that several completions can share the device
    (see `model.batch`); `complete` is the same without pauses.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: FitSettings | None = None,
        weights: RowWeights | None = None,
        effort: Effort | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.calibration = Calibration(**checkpoint.calibration)
        self.fitter = Fitter(
            checkpoint, settings or FitSettings(), weights or RowWeights(), effort or Effort()
        )

    def completing(
        self,
        views: View | Sequence[View],
        *,
        pose: str = "upright",
        up: str | ArrayLike = "+y",
        solver: str = "lm",
        refine: bool = True,
        samples: int = 0,
        remove_plane: bool = False,
        resolution: int = 128,
        components: str = "main",
        target_faces: int | None = None,
        color: str = "scan",
        start: ArrayLike | None = None,
        seed: int = 0,
        on_step: OnStep | None = None,
        on_preview: OnPreview | None = None,
    ) -> Steps[Completion]:
        """Complete a partial scan of one view or several, in any place and size.

        `pose` says what else is unknown: "canonical" nothing (once `up`, an axis or a vector of the
        scan, points up, the shape faces +z), "upright" the turn about the vertical, "free" every turn.
        `refine` corrects the fitted shape where it misses what was seen. `samples` asks for so many
        alternative completions. `remove_plane` cuts off the floor or table under the object.
        `components` is "main", "largest" or "all" (see `COMPONENTS`), `target_faces` simplifies the mesh,
        `color` is what its vertices show: "scan" (colours of the scan where there are any), "uncertainty"
        or "none".
        `start` (L,) is a latent code to try first, as the report of an earlier completion has it.

        The mesh comes back in the scan's frame and unit, closed. `on_step` is called after every step,
        `on_preview` after every round with a coarse mesh of the best so far; what they raise goes through.
        Raises CompletionError with the codes `unusable_scan`, `no_surface` and `invalid_option`.
        """
        clock, options = _Clock(on_step), MeshOptions(resolution, components, target_faces, color)
        observation = yield from aside(self._observed, views, up, remove_plane, seed)
        clock.report("observe", 1, 1)

        def look(code: Tensor, placements: Placements) -> None:
            if on_preview is not None and (mesh := self.preview(code, placements, observation)) is not None:
                on_preview(mesh, observation.from_scan.rotation)

        shown = look if on_preview is not None else None
        fit = yield from self.fitting(observation, pose, solver, seed, start, clock, shown)
        wanted = _Wanted(pose, solver, refine, samples, seed, options)
        return (yield from aside(self._finished, observation, fit, wanted, clock))

    complete = to_the_end(completing)

    def _observed(
        self, views: View | Sequence[View], up: str | ArrayLike, remove_plane: bool, seed: int
    ) -> Observation:
        try:
            with working_on(self.checkpoint.device):
                return observe(views, up=up, remove_plane=remove_plane, seed=seed)
        except UnusableScan as error:
            raise CompletionError("unusable_scan", str(error)) from error
        except ValueError as error:
            raise CompletionError("invalid_option", str(error)) from error

    def _finished(self, observation: Observation, fit: Fit, wanted: _Wanted, clock: _Clock) -> Completion:
        """From the fit on no step is needed any more: refine, mesh, report."""
        with working_on(self.checkpoint.device):
            return self._made(observation, fit, wanted, clock)

    def _made(self, observation: Observation, fit: Fit, wanted: _Wanted, clock: _Clock) -> Completion:
        posterior = self.posterior(fit)
        ends = [(fit.best.code, fit.problem.placements), *posterior.draws(wanted.samples, wanted.seed)]
        shapes = []
        for done, (code, placement) in enumerate(ends, start=1):
            shapes.append(self.shape(code, placement, observation, wanted.refine, wanted.seed))
            clock.report("refine", done, len(ends), fit.best.residual)
        made = [self.finish(shape, posterior, observation, wanted.mesh, clock) for shape in shapes]
        clock.report("mesh", 1, 1, fit.best.residual)
        report = report_of(
            Finished(
                self.checkpoint, observation, fit, shapes[0], posterior, self.eta(observation),
                made[0].mesh, made[0].evaluations, wanted.solver, wanted.pose,
            )
        )  # fmt: skip
        clock.count("report")
        report = replace(report, seconds={phase: round(spent, 3) for phase, spent in clock.seconds.items()})
        return Completion(
            made[0].mesh, report, [one.mesh for one in made[1:]], observation.from_scan.rotation
        )

    def fitting(
        self,
        observation: Observation,
        pose: str = "canonical",
        solver: str = "lm",
        seed: int = 0,
        start: ArrayLike | None = None,
        clock: _Clock | None = None,
        look: Look | None = None,
    ) -> Steps[Fit]:
        """The MAP code and placement of an observation, by solver "lm" or "adam"."""
        clock = clock or _Clock(None)

        def tell(step: int, steps: int, residual: float | None) -> None:
            clock.report("fit", step, steps, residual)

        if pose not in FREEDOM:
            raise CompletionError("invalid_option", f"pose must be one of {', '.join(FREEDOM)}, not {pose!r}")
        if solver == "lm":
            return (yield from self.fitter.fitting(observation, pose, seed, self._code(start), tell, look))
        if solver == "adam":
            return (yield from self.fitter.fitting_adam(observation, pose, seed, tell, look))
        raise CompletionError("invalid_option", f"solver must be lm or adam, not {solver!r}")

    fit = to_the_end(fitting)

    def preview(self, code: Tensor, placements: Placements, observation: Observation) -> Mesh | None:
        """A coarse mesh of an (L,) code at one placement, in the scan's frame; None if it has no surface."""
        checkpoint = self.checkpoint
        try:
            with working_on(checkpoint.device):
                coarse, _ = triangles_of(checkpoint.field(code), PREVIEW_RESOLUTION, checkpoint.skin)
                return coarse.moved(placements.similarity(0).after(observation.from_scan).inverse()).mesh()
        except NoSurface:
            return None

    def _code(self, start: ArrayLike | None) -> torch.Tensor | None:
        if start is None:
            return None
        codes = self.checkpoint.codes
        code = torch.as_tensor(np.asarray(start, dtype=np.float32), device=codes.device)
        if code.shape != codes.shape[1:] or not bool(code.isfinite().all()):
            raise CompletionError("invalid_option", f"start must be {codes.shape[1]} finite numbers")
        return code

    def posterior(self, fit: Fit) -> Posterior:
        """How sure the fit is."""
        return laplace(fit, self.fitter.settings, self.calibration)

    def eta(self, observation: Observation) -> float:
        """η of an observation, canonical units."""
        return self.fitter.weights.eta_for(observation)

    def shape(
        self,
        code: Tensor,
        placements: Placements,
        observation: Observation,
        refine: bool = True,
        seed: int = 0,
    ) -> Shape:
        """The shape of an (L,) code at one placement; with `refine` it passes through what was observed."""
        decoded = self.checkpoint.field(code)
        rows = self.fitter.rows(observation, CORRECTION_ROWS, seed + 7)
        points = placed(rows, placements)[0]
        noise = observation.noise * float(placements.scale)
        correction = correction_of(decoded, rows, points, noise) if refine else None
        return Shape(decoded, correction, placements, rows, points, noise)

    def finish(
        self,
        shape: Shape,
        posterior: Posterior,
        observation: Observation,
        options: MeshOptions,
        clock: _Clock | None = None,
    ) -> Extraction:
        """The surface of a shape, with its deviation and colours, in the scan's frame."""
        triangles, evaluations = self.surface(shape.field, options.resolution, clock)
        deviation = vertex_deviation(
            triangles.vertices,
            posterior,
            self.checkpoint.decoder,
            shape.correction,
            shape.noise,
            self.calibration,
        )
        to_canonical = shape.placements.similarity(0).after(observation.from_scan)
        triangles = replace(triangles, deviation=deviation).moved(to_canonical.inverse())
        seen = None if options.components == "all" else observation.in_scan()
        mesh = components_of(triangles, COMPONENTS[options.components], seen).mesh()
        if options.target_faces is not None:
            mesh = simplified(mesh, options.target_faces)
        return Extraction(_colored(mesh, observation, self.eta(observation), options.color), evaluations)

    def surface(self, shape: Field, resolution: int, clock: _Clock | None = None) -> tuple[Triangles, int]:
        """The surface of a field in the canonical frame, and how often the field was evaluated for it.

        Raises CompletionError `no_surface`.
        """
        clock = clock or _Clock(None)

        def on_chunk() -> None:
            clock.report("mesh", 0, 1)

        try:
            return triangles_of(shape, resolution, self.checkpoint.skin, on_chunk=on_chunk)
        except NoSurface as error:
            detail = f"the fitted shape is empty ({error}): check the scan's up axis, or try another model"
            raise CompletionError("no_surface", detail) from error


def _colored(mesh: Mesh, observation: Observation, eta: float, color: str) -> Mesh:
    """The mesh with colours: the scan's where it was observed, or those of its deviation."""
    if color == "uncertainty":
        return replace(mesh, colors=deviation_colors(mesh))
    if color == "none" or observation.colors is None:
        return mesh
    seen = observation.in_scan()
    return replace(
        mesh, colors=_scan_colors(mesh, seen, observation.colors, eta / observation.from_scan.scale)
    )


def _scan_colors(mesh: Mesh, seen: Array, colors: NDArray[np.uint8], reach: float) -> NDArray[np.uint8]:
    """RGBA (V, 4) of the seen points (K, 3) near each vertex, fading to grey where nothing was seen."""
    distance, which = Neighbours(seen).nearest(mesh.vertices, 3)
    share = 1 / np.maximum(distance, 1e-3 * reach)
    blended = (share[..., None] * colors[which]).sum(axis=1) / share.sum(axis=1, keepdims=True)
    known = np.clip(2 - distance[:, :1] / (2 * reach), 0, 1)
    rgba = np.full((len(mesh.vertices), 4), 255, np.uint8)
    rgba[:, :3] = known * blended + (1 - known) * UNSEEN_COLOR
    return rgba
