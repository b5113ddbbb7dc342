"""What was done and how well it agrees with the scan: the report of a completion."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from model.checkpoint import Checkpoint
from model.fitting import Fit
from model.mesh import Mesh, to_trimesh
from model.observation import Observation


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


def report_of(
    checkpoint: Checkpoint,
    observation: Observation,
    fit: Fit,
    mesh: Mesh,
    evaluations: int,
    solver: str,
    seconds: dict[str, float],
) -> CompletionReport:
    """The report of a completion with its mesh in the scan's frame."""
    nearest = int((checkpoint.codes - fit.best.code).norm(dim=1).argmin())
    return CompletionReport(
        model=checkpoint.name,
        solver=solver,
        steps=fit.steps,
        residual=fit.best.residual,
        residual_in_scan_unit=fit.best.residual / observation.from_scan.scale,
        code_distance=float(checkpoint.prior.distance(fit.best.code.unsqueeze(0))[0]),
        nearest_shape=checkpoint.shapes[nearest],
        scan_to_canonical=fit.best.placement.after(observation.from_scan).matrix().tolist(),
        points_used=len(observation.surface),
        evaluations=evaluations,
        vertices=len(mesh.vertices),
        faces=len(mesh.faces),
        watertight=bool(to_trimesh(mesh).is_watertight),
        seconds={phase: round(spent, 3) for phase, spent in seconds.items()},
    )
