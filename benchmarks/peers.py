"""The same held-out partial scans through other methods: who comes nearest to the true shape, and how soon.

Each scan is a single view with noise of 1 % of the shape's radius along the rays, somewhere:
`benchmarks.held_out`. Of every method's mesh are measured the Chamfer distance (×10³, unit ball), the
completeness (share of the true surface within 0.01 of it), and how far the observed points are from it,
divided by the noise: 1 is as far as they are from the true surface where it faces the sensor, much more is a
mesh that ignores them, much less one that follows their noise. Seconds are those of one process with one
thread, from scan to mesh, others running beside it.

| method | what it is |
|---|---|
| ours | `Completer.complete` as it is served |
| ours, not refined | the same with `refine=False`: the decoder's shape alone |
| Adam recipe | `solver="adam"`, the published recipe, which knows no placement: given our best start's |
| nearest training shape | the decoded training shape whose placed fit is best, placed as ours is |
| Screened Poisson | of the scan's points, cleaned and with normals as for ours; octree depth 8 (pymeshlab) |
| Screened Poisson, trimmed | without the faces whose point density is 1.5 octree levels below its median |

The true shape stands below for comparison: what its observed points and a second sample of it measure.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from math import nan
from time import perf_counter

import numpy as np
import trimesh
from numpy.typing import NDArray

from benchmarks import common
from benchmarks.held_out import (
    Noise,
    Scan,
    Setup,
    Subject,
    add_options,
    compared,
    completed,
    mean_of_finite,
    setup,
    subjects,
    thousandfold_chamfer,
    work_through,
)
from model.frame import BALL_RADIUS
from model.mesh import Mesh, to_trimesh
from model.metrics import Comparison, compare, distances_to_surface
from model.observation import observe
from model.surface import NoSurface, extract_surface
from model.training.evaluate.methods import placed_only

Array = NDArray[np.float64]

NOISE = Noise(along_rays=0.01)
GOAL_DISTANCE = 1.5  # times the noise
OURS, UNREFINED, ADAM, RETRIEVAL = "ours", "ours, not refined", "Adam recipe", "nearest training shape"
POISSON, TRIMMED, TRUTH = "Screened Poisson", "Screened Poisson, trimmed", "true shape"
OCTREE_DEPTH, TRIMMED_LEVELS = 8, 1.5  # the best of depths 6 to 8 and levels 0.5 to 3 on the split val

Method = Callable[[Setup, Scan, str], Mesh | None]


@dataclass(frozen=True)
class Met:
    """What one method made of one scan."""

    shape: str
    view: int
    method: str
    comparison: Comparison
    distance_median: float  # from observed points to the mesh, in standard deviations of the noise
    distance_rms: float
    seconds: float


@dataclass(frozen=True)
class Line:
    """One method over all scans. Chamfer distances ×10³ in the unit ball; distances and seconds as in `Met`.

    Medians over the scans, but for `cd_mean`, `completeness` and `accuracy`, which are means.
    """

    method: str
    cd: float
    cd_mean: float
    completeness: float
    accuracy: float
    distance_median: float
    distance_rms: float
    seconds: float
    failed: int
    note: str = ""


# The methods: a scan in, a mesh in its frame out


def ours(setup: Setup, scan: Scan, pose: str) -> Mesh | None:
    """The completion that is served."""
    return _mesh(setup, scan, pose=pose, refine=True)


def not_refined(setup: Setup, scan: Scan, pose: str) -> Mesh | None:
    """Code and placement alone."""
    return _mesh(setup, scan, pose=pose, refine=False)


def adam_recipe(setup: Setup, scan: Scan, pose: str) -> Mesh | None:
    """DeepSDF's own optimiser."""
    return _mesh(setup, scan, pose=pose, refine=False, solver="adam")


def _mesh(setup: Setup, scan: Scan, **options: object) -> Mesh | None:
    completion = completed(setup, scan, **options)
    return None if completion is None else completion.mesh


def nearest_training_shape(setup: Setup, scan: Scan, pose: str) -> Mesh | None:
    """The best of the training shapes, as it is."""
    completer = setup.completer()
    checkpoint = completer.checkpoint
    observation = observe(scan.view)
    best = placed_only(completer, observation, checkpoint.starts, pose).best
    try:
        mesh = extract_surface(checkpoint.field(best.code), setup.resolution, checkpoint.skin).mesh
    except NoSurface:
        return None
    return mesh.moved(best.placement.after(observation.from_scan).inverse())


def screened_poisson(setup: Setup, scan: Scan, pose: str) -> Mesh | None:
    """The closed surface of Kazhdan and Hoppe 2013, as it comes."""
    return _poisson(scan)[0]


def trimmed_poisson(setup: Setup, scan: Scan, pose: str) -> Mesh | None:
    """The same without the faces that few points speak for: the usual cure for its bubbles."""
    mesh, density = _poisson(scan)
    kept = density > np.median(density) - TRIMMED_LEVELS
    faces = mesh.faces[kept[mesh.faces].all(axis=1)]
    return Mesh(mesh.vertices, faces) if len(faces) else None


def _poisson(scan: Scan) -> tuple[Mesh, Array]:
    """Mesh in the scan's frame, and at each vertex (V,) the octree level at which a node holds one point."""
    import pymeshlab

    observation = observe(scan.view)
    known = np.isfinite(observation.normals).all(axis=1)
    meshes = pymeshlab.MeshSet(verbose=False)
    meshes.add_mesh(
        pymeshlab.Mesh(vertex_matrix=observation.surface[known], v_normals_matrix=observation.normals[known])
    )
    meshes.generate_surface_reconstruction_screened_poisson(depth=OCTREE_DEPTH, threads=1)
    made = meshes.current_mesh()
    mesh = Mesh(made.vertex_matrix().astype(np.float32), made.face_matrix().astype(np.int32))
    return mesh.moved(observation.from_scan.inverse()), made.vertex_scalar_array()


METHODS: dict[str, Method] = {
    OURS: ours,
    UNREFINED: not_refined,
    ADAM: adam_recipe,
    RETRIEVAL: nearest_training_shape,
    POISSON: screened_poisson,
    TRIMMED: trimmed_poisson,
}
NEEDED = {POISSON: "pymeshlab", TRIMMED: "pymeshlab"}
"""Packages of the extra `bench`."""


def installed(method: str) -> bool:
    """Whether what the method needs can be imported."""
    return method not in NEEDED or find_spec(NEEDED[method]) is not None


# Measuring


def met(setup: Setup, task: tuple[Subject, str, Sequence[str]]) -> list[Met]:
    """What the methods named make of one scan in a pose mode, and what the true shape measures."""
    subject, pose, names = task
    scan = subject.scan(setup.data).known_as(pose)
    setup.completer()  # loading it is nobody's time
    return [_met(setup, scan, pose, name) for name in names] + [_of_truth(scan)]


def _met(setup: Setup, scan: Scan, pose: str, name: str) -> Met:
    start = perf_counter()
    mesh = METHODS[name](setup, scan, pose)
    seconds = perf_counter() - start
    in_ball = None if mesh is None else to_trimesh(mesh.moved(scan.to_scan.inverse()))
    return Met(scan.shape, scan.number, name, compared(mesh, scan), *_distances(in_ball, scan), seconds)


def _of_truth(scan: Scan) -> Met:
    comparison = compare(scan.true, scan.true)
    return Met(scan.shape, scan.number, TRUTH, comparison, *_distances(scan.true, scan), 0.0)


def _distances(mesh: trimesh.Trimesh | None, scan: Scan) -> tuple[float, float]:
    """Median and root mean square of the observed points' distances to a mesh in the unit ball, over σ."""
    if mesh is None:
        return np.inf, np.inf
    sigma = NOISE.along_rays * BALL_RADIUS
    distances = distances_to_surface(scan.points_in_ball(), mesh) / sigma
    return float(np.median(distances)), float(np.sqrt(np.mean(distances**2)))


def line_of(name: str, some: Sequence[Met]) -> Line:
    """What is said of one method; nothing but why if it was not tried."""
    if not some:
        why = "left out" if installed(name) else f"not installed: {NEEDED[name]}"
        return Line(name, nan, nan, nan, nan, nan, nan, nan, failed=0, note=why)
    chamfer = thousandfold_chamfer(one.comparison for one in some)
    return Line(
        name,
        cd=float(np.median(chamfer)),
        cd_mean=mean_of_finite(chamfer),
        completeness=float(np.mean([one.comparison.completeness for one in some])),
        accuracy=mean_of_finite(one.comparison.accuracy for one in some),
        distance_median=float(np.median([one.distance_median for one in some])),
        distance_rms=float(np.median([one.distance_rms for one in some])),
        seconds=float(np.median([one.seconds for one in some])),
        failed=int(np.isinf(chamfer).sum()),
    )


def main(arguments: Iterable[str] | None = None) -> int:
    """Run the benchmark; exit status 1 if ours is not first or strays from the scan, which --quick may."""
    parser = common.parser(__doc__, "one view of one shape, a coarse mesh, no Adam: an impression")
    add_options(parser, views=4)
    parser.add_argument("--pose", choices=["upright", "canonical"], default="upright", help="what is known")
    others = [name for name in METHODS if name != OURS]
    parser.add_argument("--without", nargs="+", choices=others, default=[], help="methods to leave out")
    options = parser.parse_args(None if arguments is None else list(arguments))
    left_out = {*options.without, *([ADAM] if options.quick else [])}
    names = [name for name in METHODS if installed(name) and name not in left_out]
    todo = [(one, options.pose, names) for one in subjects(options, NOISE)]
    results = [one for some in work_through(met, todo, setup(options), options.jobs) for one in some]
    lines = [line_of(name, [one for one in results if one.method == name]) for name in [*METHODS, TRUTH]]
    verdicts, ratio, best = judged(lines)
    print("\n".join(f"{claim}: {'yes' if holds else 'no'}" for claim, holds in verdicts.items()))
    unit = f"times smaller Chamfer distance than the best peer ({best})"
    scans = [asdict(one) for one in results]
    common.tell(options, "peers", ratio, unit, lines, verdicts=verdicts, pose=options.pose, scans=scans)
    return 0 if options.quick or all(verdicts.values()) else 1


def judged(lines: Sequence[Line]) -> tuple[dict[str, bool], float, str]:
    """Each claim and whether it holds; the best peer's median Chamfer distance over ours, and its name."""
    by_name = {line.method: line for line in lines}
    mine = by_name[OURS]
    peers = [line for name, line in by_name.items() if name not in (OURS, UNREFINED, TRUTH) and not line.note]
    best = min(peers, key=lambda line: line.cd)
    verdicts = {
        "ours first in median Chamfer distance": all(mine.cd < peer.cd for peer in peers),
        "ours first in mean Chamfer distance": all(mine.cd_mean < peer.cd_mean for peer in peers),
        "ours first in completeness": all(mine.completeness > peer.completeness for peer in peers),
        f"observed points within {GOAL_DISTANCE} of the noise (root mean square)": (
            mine.distance_rms <= GOAL_DISTANCE
        ),
    }
    return verdicts, best.cd / mine.cd, best.method


if __name__ == "__main__":
    sys.exit(main())
