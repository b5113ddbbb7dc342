"""Completions of half-seen spheres and boxes, against the whole solid that they were cut from."""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from seen import EYE, about_y, distances_to, half_seen, moved
from shapes import TINY_SOLIDS, SignedDistance, box, gradient, sphere, surface_points, torus
from torch import Tensor

from model.checkpoint import Checkpoint
from model.completion import UNSEEN_COLOR, Completer, Completion, CompletionError, Progress
from model.decoder import Decoder
from model.field import Field
from model.frame import UP_AXES, Similarity, upright
from model.mesh import deviation_colors, to_trimesh
from model.observation import View, observe

SCALE, PLACE = 200.0, np.array([10.0, 500.0, 3.0])
TO_SCAN = Similarity(SCALE, np.eye(3), PLACE)
SOLIDS = {"sphere": sphere(0.7), "box": box(0.42, 0.55, 0.5)}
TRAINED = TINY_SOLIDS["box_0.35_0.65"]  # whose depth the model knows from any side
TORUS = torus(0.6, 0.15)  # nothing that the tiny model has ever seen


@pytest.fixture(scope="module")
def completer(tiny: Checkpoint) -> Completer:
    """The tiny model's."""
    return Completer(tiny)


@functools.cache
def usual(completer: Completer, name: str) -> Completion:
    """The completion of a half-seen solid with the usual options."""
    return complete(completer, half_seen(SOLIDS[name]))


def complete(completer: Completer, seen: View, **options: object) -> Completion:
    """Complete a scan that is 200 times as large and far off."""
    return completer.complete(moved(seen, TO_SCAN), **{"pose": "canonical", "resolution": 48, **options})


def in_solid_frame(vertices: np.ndarray) -> np.ndarray:
    return TO_SCAN.inverse().apply(vertices.astype(float))


def misfit(completion: Completion, solid: SignedDistance, to_scan: Similarity = TO_SCAN) -> np.ndarray:
    """Distances of the vertices to the true solid, canonical units."""
    return np.abs(solid(to_scan.inverse().apply(completion.mesh.vertices.astype(float))))


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
    completion = completer.complete(View(points * SCALE + PLACE), resolution=48)
    assert misfit(completion, SOLIDS["sphere"]).mean() < 0.03


def test_normals_of_the_file_take_the_place_of_a_viewpoint(completer: Completer) -> None:
    points = half_seen(SOLIDS["box"]).points
    normals = gradient(SOLIDS["box"], points)
    completion = completer.complete(View(points * SCALE + PLACE, normals), resolution=48)
    error = misfit(completion, SOLIDS["box"])
    assert error.mean() < 0.1


def assert_same_surface(one: np.ndarray, other: np.ndarray, size: float, tolerance: float = 0.01) -> None:
    """Vertices of one mesh lie near those of the other, measured in shares of the scan's size."""
    one, other = one.astype(float), other.astype(float)
    to_one, to_other = (cKDTree(a).query(b)[0] for a, b in ((one, other), (other, one)))
    assert max(np.quantile(to_one, 0.99), np.quantile(to_other, 0.99)) < (tolerance + 0.03) * size
    assert np.allclose(one.mean(axis=0), other.mean(axis=0), atol=tolerance * size)
    assert np.allclose(np.ptp(one, axis=0), np.ptp(other, axis=0), atol=2 * tolerance * size)


@pytest.fixture(scope="module")
def plain(completer: Completer) -> Completion:
    """The completion of a half-seen box where it is, as its code has it."""
    return completer.complete(half_seen(SOLIDS["box"]), resolution=48, refine=False)


@pytest.mark.parametrize(
    ("scale", "move"), [(1000.0, [0, 0, 0]), (0.01, [5.0, -3.0, 2.0]), (1.0, [900.0, 0, 0])]
)
def test_a_scaled_and_moved_scan_is_completed_to_a_scaled_and_moved_mesh(
    scale: float, move: list[float], completer: Completer, plain: Completion
) -> None:
    away = Similarity(scale, np.eye(3), np.array(move, dtype=float))
    other = completer.complete(moved(half_seen(SOLIDS["box"]), away), resolution=48, refine=False)
    assert_same_surface(away.apply(plain.mesh.vertices), other.mesh.vertices, scale)
    # The report's figures in the scan's unit scale along; those in radii of the scan do not.
    assert np.isclose(other.report.residual, plain.report.residual, rtol=0.1)
    assert np.isclose(
        other.report.residual_in_scan_unit, scale * plain.report.residual_in_scan_unit, rtol=0.1
    )
    assert np.isclose(np.median(other.mesh.deviation), scale * np.median(plain.mesh.deviation), rtol=0.1)


@pytest.mark.parametrize("up", UP_AXES)
def test_another_up_axis_is_a_turned_scan(up: str, completer: Completer, plain: Completion) -> None:
    turn = Similarity(1.0, upright(up).T, np.zeros(3))
    seen = moved(half_seen(SOLIDS["box"]), turn)
    turned = completer.complete(seen, up=up, resolution=48, refine=False)
    assert_same_surface(turn.apply(plain.mesh.vertices), turned.mesh.vertices, 1.0)
    assert np.allclose(turned.up, upright(up))


def test_up_may_be_any_direction(completer: Completer) -> None:
    turn = Rotation.from_rotvec([0.5, 0.2, -0.9]).as_matrix()
    away = Similarity(30.0, turn, np.array([1.0, -2.0, 5.0]))
    up = (7 * turn[:, 1]).tolist()
    completion = completer.complete(moved(half_seen(TRAINED), away), up=up, resolution=32)
    assert misfit(completion, TRAINED, away).mean() < 0.03
    # Viewers turn it upright by `up`.
    assert np.allclose(completion.up @ turn[:, 1], [0, 1, 0])


def test_a_wrong_up_axis_is_no_equivalent(completer: Completer) -> None:
    """The check of the check above: a box flatter than any it knows lies otherwise when its up is another."""
    flat = replace(half_seen(box(0.6, 0.2, 0.6)), background=None)
    turn = Similarity(1.0, Rotation.from_euler("x", 90, degrees=True).as_matrix(), np.zeros(3))
    right, wrong = (completer.complete(one, resolution=48, refine=False) for one in (flat, moved(flat, turn)))
    with pytest.raises(AssertionError):
        assert_same_surface(turn.apply(right.mesh.vertices), wrong.mesh.vertices, 1.0)


@pytest.mark.parametrize(
    ("pose", "turn"),
    [
        ("upright", about_y(66.0)),
        ("upright", about_y(-130.0)),
        ("free", Rotation.from_rotvec([0.9, -1.4, 0.7]).as_matrix()),
    ],
)
def test_a_turned_scan_is_completed_where_the_turned_solid_is(
    pose: str, turn: np.ndarray, completer: Completer
) -> None:
    away = Similarity(3.0, turn, np.array([1.0, -2.0, 5.0]))
    completion = completer.complete(moved(half_seen(TRAINED), away), pose=pose, resolution=48)
    assert completion.report.pose == pose
    assert misfit(completion, TRAINED, away).mean() < 0.03


def test_what_a_scan_is_most_often_is_the_default(completer: Completer) -> None:
    """Upright, its front anywhere."""
    away = Similarity(3.0, about_y(75.0), np.array([1.0, -2.0, 5.0]))
    completion = completer.complete(moved(half_seen(TRAINED), away), resolution=32, refine=False)
    assert completion.report.pose == "upright"
    assert misfit(completion, TRAINED, away).mean() < 0.03


def test_a_canonical_pose_takes_the_scans_axes_for_the_models(completer: Completer) -> None:
    completion = complete(completer, half_seen(SOLIDS["box"]))
    way = np.array(completion.report.scan_to_canonical)
    assert np.allclose(way[:3, :3] / np.cbrt(np.linalg.det(way[:3, :3])), np.eye(3), atol=1e-6)
    assert misfit(completion, SOLIDS["box"]).mean() < 0.03


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
    coarse, fine = (complete(completer, seen, resolution=size, refine=False) for size in (32, 80))
    assert fine.report.faces > 5 * coarse.report.faces
    assert np.allclose(*(np.ptp(c.mesh.vertices, axis=0) for c in (coarse, fine)), atol=0.02 * SCALE)


# Several views, the floor


BACK = (-0.7, 0.8, -2.5)


def test_two_views_complete_one_object(completer: Completer) -> None:
    views = [half_seen(SOLIDS["box"], eye) for eye in (EYE, BACK)]
    both = completer.complete([moved(view, TO_SCAN) for view in views], resolution=48)
    assert misfit(both, SOLIDS["box"]).mean() < 0.02
    assert to_trimesh(both.mesh).is_watertight


def test_what_stands_on_a_floor_is_completed_without_it(completer: Completer) -> None:
    seen, rng = half_seen(SOLIDS["box"]), np.random.default_rng(0)
    floor = np.column_stack([rng.uniform(-2, 2, 6000), np.full(6000, -0.55), rng.uniform(-2, 2, 6000)])
    floor = floor[(np.abs(floor[:, [0, 2]]) > [0.42, 0.5]).any(axis=1)]
    scan = View(np.concatenate([seen.points, floor]), viewpoint=seen.viewpoint)
    completion = complete(completer, scan, remove_plane=True)
    assert misfit(completion, SOLIDS["box"]).mean() < 0.03
    assert completion.report.points_removed["plane and surroundings"] >= len(floor)


# Faithful where observed, honest elsewhere


def test_refining_draws_the_mesh_onto_the_points_and_keeps_it_closed(completer: Completer) -> None:
    """Of a shape that no code expresses; what nobody saw stays the code's."""
    seen = half_seen(TORUS)
    rough, refined = (complete(completer, seen, refine=refine) for refine in (False, True))
    before, after = (distances_to(one.mesh, TO_SCAN.apply(seen.points)) for one in (rough, refined))
    assert np.quantile(after, 0.9) < 0.02 * SCALE < 0.03 * SCALE < np.quantile(before, 0.9)
    assert to_trimesh(refined.mesh).is_watertight and to_trimesh(refined.mesh).is_winding_consistent
    assert refined.report.refined and not rough.report.refined
    assert refined.report.seconds["refine"] < 0.5 * sum(refined.report.seconds.values())


def test_the_side_that_nobody_saw_is_less_sure(completer: Completer) -> None:
    completion = usual(completer, "box")
    vertices = in_solid_frame(completion.mesh.vertices)
    facing = ((np.array(EYE) - vertices) * gradient(SOLIDS["box"], vertices)).sum(axis=1) > 0
    deviation = completion.mesh.deviation
    assert deviation is not None and (deviation > 0).all() and np.isfinite(deviation).all()
    assert np.median(deviation[facing]) < 0.6 * np.median(deviation[~facing])


def test_most_of_the_true_surface_lies_within_two_deviations(completer: Completer) -> None:
    """Of solids that the model can express: the default calibration is not too sure of itself."""
    for name, solid in SOLIDS.items():
        completion = usual(completer, name)
        off = misfit(completion, solid) * SCALE
        assert (off < 2 * completion.mesh.deviation).mean() > 0.8, name


def test_alternatives_are_as_many_closed_meshes_that_agree_with_the_scan(completer: Completer) -> None:
    seen = half_seen(SOLIDS["box"])
    completion = complete(completer, seen, samples=2, resolution=32, seed=1)
    assert len(completion.alternatives) == 2
    points = TO_SCAN.apply(seen.points)
    for mesh in completion.alternatives:
        assert to_trimesh(mesh).is_watertight
        assert mesh.deviation is not None and mesh.normals is not None
        # Vertices are up to a cell apart.
        assert np.median(cKDTree(mesh.vertices).query(points)[0]) < 0.05 * SCALE
    spread = [
        cKDTree(completion.mesh.vertices).query(mesh.vertices)[0].max() for mesh in completion.alternatives
    ]
    assert min(spread) > 0.005 * SCALE
    assert usual(completer, "box").alternatives == []


def test_a_completion_may_start_from_the_code_of_another(completer: Completer) -> None:
    seen = half_seen(SOLIDS["box"])
    first = usual(completer, "box").report
    again = complete(completer, seen, start=first.code).report
    assert again.objective <= 1.02 * first.objective


# Colours, parts and size


def painted(seen: View) -> View:
    """Each point's colour is its place."""
    return replace(seen, colors=color_of(seen.points).astype(np.uint8))


def color_of(points: np.ndarray) -> np.ndarray:
    return np.round(127 + 100 * points)


def test_the_seen_part_has_the_colours_of_the_scan_and_the_rest_is_grey(completer: Completer) -> None:
    seen = painted(half_seen(SOLIDS["box"]))
    completion, used = complete(completer, seen), observe(seen)
    mesh = completion.mesh
    assert mesh.colors is not None and mesh.colors.shape == (len(mesh.vertices), 4)
    assert (mesh.colors[:, 3] == 255).all()
    vertices = in_solid_frame(mesh.vertices)
    # Where a sensor looks along a surface its points are not used, and have no colour to give.
    surface = used.from_scan.inverse().apply(used.surface)
    distance, nearest = cKDTree(surface).query(vertices)
    rgb, eta = mesh.colors[:, :3].astype(float), completion.report.eta / SCALE
    near, far = distance < eta, distance > 5 * eta
    assert near.sum() > 300 and far.sum() > 300
    off = np.abs(rgb - color_of(surface[nearest]))
    assert off[near].max() <= 100 * 3 * eta
    assert (rgb[far] == UNSEEN_COLOR).all()


def test_colours_may_show_the_deviation_or_nothing(completer: Completer) -> None:
    seen = painted(half_seen(SOLIDS["sphere"]))
    unsure, none = (
        complete(completer, seen, color=color, refine=False).mesh for color in ("uncertainty", "none")
    )
    assert none.colors is None
    assert np.array_equal(unsure.colors, deviation_colors(replace(unsure, colors=None)))
    assert len(np.unique(unsure.colors, axis=0)) > 10
    assert usual(completer, "box").mesh.colors is None


def test_a_mesh_may_be_simplified_to_so_many_faces(completer: Completer) -> None:
    seen = half_seen(SOLIDS["sphere"])
    full, few = usual(completer, "sphere"), complete(completer, seen, target_faces=600)
    assert full.report.faces > 3000
    assert 500 <= few.report.faces == len(few.mesh.faces) <= 700
    assert few.report.watertight
    assert misfit(few, SOLIDS["sphere"]).mean() < 0.03
    for part in (few.mesh.normals, few.mesh.deviation):
        assert part is not None and len(part) == len(few.mesh.vertices)


def test_the_largest_part_may_be_kept_alone(completer: Completer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a field with a crumb beside the solid."""
    make = Completer.shape

    def with_crumb(*arguments: object, **options: object) -> object:
        shape = make(*arguments, **options)
        return replace(shape, decoded=_Crumbed(shape.decoded), correction=None)

    monkeypatch.setattr(Completer, "shape", with_crumb)
    seen = half_seen(TINY_SOLIDS["box_0.35_0.35"])
    everything, main, largest = (
        complete(completer, seen, components=kept, resolution=32) for kept in ("all", "main", "largest")
    )
    assert to_trimesh(everything.mesh).body_count == 2
    assert to_trimesh(largest.mesh).body_count == 1
    assert main.report.faces in (everything.report.faces, largest.report.faces)
    assert 0.9 * everything.report.faces < largest.report.faces < everything.report.faces


class _Crumbed:
    """A field, and a small ball near the edge of the unit ball."""

    def __init__(self, field: Field) -> None:
        self.field, self.device = field, field.device
        self.lipschitz = self.bend = field.lipschitz
        self.centre = torch.tensor([0.0, 0.85, 0.0])

    def distance(self, points: Tensor) -> Tensor:
        return self.field.distance(points).minimum((points - self.centre).norm(dim=1) - 0.08)

    def distance_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = self.field.distance_and_gradient(points)
        away = points - self.centre
        crumb = away.norm(dim=1) - 0.08
        outward = torch.nn.functional.normalize(away, dim=1)
        return value.minimum(crumb), torch.where((crumb < value)[:, None], outward, gradient)


# The published recipe, progress, errors


def test_the_published_recipe_takes_its_800_steps_to_a_closed_mesh(completer: Completer) -> None:
    """How near it comes is not asked: it neither places the scan nor leaves a start that is far off."""
    told: list[Progress] = []
    seen = half_seen(SOLIDS["box"], count=300)
    completion = complete(completer, seen, solver="adam", refine=False, on_step=told.append)
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
    assert phases == ["observe", "fit", "refine", "mesh"]


@pytest.mark.parametrize("phase", ["observe", "fit", "refine", "mesh"])
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


WHOLE = surface_points(SOLIDS["sphere"], 400, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("points", "options", "code"),
    [
        (np.zeros((10, 3)), {}, "unusable_scan"),
        (np.ones((1000, 3)), {}, "unusable_scan"),
        (np.full((1000, 3), np.nan), {}, "unusable_scan"),
        (WHOLE, {"remove_plane": True}, "unusable_scan"),
        (WHOLE, {"solver": "newton"}, "invalid_option"),
        (WHOLE, {"pose": "sideways"}, "invalid_option"),
        (WHOLE, {"up": "up"}, "invalid_option"),
        (WHOLE, {"up": [0, 0, 0]}, "invalid_option"),
        (WHOLE, {"start": [0.0, 1.0]}, "invalid_option"),
        (WHOLE, {"start": [np.nan] * 4}, "invalid_option"),
    ],
)
def test_an_expected_ending_has_its_code_and_says_why(
    points: np.ndarray, options: dict, code: str, completer: Completer
) -> None:
    with pytest.raises(CompletionError) as raised:
        completer.complete(View(points), **options)
    assert raised.value.code == code
    assert len(raised.value.detail) > 20 and str(raised.value) == raised.value.detail


def test_an_empty_shape_is_an_expected_ending_too(completer: Completer) -> None:
    outside = Outside(completer.checkpoint.decoder.spec).eval().requires_grad_(False)
    outside.load_state_dict(completer.checkpoint.decoder.state_dict())
    nothing = Completer(replace(completer.checkpoint, decoder=outside))
    with pytest.raises(CompletionError) as raised:
        nothing.complete(View(WHOLE), resolution=32, refine=False)
    assert raised.value.code == "no_surface" and "another model" in raised.value.detail


class Outside(Decoder):
    """A decoder that is outside everywhere."""

    def evaluate(self, constants: list[Tensor], points: Tensor, depth: float | None = None) -> Tensor:
        return super().evaluate(constants, points, depth).abs() + 0.01


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
    positional = [name for name, one in parameters.items() if one.kind is not one.KEYWORD_ONLY]
    assert positional == ["self", "views"]
    assert all(
        one.default is not inspect.Parameter.empty
        for one in parameters.values()
        if one.kind is one.KEYWORD_ONLY
    )
