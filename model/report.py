"""The report of a completion: what was done, how well it agrees with the scan, and a verdict in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.checkpoint import Checkpoint
from model.codes import NearShape, nearest_shapes
from model.correction import Shape
from model.fitting import Candidate, Fit
from model.frame import Similarity
from model.latent import residuals
from model.mesh import Mesh, is_closed, parts_of, volume_of
from model.observation import Observation
from model.problems import KINDS, SURFACE
from model.proximity import nearest_here
from model.streams import device_here, here
from model.uncertainty import Posterior

Array = NDArray[np.float64]

FAR_SHARE, FAR_SHARE_POOR = 0.05, 0.12
"""Share of observed points farther than 3η from the shape of the code above which a fit is fair, or poor."""

UNUSUAL_CODE, STRANGE_CODE = 3.0, 5.0
"""Distance of a code to the training codes above which it is unusual, or no longer to be trusted."""

SMALL_PART, TINY_PART = 0.5, 0.3
"""Radius of the scan in the canonical frame below which little of the shape was seen, or hardly any."""

MISSED_SHARE = 0.2
"""Share of observed points farther than η from the finished mesh above which it does not show the scan."""

AMBIGUITY = 1.1
"""A runner-up whose objective is within this factor of the winner's fits about as well."""

TURNED = 20.0
"""Degrees between two placements above which they are told as different."""

FLATTEST = 0.02
"""Slope of a field below which it says no more of distance."""

COMPARED = 500
"""Vertices by which two shapes are compared."""


@dataclass(frozen=True)
class ResidualStatistics:
    """Misfit of the final field to one kind of constraint, in the scan's unit; 0 where it holds."""

    count: int
    mean: float
    rms: float
    quantile_90: float
    violated: float  # share whose misfit exceeds η


@dataclass(frozen=True)
class Hypothesis:
    """Another way in which the scan may lie in a shape, as far as it was followed."""

    scan_to_canonical: list[list[float]]  # (4, 4)
    objective: float
    residual_in_scan_unit: float
    turned: float  # degrees from the winner's rotation


@dataclass(frozen=True)
class CompletionReport:
    """What was done and how well the result agrees with the scan. Lengths are in the scan's unit."""

    model: str
    checkpoint_digest: str  # SHA-256 of the decoder's weights
    solver: str
    pose: str
    refined: bool
    verdict: str  # in words, for people
    grade: str  # good, fair or poor
    steps: int
    trace: list[dict[str, float]]
    objective: float
    residual: float  # mean misfit of the fitted code to what was observed, in radii of the scan
    residual_in_scan_unit: float
    residuals: dict[str, ResidualStatistics]  # of the final field, by kind of constraint
    noise: float  # standard deviation of the points along the normal, as they were fitted
    eta: float  # η
    observed_within_eta: float  # share of observed points within η of the mesh
    observed_far: float  # share farther than 3η from the shape of the code alone
    observed_distance_rms: float  # from observed points to the mesh
    code: list[float]
    code_distance: float  # squared Mahalanobis distance a dimension to the training codes; about 1 is usual
    nearest_shape: str  # training shape with the nearest code
    nearest_shapes: list[NearShape]
    center: list[float]  # (3,) of the completed object's bounding box along its own axes
    radius: float  # from there to its farthest point
    size: list[float]  # (3,) width, height and depth of the box
    scan_to_canonical: list[list[float]]  # (4, 4); the code's shape fills the unit ball there only about
    placement_covariance: list[list[float]]  # (7, 7) log scale, translation, rotation vector; canonical units
    placement_deviation: dict[str, float]  # scale (relative), translation, rotation (degrees)
    hypotheses: list[Hypothesis]
    points_used: int
    points_removed: dict[str, int]
    evaluations: int  # of the field, for the surface
    vertices: int
    faces: int
    parts: int  # connected ones, crumbs aside
    watertight: bool
    volume: float  # cubic units of the scan
    deviation_median: float  # of the surface along its normal, over the mesh
    seconds: dict[str, float] = field(default_factory=dict)  # spent in each phase

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Finished:
    """All that a report looks at."""

    checkpoint: Checkpoint
    observation: Observation
    fit: Fit
    shape: Shape
    posterior: Posterior
    eta: float  # canonical units
    mesh: Mesh  # scan's frame
    evaluations: int
    solver: str
    pose: str


def report_of(done: Finished) -> CompletionReport:
    """The report of a completion; what time it took is not known yet."""
    checkpoint, fit, observation = done.checkpoint, done.fit, done.observation
    from_scan, scale = observation.from_scan, fit.best.placement.scale * observation.from_scan.scale
    within, rms = _seen_beside_mesh(done, done.eta / scale)
    far = _far_from_code(done)
    near = nearest_shapes(checkpoint, fit.best.code)
    code_distance = float(checkpoint.prior.distance(fit.best.code.unsqueeze(0))[0])
    hypotheses = [_hypothesis(one, fit.best, from_scan) for one in fit.runners_up]
    others = [one for one, elsewhere in zip(hypotheses, _elsewhere(done), strict=True) if elsewhere]
    category = checkpoint.card.get("category", "shape")
    parts = parts_of(done.mesh)
    grade, verdict = judge(category, far, within, code_distance, parts, fit.best, others)
    deviation = done.mesh.deviation
    to_canonical = fit.best.placement.after(from_scan)
    center, radius, size = _extent(done.mesh, to_canonical.rotation)
    return CompletionReport(
        model=checkpoint.name,
        checkpoint_digest=checkpoint.digest,
        solver=done.solver,
        pose=done.pose,
        refined=done.shape.correction is not None,
        verdict=verdict,
        grade=grade,
        steps=fit.steps,
        trace=[asdict(step) for step in fit.trace],
        objective=fit.best.objective,
        residual=fit.best.residual,
        residual_in_scan_unit=fit.best.residual / from_scan.scale,
        residuals=_statistics(done, scale),
        noise=observation.noise / from_scan.scale,
        eta=done.eta / scale,
        observed_within_eta=within,
        observed_far=far,
        observed_distance_rms=rms,
        code=fit.best.code.tolist(),
        code_distance=code_distance,
        nearest_shape=near[0].shape,
        nearest_shapes=near,
        center=center.tolist(),
        radius=radius,
        size=size.tolist(),
        scan_to_canonical=to_canonical.matrix().tolist(),
        placement_covariance=done.posterior.of_placement.tolist(),
        placement_deviation=_placement_deviation(done.posterior, scale),
        hypotheses=hypotheses,
        points_used=len(observation.surface),
        points_removed=observation.removed,
        evaluations=done.evaluations,
        vertices=len(done.mesh.vertices),
        faces=len(done.mesh.faces),
        parts=parts,
        watertight=is_closed(done.mesh),
        volume=volume_of(done.mesh),
        deviation_median=0.0 if deviation is None else float(np.median(deviation)),
    )


def judge(
    category: str,
    far: float,
    within: float,
    code_distance: float,
    parts: int,
    best: Candidate,
    others: list[Hypothesis],
) -> tuple[str, str]:
    """Grade (good, fair, poor) and verdict of a fit, in words that say what to look at.

    `others` are hypotheses whose surface lies elsewhere: of a round stool every turn is as good.
    """
    doubts: list[tuple[bool, str]] = []  # whether it makes the fit poor, and the words
    if far > FAR_SHARE:
        told = f"{far:.0%} of the observed points are farther than 3η from the fitted shape"
        doubts.append((far > FAR_SHARE_POOR, f"{told}: is this a {category}, alone and whole?"))
    if within < 1 - MISSED_SHARE:
        told = f"the mesh passes within η of only {within:.0%} of the observed points"
        doubts.append((True, told))
    if (part := best.placement.scale) < SMALL_PART:
        told = f"the scan is taken for a part of {part:.0%} of the radius of the {category}"
        doubts.append((part < TINY_PART, f"{told}: is this a {category}?"))
    if code_distance > UNUSUAL_CODE:
        told = "the latent code is unlike those of the training shapes"
        told = f"{told} (distance {code_distance:.1f}, about 1 is usual)"
        doubts.append((code_distance > STRANGE_CODE, told))
    if parts > 1:
        doubts.append((False, f"the mesh is in {parts} parts: what joins them was not seen, and not made up"))
    rivals = [o for o in others if o.turned > TURNED and o.objective < AMBIGUITY * best.objective]
    if rivals:
        told = f"turned by {rivals[0].turned:.0f} degrees it fits about as well (see `hypotheses`)"
        doubts.append((False, told))
    if not doubts:
        return "good", "The fitted shape agrees with what was observed."
    doubts.sort(key=lambda doubt: not doubt[0])
    verdict = "; ".join(told for _, told in doubts)
    verdict = verdict[0].upper() + verdict[1:] + ("" if verdict.endswith("?") else ".")
    return ("poor" if doubts[0][0] else "fair"), verdict


def _extent(mesh: Mesh, axes: Array) -> tuple[Array, float, Array]:
    """Centre (3,) of the bounding box along the rows of `axes`, farthest vertex from it, box (3,)."""
    along = torch.from_numpy(mesh.vertices).to(device_here()).double() @ here(axes.T)
    low, high = along.aminmax(dim=0)
    middle = (low + high) / 2
    radius = (along - middle).norm(dim=1).amax()
    *box, farthest = torch.cat([middle, high - low, radius[None]]).tolist()
    return np.array(box[:3]) @ axes, farthest, np.array(box[3:])


def _hypothesis(one: Candidate, best: Candidate, from_scan: Similarity) -> Hypothesis:
    between = one.placement.rotation @ best.placement.rotation.T
    turned = np.degrees(np.arccos(np.clip((np.trace(between) - 1) / 2, -1, 1)))
    matrix = one.placement.after(from_scan).matrix().tolist()
    return Hypothesis(matrix, one.objective, one.residual / from_scan.scale, float(turned))


def _elsewhere(done: Finished) -> list[bool]:
    """Whether each runner-up's surface is another than the winner's: farther from it than η on average."""
    best, others = done.fit.best, done.fit.runners_up
    if not others:
        return []
    to_canonical = best.placement.after(done.observation.from_scan)
    vertices = to_canonical.apply(done.mesh.vertices[:: max(1, len(done.mesh.vertices) // COMPARED)])
    there = np.stack([one.placement.after(best.placement.inverse()).apply(vertices) for one in others])
    codes = torch.stack([one.code for one in others])
    points = torch.from_numpy(there).float().to(codes.device)
    value, gradient = done.checkpoint.decoder.distance_and_normals(codes, points)
    off = _distance_to_shape(value, gradient, done.checkpoint.skin).mean(dim=1)
    return (off > done.eta).tolist()


def _placement_deviation(posterior: Posterior, scale: float) -> dict[str, float]:
    std = posterior.of_placement.diagonal().clamp(min=0).sqrt().tolist()
    return {
        "scale": std[0],
        "translation": float(np.linalg.norm(std[1:4])) / scale,
        "rotation": float(np.degrees(np.linalg.norm(std[4:7]))),
    }


def _statistics(done: Finished, scale: float) -> dict[str, ResidualStatistics]:
    """Misfit of the final field to each kind of constraint."""
    rows, points = done.shape.rows, done.shape.points
    silent = rows.only_in_ball[0] & (points.norm(dim=1) > 1)
    missed = residuals(done.shape.field.distance(points)[None], rows)[0].abs() / scale
    kinds = torch.where(silent, -1, rows.kind[0]).cpu().numpy()
    by_row = missed.double().cpu().numpy()
    statistics = {}
    for kind, name in enumerate(KINDS):
        some = by_row[kinds == kind]
        if len(some):
            statistics[name] = ResidualStatistics(
                count=len(some),
                mean=float(some.mean()),
                rms=float(np.sqrt((some**2).mean())),
                quantile_90=float(np.quantile(some, 0.9)),
                violated=float((some > done.eta / scale).mean()),
            )
    return statistics


def _far_from_code(done: Finished) -> float:
    """Share of observed points farther than 3η from the shape of the code alone."""
    points = done.shape.points[done.shape.rows.kind[0] == SURFACE]
    off = _distance_to_shape(*done.shape.decoded.distance_and_gradient(points), done.checkpoint.skin)
    return float((off > 3 * done.eta).float().mean())


def _distance_to_shape(value: Tensor, gradient: Tensor, skin: float) -> Tensor:
    """Distances (…) to the surface, to first order, where a field has these values (…) and gradients (…, 3).

    The value alone says too little: it stops growing at the clamping distance, and that of a strange code
    is flat everywhere.
    """
    distance: Tensor = (value + skin).abs() / gradient.norm(dim=-1).clamp(min=FLATTEST)
    return distance


def _seen_beside_mesh(done: Finished, eta: float) -> tuple[float, float]:
    """Share of observed points within η of the mesh, and their root mean squared distance; scan's unit."""
    distance, _, _ = nearest_here(done.mesh.vertices, done.mesh.faces, done.observation.in_scan())
    within, rms = torch.stack([(distance < eta).double().mean(), distance.square().mean().sqrt()]).tolist()
    return within, rms
