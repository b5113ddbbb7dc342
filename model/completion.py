"""The recipe of a completion: observe → fit → mesh → back to the scan's frame."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from model.checkpoint import Checkpoint
from model.field import DecodedField, Field
from model.fitting import Effort, Fit, Fitter
from model.latent import FitSettings
from model.mesh import Mesh
from model.observation import Observation, RowWeights, UnusableScan, View, observe
from model.placement import FREEDOM
from model.report import CompletionReport, report_of
from model.surface import Extraction, NoSurface, extract_surface

Array = NDArray[np.float64]
Phase = Literal["observe", "fit", "mesh"]
_PHASE_STARTS: dict[Phase, tuple[float, float]] = {
    "observe": (0.0, 0.05),
    "fit": (0.05, 0.85),
    "mesh": (0.85, 1.0),
}


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
class Completion:
    """A completed mesh in the scan's frame and unit, and its report."""

    mesh: Mesh
    report: CompletionReport
    alternatives: list[Mesh] = field(default_factory=list)


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
        self.fitter = Fitter(
            checkpoint, settings or FitSettings(), weights or RowWeights(), effort or Effort()
        )

    def complete(
        self,
        views: View | Sequence[View],
        *,
        pose: str = "upright",
        up: str | ArrayLike = "+y",
        solver: str = "lm",
        remove_plane: bool = False,
        resolution: int = 128,
        start: ArrayLike | None = None,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> Completion:
        """Complete a partial scan of one view or several, in any place and size.

        `pose` says what else is unknown: "canonical" nothing (once `up`, an axis or a vector of the
        scan, points up, the shape faces +z), "upright" the turn about the vertical, "free" every turn.
        `start` (L,) is a latent code to try first, as the report of an earlier completion has it. The
        mesh comes back in the scan's frame and unit, closed. `on_step` is called after every step;
        what it raises goes through.
        Raises CompletionError with the codes `unusable_scan`, `no_surface` and `invalid_option`.
        """
        clock = _Clock(on_step)
        observation = _observed(views, up, remove_plane, seed)
        clock.report("observe", 1, 1)
        fit = self.fit(observation, pose, solver, seed, start, clock)
        extraction = self.mesh(self.field(fit), resolution, clock)
        clock.report("mesh", 1, 1, fit.best.residual)
        to_canonical = fit.best.placement.after(observation.from_scan)
        mesh = extraction.mesh.moved(to_canonical.inverse())
        report = report_of(
            self.checkpoint, observation, fit, mesh, extraction.evaluations, solver, clock.seconds
        )
        return Completion(mesh, report)

    def fit(
        self,
        observation: Observation,
        pose: str = "canonical",
        solver: str = "lm",
        seed: int = 0,
        start: ArrayLike | None = None,
        clock: _Clock | None = None,
    ) -> Fit:
        """The MAP code and placement of an observation, by solver "lm" or "adam"."""
        clock = clock or _Clock(None)

        def tell(step: int, steps: int, residual: float | None) -> None:
            clock.report("fit", step, steps, residual)

        if pose not in FREEDOM:
            raise CompletionError("invalid_option", f"pose must be one of {', '.join(FREEDOM)}, not {pose!r}")
        if solver == "lm":
            return self.fitter.fit(observation, pose, seed, self._code(start), tell)
        if solver == "adam":
            return self.fitter.fit_adam(observation, pose, seed, tell)
        raise CompletionError("invalid_option", f"solver must be lm or adam, not {solver!r}")

    def _code(self, start: ArrayLike | None) -> torch.Tensor | None:
        if start is None:
            return None
        codes = self.checkpoint.codes
        code = torch.as_tensor(np.asarray(start, dtype=np.float32), device=codes.device)
        if code.shape != codes.shape[1:] or not bool(code.isfinite().all()):
            raise CompletionError("invalid_option", f"start must be {codes.shape[1]} finite numbers")
        return code

    def field(self, fit: Fit) -> Field:
        """The fitted shape as a field in the canonical frame."""
        return DecodedField(self.checkpoint.decoder, fit.best.code, self.checkpoint.lipschitz)

    def mesh(self, shape: Field, resolution: int, clock: _Clock | None = None) -> Extraction:
        """The surface of a field in the canonical frame. Raises CompletionError `no_surface`."""
        clock = clock or _Clock(None)

        def on_chunk() -> None:
            clock.report("mesh", 0, 1)

        try:
            return extract_surface(shape, resolution, self.checkpoint.skin, on_chunk=on_chunk)
        except NoSurface as error:
            detail = f"the fitted shape is empty ({error}): check the scan's up axis, or try another model"
            raise CompletionError("no_surface", detail) from error


def _observed(
    views: View | Sequence[View], up: str | ArrayLike, remove_plane: bool, seed: int
) -> Observation:
    try:
        return observe(views, up=up, remove_plane=remove_plane, seed=seed)
    except UnusableScan as error:
        raise CompletionError("unusable_scan", str(error)) from error
    except ValueError as error:
        raise CompletionError("invalid_option", str(error)) from error
