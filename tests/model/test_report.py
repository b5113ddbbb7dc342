"""What a report says of completions whose truth is known, and what makes a fit fair or poor."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from seen import about_y, distances_to, half_seen, moved
from shapes import TINY_SOLIDS, SignedDistance, box, sphere, surface_points, torus

from model.checkpoint import Checkpoint
from model.codes import decode
from model.completion import Completer, Completion
from model.fitting import Candidate
from model.frame import Similarity
from model.mesh import to_trimesh
from model.observation import View, observe
from model.placement import MOVE_SIZE
from model.problems import KINDS
from model.report import Hypothesis, judge

BOX, TORUS = box(0.36, 0.6, 0.5), torus(0.6, 0.15)
PLACE = Similarity(200.0, about_y(30), np.array([10.0, 500.0, 3.0]))
LENGTHS = ("residual_in_scan_unit", "noise", "eta", "observed_distance_rms", "deviation_median")
"""Figures of a report in the scan's unit."""


def jack(points: np.ndarray) -> np.ndarray:
    """Signed distance to three crossed bars: no ball and no box."""
    bars = [box(0.8, 0.08, 0.08), box(0.08, 0.8, 0.08), box(0.08, 0.08, 0.8)]
    return np.min([bar(points) for bar in bars], axis=0)


@pytest.fixture(scope="module")
def completer(tiny: Checkpoint) -> Completer:
    """The tiny model's."""
    return Completer(tiny)


@functools.cache
def completed(
    completer: Completer, solid: SignedDistance = BOX, factor: float = 1.0, **options: object
) -> Completion:
    """A half-seen solid at PLACE in a unit that is `factor` times smaller, completed."""
    place = Similarity(factor, np.eye(3), np.zeros(3)).after(PLACE)
    return completer.complete(moved(half_seen(solid), place), **{"resolution": 40, **options})


def test_a_report_is_json_without_any_number_that_is_none(completer: Completer) -> None:
    for solid in (BOX, jack):
        report = completed(completer, solid).report.to_dict()
        assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_it_counts_and_measures_the_mesh_that_comes_with_it(completer: Completer) -> None:
    completion = completed(completer)
    report, body = completion.report, to_trimesh(completion.mesh)
    assert (report.vertices, report.faces) == (len(body.vertices), len(body.faces))
    assert report.watertight and np.isclose(report.volume, body.volume)
    assert report.parts == body.body_count
    assert np.isclose(report.volume, 8 * 0.36 * 0.6 * 0.5 * PLACE.scale**3, rtol=0.15)
    assert np.isclose(report.deviation_median, np.median(completion.mesh.deviation))
    assert report.evaluations > report.vertices


def test_it_says_what_was_done(completer: Completer) -> None:
    report = completed(completer).report
    assert (report.model, report.solver, report.pose, report.refined) == ("tiny", "lm", "upright", True)
    assert report.checkpoint_digest == completer.checkpoint.digest
    assert report.steps == len(report.trace)
    assert set(report.seconds) == {"observe", "fit", "refine", "mesh", "report"}
    assert min(report.seconds.values()) >= 0
    plain = completed(completer, refine=False, pose="canonical").report
    assert (plain.pose, plain.refined) == ("canonical", False)


def test_the_trace_goes_down_to_the_objective(completer: Completer) -> None:
    report = completed(completer).report
    for before, after in pairwise(report.trace):
        assert after["round"] > before["round"] or after["objective"] <= before["objective"]
    ends = [(report.objective, report.residual), *((end.objective, None) for end in report.hypotheses)]
    lowest, residual = min(ends, key=lambda end: end[0])
    assert report.trace[-1]["objective"] == lowest
    assert residual is None or report.trace[-1]["residual"] == residual


@pytest.mark.parametrize("factor", [1000.0, 0.01])
def test_figures_in_the_scans_unit_scale_with_it_and_others_do_not(
    factor: float, completer: Completer
) -> None:
    here = completed(completer).report
    there = completed(completer, factor=factor).report
    for name in LENGTHS:
        assert np.isclose(getattr(there, name), factor * getattr(here, name), rtol=0.02), name
    assert np.isclose(there.volume, factor**3 * here.volume, rtol=0.02)
    for name in ("residual", "objective", "observed_within_eta", "observed_far", "code_distance", "steps"):
        assert np.isclose(getattr(there, name), getattr(here, name), rtol=0.02), name
    for kind, one in here.residuals.items():
        other = there.residuals[kind]
        assert one.count == other.count
        assert np.isclose(one.violated, other.violated, atol=0.01)
        for name in ("mean", "rms", "quantile_90"):
            assert np.isclose(getattr(other, name), factor * getattr(one, name), rtol=0.05), (kind, name)
    for name, power in (("scale", 0), ("translation", 1), ("rotation", 0)):
        assert np.isclose(
            there.placement_deviation[name], factor**power * here.placement_deviation[name], rtol=0.02
        ), name


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """The largest distance of a vertex of either mesh to the nearest of the other."""
    return max(cKDTree(a).query(b)[0].max() for a, b in ((one, other), (other, one)))


def test_scan_to_canonical_takes_the_mesh_to_what_the_code_decodes_to(
    completer: Completer, tiny: Checkpoint
) -> None:
    completion = completed(completer, refine=False)
    report = completion.report
    way = np.array(report.scan_to_canonical)
    assert np.allclose(way[3], [0, 0, 0, 1])
    canonical = completion.mesh.vertices.astype(float) @ way[:3, :3].T + way[:3, 3]
    decoded = decode(tiny, torch.tensor(report.code), 40).vertices
    assert apart(canonical, decoded) < 1e-4


def test_the_report_says_where_the_object_is_and_how_large(completer: Completer) -> None:
    completion = completed(completer)
    report = completion.report
    apart_from_center = np.linalg.norm(completion.mesh.vertices - np.array(report.center), axis=1)
    assert apart_from_center.max() == pytest.approx(report.radius, rel=1e-4)
    axes = np.array(report.scan_to_canonical)[:3, :3]
    along = completion.mesh.vertices @ (axes / np.linalg.norm(axes[0])).T
    assert np.ptp(along, axis=0) == pytest.approx(report.size, rel=1e-4)


def test_scan_to_canonical_is_the_way_back_from_where_the_scan_was_taken(completer: Completer) -> None:
    """Up to the half turn that the box does not feel, and to its scale: it is smaller than the unit ball."""
    way = np.array(completed(completer).report.scan_to_canonical) @ PLACE.matrix()
    scale = np.cbrt(np.linalg.det(way[:3, :3]))
    assert 0.9 < scale < 1.25
    way[:3] /= scale
    half_turn = np.diag([-1.0, 1, -1, 1])
    assert min(np.abs(way - np.eye(4)).max(), np.abs(way @ half_turn - np.eye(4)).max()) < 0.08


def test_residuals_are_told_for_every_kind_of_constraint_that_there_is(completer: Completer) -> None:
    report = completed(completer).report
    assert set(report.residuals) == set(KINDS)
    for one in report.residuals.values():
        assert one.count > 0
        assert 0 <= one.mean <= one.rms and 0 <= one.violated <= 1
    bare = completer.complete(View(half_seen(BOX).points), resolution=32, refine=False)
    assert set(bare.report.residuals) == {"surface"}


def test_refining_brings_the_residuals_down_and_the_mesh_to_the_points(completer: Completer) -> None:
    plain, refined = (completed(completer, TORUS, refine=refine).report for refine in (False, True))
    assert refined.residuals["surface"].rms < 0.2 * plain.residuals["surface"].rms
    for kind in ("surface", "outside", "free space", "background"):
        assert refined.residuals[kind].violated <= plain.residuals[kind].violated, kind
    assert refined.observed_within_eta > 0.95 > plain.observed_within_eta
    assert refined.observed_distance_rms < 0.2 * plain.observed_distance_rms
    # Of the code alone, whatever came after it.
    for name in ("residual", "observed_far", "code_distance", "objective"):
        assert getattr(refined, name) == getattr(plain, name), name


def test_the_distance_to_the_mesh_is_what_it_says(completer: Completer) -> None:
    """Against exact distances of the observed points to the triangles."""
    completion = completed(completer, TORUS, refine=False, resolution=96)
    observation = observe(moved(half_seen(TORUS), PLACE))
    seen = observation.from_scan.inverse().apply(observation.surface)
    exact, report = distances_to(completion.mesh, seen), completion.report
    assert np.isclose(report.observed_distance_rms, np.sqrt((exact**2).mean()), rtol=0.1)
    assert np.isclose(report.observed_within_eta, (exact < report.eta).mean(), atol=0.05)


def test_eta_and_noise_are_those_of_the_observation(completer: Completer) -> None:
    view = half_seen(BOX)
    noise = 0.05 * np.random.default_rng(0).normal(size=view.points.shape)
    quiet, loud = (
        completer.complete(
            moved(replace(view, points=view.points + some), PLACE), resolution=32, refine=False
        ).report
        for some in (0.0, noise)
    )
    assert 0.2 * 0.05 * PLACE.scale < loud.noise < 1.1 * 0.05 * PLACE.scale  # some of it was smoothed away
    assert quiet.noise < 0.1 * loud.noise
    assert loud.eta > quiet.eta


def test_the_nearest_shapes_are_sorted_and_the_first_is_the_nearest(completer: Completer) -> None:
    report = completed(completer, TINY_SOLIDS["box_0.35_0.65"]).report
    assert report.nearest_shape == report.nearest_shapes[0].shape == "box_0.35_0.65"
    distances = [near.distance for near in report.nearest_shapes]
    assert distances == sorted(distances) and len(distances) == 5


@pytest.mark.parametrize(("pose", "turns"), [("canonical", []), ("upright", [1]), ("free", [0, 1, 2])])
def test_the_covariance_of_the_placement_is_one_and_zero_where_it_was_held(
    pose: str, turns: list[int], completer: Completer
) -> None:
    report = completed(completer, pose=pose).report
    covariance = np.array(report.placement_covariance)
    assert covariance.shape == (MOVE_SIZE, MOVE_SIZE)
    assert np.allclose(covariance, covariance.T)
    assert np.linalg.eigvalsh(covariance).min() > -1e-9
    assert np.flatnonzero(covariance.diagonal()).tolist() == [0, 1, 2, 3, *(4 + turn for turn in turns)]
    deviation = report.placement_deviation
    assert np.isclose(deviation["scale"], np.sqrt(covariance[0, 0]))
    scale = np.linalg.norm(np.array(report.scan_to_canonical)[0, :3])
    assert np.isclose(deviation["translation"], np.sqrt(covariance.diagonal()[1:4].sum()) / scale)
    assert np.isclose(deviation["rotation"], np.degrees(np.sqrt(covariance.diagonal()[4:].sum())))


def test_what_was_left_out_is_counted(completer: Completer) -> None:
    view = half_seen(BOX)
    stray = np.array([[50.0, 0, 0], [np.nan, 0, 0]])
    clean, dirty = (
        completer.complete(replace(view, points=points), resolution=32, refine=False).report
        for points in (view.points, np.concatenate([view.points, stray]))
    )
    before = clean.points_removed.get("stray", 0)
    assert dirty.points_removed == {"not finite": 1, "stray": before + 1}
    assert dirty.points_used == clean.points_used <= len(view.points)


# The verdict


@pytest.mark.parametrize("name", ["box_0.35_0.65", "box_0.5_0.5", "sphere_0.8"])
def test_a_clean_scan_of_such_a_shape_is_good(name: str, completer: Completer) -> None:
    """Though a ball may be turned by anything, and a box by a half turn."""
    report = completed(completer, TINY_SOLIDS[name]).report
    assert (report.grade, report.verdict) == ("good", "The fitted shape agrees with what was observed.")
    assert report.observed_within_eta > 0.99 and report.observed_far == 0


@pytest.mark.parametrize("refine", [True, False])
@pytest.mark.parametrize("solid", [jack, TORUS], ids=["jack", "torus"])
def test_a_scan_of_another_kind_of_shape_is_poor(
    solid: SignedDistance, refine: bool, completer: Completer
) -> None:
    """Even where the correction draws the mesh onto its points."""
    report = completed(completer, solid, refine=refine).report
    assert report.grade == "poor"
    assert len(report.verdict) > 40 and report.verdict[0] == report.verdict[0].upper()


def test_points_far_from_the_shape_of_the_code_are_counted_as_far(completer: Completer) -> None:
    """By distance: the field itself hardly exceeds 3η anywhere, since it ends at the clamping distance."""
    report = completed(completer, jack, refine=False).report
    solid = decode(completer.checkpoint, torch.tensor(report.code), 48)
    observation = observe(moved(half_seen(jack), PLACE))
    way = np.array(report.scan_to_canonical)
    seen = observation.from_scan.inverse().apply(observation.surface) @ way[:3, :3].T + way[:3, 3]
    far = (cKDTree(solid.vertices).query(seen)[0] > 3 * 0.03).mean()
    assert far > 0.3
    assert np.isclose(report.observed_far, far, atol=0.2)


def winner(scale: float = 1.0) -> Candidate:
    return Candidate(torch.zeros(4), Similarity(scale, np.eye(3), np.zeros(3)), 1.0, 0.01)


def rival(turned: float, objective: float) -> Hypothesis:
    turn = Rotation.from_euler("y", turned, degrees=True).as_matrix()
    matrix = Similarity(1.0, turn, np.zeros(3)).matrix().tolist()
    return Hypothesis(matrix, objective, 0.01, turned)


def test_doubts_are_told_in_words_and_the_worst_first() -> None:
    def judged(
        far: float = 0.0,
        within: float = 1.0,
        distance: float = 1.0,
        scale: float = 1.0,
        others: tuple[Hypothesis, ...] = (),
        parts: int = 1,
    ) -> tuple[str, str]:
        return judge("chair", far, within, distance, parts, winner(scale), list(others))

    assert judged()[0] == "good"
    assert judged(others=(rival(5, 1.0), rival(90, 3.0)))[0] == "good"
    grade, verdict = judged(far=0.25)
    assert grade == "poor"
    assert verdict.startswith("25% of the observed points") and verdict.endswith(
        "is this a chair, alone and whole?"
    )
    assert judged(far=0.08)[0] == "fair"
    assert judged(within=0.5)[0] == "poor"
    assert judged(scale=0.1)[0] == "poor" and judged(scale=0.4)[0] == "fair"
    assert judged(parts=2)[0] == "fair" and "in 2 parts" in judged(parts=2)[1]
    assert judged(distance=4.0)[0] == "fair" and judged(distance=30.0)[0] == "poor"
    grade, verdict = judged(others=(rival(170, 1.01),))
    assert grade == "fair" and verdict.startswith("Turned by 170 degrees") and verdict.endswith(".")
    grade, verdict = judged(far=0.08, distance=30.0)
    assert grade == "poor" and verdict.index("latent code") < verdict.index("8%")


def test_another_way_to_lie_is_a_doubt_and_the_same_way_turned_is_none(completer: Completer) -> None:
    """The top of a cube of unknown height may be any side's; a ball lies as it lies."""
    round_one = completed(completer, sphere(0.7)).report
    assert "urned" not in round_one.verdict
    others = [other.objective for other in round_one.hypotheses]
    assert others == sorted(others)


def test_hypotheses_lead_into_their_own_canonical_frames(completer: Completer) -> None:
    report = completed(completer, pose="free").report
    best = np.array(report.scan_to_canonical)
    whole = PLACE.apply(surface_points(BOX, 300, np.random.default_rng(1)))
    for other in report.hypotheses:
        way = np.array(other.scan_to_canonical)
        turn = way[:3, :3] @ np.linalg.inv(best[:3, :3])
        turn /= np.cbrt(np.linalg.det(turn))
        assert np.isclose(np.degrees(Rotation.from_matrix(turn).magnitude()), other.turned, atol=0.5)
        assert np.linalg.norm(whole @ way[:3, :3].T + way[:3, 3], axis=1).max() < 1.2
