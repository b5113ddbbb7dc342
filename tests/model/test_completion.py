"""Completions of half-seen spheres and boxes, against the whole solid that they were cut from."""

from __future__ import annotations

import functools
import inspect
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import trimesh
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from shapes import SignedDistance, ball_points, box, gradient, sphere, surface_points

from model.checkpoint import load_checkpoint
from model.completion import Completer, Completion, CompletionError, Progress
from model.frame import UP_AXES, upright
from model.mesh import to_trimesh

SCALE, PLACE = 200.0, np.array([10.0, 500.0, 3.0])
SOLIDS = {"sphere": sphere(0.7), "box": box(0.42, 0.55, 0.5)}


@dataclass(frozen=True)
class HalfSeen:
    """What a sensor in front of and above a solid measured, in canonical units."""

    points: np.ndarray
    viewpoint: np.ndarray
    background: np.ndarray


@functools.cache
def half_seen(solid: SignedDistance, count: int = 3000, seed: int = 0) -> HalfSeen:
    """The part of a convex solid that the sensor sees, and the rays that pass it."""
    rng = np.random.default_rng(seed)
    eye = np.array([0.6, 0.9, 2.6])
    points = surface_points(solid, count, rng)
    points = points[np.einsum("ij,ij->i", gradient(solid, points), eye - points) > 0]
    rays = ball_points(400, rng) * 1.3 - eye
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    along = np.linspace(1, 4.5, 300)[:, None, None]
    nearest = np.min([solid(eye + step * rays) for step in along], axis=0)
    return HalfSeen(points, eye, rays[nearest > 0.02])


@pytest.fixture(scope="module")
def completer(tiny_checkpoint: Path) -> Completer:
    """The tiny model's."""
    return Completer(load_checkpoint(tiny_checkpoint, "cpu"))


@functools.cache
def usual(completer: Completer, name: str) -> Completion:
    """The completion of a half-seen solid with the usual options."""
    return complete(completer, half_seen(SOLIDS[name]))


def complete(completer: Completer, seen: HalfSeen, **options: object) -> Completion:
    """Complete a scan that is 200 times as large and far off."""
    return completer.complete(
        seen.points * SCALE + PLACE,
        viewpoint=seen.viewpoint * SCALE + PLACE,
        background=seen.background,
        **{"resolution": 64, **options},
    )


def misfit(completion: Completion, solid: SignedDistance) -> np.ndarray:
    """Distances of the vertices to the true solid, canonical units."""
    return np.abs(solid((completion.mesh.vertices.astype(float) - PLACE) / SCALE))


@pytest.mark.parametrize("name", SOLIDS)
def test_the_unseen_half_is_where_the_true_solid_has_it(name: str, completer: Completer) -> None:
    completion, solid = usual(completer, name), SOLIDS[name]
    error = misfit(completion, solid)
    assert error.mean() < 0.03
    assert np.quantile(error, 0.99) < 0.09
    # And all of the solid is there, not only what was seen.
    whole = surface_points(solid, 500, np.random.default_rng(5)) * SCALE + PLACE
    distance, _ = cKDTree(completion.mesh.vertices).query(whole)
    assert distance.mean() < 0.03 * SCALE and distance.max() < 0.15 * SCALE


@pytest.mark.parametrize("name", SOLIDS)
def test_the_mesh_is_closed_and_turned_outward_in_the_scans_frame(name: str, completer: Completer) -> None:
    completion = usual(completer, name)
    mesh = to_trimesh(completion.mesh)
    exact = {"sphere": 4 / 3 * np.pi * 0.7**3, "box": 8 * 0.42 * 0.55 * 0.5}[name]
    assert mesh.is_watertight and mesh.is_winding_consistent
    assert completion.report.watertight
    # Vertices are float32, fine to 3e-5 of a scan at 500.
    assert np.isclose(mesh.volume, exact * SCALE**3, rtol=0.15)
    face_normals = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).vertex_normals
    assert np.median(np.einsum("ij,ij->i", face_normals, completion.mesh.normals)) > 0.98


def test_points_alone_are_enough_for_a_whole_scan(completer: Completer) -> None:
    points = surface_points(SOLIDS["sphere"], 1500, np.random.default_rng(0))
    completion = completer.complete(points * SCALE + PLACE, resolution=64)
    assert misfit(completion, SOLIDS["sphere"]).mean() < 0.03


def test_normals_of_the_file_take_the_place_of_a_viewpoint(completer: Completer) -> None:
    points = half_seen(SOLIDS["box"]).points
    normals = gradient(SOLIDS["box"], points)
    completion = completer.complete(points * SCALE + PLACE, normals=normals, resolution=64)
    error = misfit(completion, SOLIDS["box"])
    assert error.mean() < 0.1


def assert_same_surface(one: np.ndarray, other: np.ndarray, size: float, tolerance: float = 0.01) -> None:
    """Vertices of one mesh lie near those of the other, measured in shares of the scan's size."""
    to_one, to_other = (cKDTree(a).query(b)[0] for a, b in ((one, other), (other, one)))
    assert max(np.quantile(to_one, 0.99), np.quantile(to_other, 0.99)) < (tolerance + 0.03) * size
    assert np.allclose(one.mean(axis=0), other.mean(axis=0), atol=tolerance * size)
    assert np.allclose(np.ptp(one, axis=0), np.ptp(other, axis=0), atol=2 * tolerance * size)


@pytest.fixture(scope="module")
def plain(completer: Completer) -> Completion:
    """The completion of a half-seen box where it is."""
    seen = half_seen(SOLIDS["box"])
    return completer.complete(
        seen.points, viewpoint=seen.viewpoint, background=seen.background, resolution=48
    )


@pytest.mark.parametrize(
    ("scale", "move"), [(1000.0, [0, 0, 0]), (0.01, [5.0, -3.0, 2.0]), (1.0, [900.0, 0, 0])]
)
def test_a_scaled_and_moved_scan_is_completed_to_a_scaled_and_moved_mesh(
    scale: float, move: list[float], completer: Completer, plain: Completion
) -> None:
    seen = half_seen(SOLIDS["box"])
    other = completer.complete(
        scale * seen.points + move,
        viewpoint=scale * seen.viewpoint + move,
        background=seen.background,
        resolution=48,
    )
    assert_same_surface(scale * plain.mesh.vertices.astype(float) + move, other.mesh.vertices, scale)
    # The report's figures in the scan's unit scale along; those in radii of the scan do not.
    assert np.isclose(other.report.residual, plain.report.residual, rtol=0.1)
    assert np.isclose(
        other.report.residual_in_scan_unit, scale * plain.report.residual_in_scan_unit, rtol=0.1
    )


@pytest.mark.parametrize("up", UP_AXES)
def test_another_up_axis_is_a_turned_scan(up: str, completer: Completer, plain: Completion) -> None:
    turn, seen = upright(up).T, half_seen(SOLIDS["box"])
    turned = completer.complete(
        seen.points @ turn.T,
        viewpoint=turn @ seen.viewpoint,
        background=seen.background @ turn.T,
        up=up,
        resolution=48,
    )
    assert_same_surface(plain.mesh.vertices @ turn.T, turned.mesh.vertices, 1.0)


def test_a_wrong_up_axis_is_no_equivalent(completer: Completer) -> None:
    """The check of the check above: a flat box lies otherwise when its up axis is another."""
    flat = half_seen(box(0.5, 0.3, 0.5))
    turn = Rotation.from_euler("x", 90, degrees=True).as_matrix()
    right = completer.complete(flat.points, viewpoint=flat.viewpoint, resolution=48)
    wrong = completer.complete(flat.points @ turn.T, viewpoint=turn @ flat.viewpoint, resolution=48)
    with pytest.raises(AssertionError):
        assert_same_surface(right.mesh.vertices @ turn.T, wrong.mesh.vertices, 1.0)


def test_scan_to_canonical_leads_to_the_models_own_frame(completer: Completer) -> None:
    completion = usual(completer, "sphere")
    way = np.array(completion.report.scan_to_canonical)
    canonical = completion.mesh.vertices @ way[:3, :3].T + way[:3, 3]
    assert np.abs(canonical).max() < 1.05
    assert np.abs(canonical.mean(axis=0)).max() < 0.1


def test_the_same_seed_gives_the_same_mesh(completer: Completer) -> None:
    one, same = usual(completer, "box").mesh, complete(completer, half_seen(SOLIDS["box"])).mesh
    assert np.array_equal(one.vertices, same.vertices) and np.array_equal(one.faces, same.faces)


def test_a_finer_grid_gives_more_triangles_of_the_same_surface(completer: Completer) -> None:
    seen = half_seen(SOLIDS["sphere"])
    coarse, fine = (complete(completer, seen, resolution=resolution) for resolution in (32, 80))
    assert fine.report.faces > 5 * coarse.report.faces
    assert np.allclose(*(np.ptp(c.mesh.vertices, axis=0) for c in (coarse, fine)), atol=0.02 * SCALE)


def test_the_published_recipe_takes_its_800_steps_to_a_closed_mesh(completer: Completer) -> None:
    """How near it comes is not asked: it neither places the scan nor leaves a start that is far off."""
    told: list[Progress] = []
    completion = complete(completer, half_seen(SOLIDS["box"], 300), solver="adam", on_step=told.append)
    assert (completion.report.solver, completion.report.steps) == ("adam", 800)
    assert to_trimesh(completion.mesh).is_watertight
    assert misfit(completion, SOLIDS["box"]).max() < 0.5
    assert_goes_forward(told)


def test_progress_goes_forward_from_phase_to_phase(completer: Completer) -> None:
    told: list[Progress] = []
    complete(completer, half_seen(SOLIDS["box"]), on_step=told.append)
    assert_goes_forward(told)
    residuals = [step.residual for step in told if step.phase == "fit" and step.step > 0]
    assert len(residuals) > 3
    assert all(residual is not None and 0 <= residual < 1 for residual in residuals)


def assert_goes_forward(told: list[Progress]) -> None:
    fractions = [step.fraction for step in told]
    assert min(fractions) >= 0 and fractions[-1] == 1
    assert (np.diff(fractions) >= 0).all()
    phases = list(dict.fromkeys(step.phase for step in told))
    assert phases == ["observe", "fit", "mesh"]


@pytest.mark.parametrize("phase", ["observe", "fit", "mesh"])
def test_what_on_step_raises_comes_out_as_it_is(phase: str, completer: Completer) -> None:
    class Stop(Exception):
        pass

    stop = Stop()

    def on_step(progress: Progress) -> None:
        if progress.phase == phase:
            raise stop

    with pytest.raises(Stop) as raised:
        complete(completer, half_seen(SOLIDS["sphere"]), on_step=on_step)
    assert raised.value is stop


@pytest.mark.parametrize(
    ("points", "options", "code"),
    [
        (np.zeros((10, 3)), {}, "unusable_scan"),
        (np.ones((1000, 3)), {}, "unusable_scan"),
        (np.full((1000, 3), np.nan), {}, "unusable_scan"),
        (half_seen(SOLIDS["sphere"]).points, {"solver": "newton"}, "unknown_solver"),
    ],
    ids=["too few", "coincident", "not a number", "unknown solver"],
)
def test_an_expected_ending_has_its_code_and_says_why(
    points: np.ndarray, options: dict, code: str, completer: Completer
) -> None:
    with pytest.raises(CompletionError) as raised:
        completer.complete(points, **options)
    assert raised.value.code == code
    assert len(raised.value.detail) > 20 and str(raised.value) == raised.value.detail


def test_the_report_is_json_and_counts_the_mesh(completer: Completer) -> None:
    completion = usual(completer, "box")
    report = completion.report
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False)) == report.to_dict()
    assert (report.vertices, report.faces) == (len(completion.mesh.vertices), len(completion.mesh.faces))
    assert report.model == "tiny"
    assert report.nearest_shape in completer.checkpoint.shapes
    assert set(report.seconds) == {"observe", "fit", "mesh"}
    assert min(report.seconds.values()) >= 0


def test_the_residual_is_the_misfit_to_what_was_seen(completer: Completer) -> None:
    """In the scan's unit, and of the size of the distance between the scan and the mesh."""
    seen = half_seen(SOLIDS["sphere"])
    report = usual(completer, "sphere").report
    assert 0 < report.residual_in_scan_unit < 0.02 * SCALE
    radius = np.linalg.norm(np.ptp(seen.points, axis=0)) / 2
    assert np.isclose(report.residual_in_scan_unit, report.residual * radius * SCALE, rtol=0.05)


def test_options_are_keywords_with_defaults() -> None:
    """So that the service can pass its validated options on as they are."""
    parameters = inspect.signature(Completer.complete).parameters
    options = {name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}
    assert options == {"up", "solver", "resolution", "seed", "on_step"}
    assert all(parameters[name].default is not inspect.Parameter.empty for name in options)
