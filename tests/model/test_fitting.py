"""Fits of boxes and balls that lie anywhere, judged by where the whole solid goes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from seen import about_y, half_seen, moved, yaw_of
from shapes import TINY_SOLIDS, SignedDistance, box, surface_points

from model.checkpoint import Checkpoint
from model.consensus import central
from model.fitting import Effort, Fit, Fitter, Round, Starts
from model.frame import Similarity
from model.observation import Observation, RowWeights, View, observe
from model.placement import Placements
from model.problems import FitSettings

BOX = TINY_SOLIDS["box_0.35_0.65"]  # half extents 0.35, 0.65 and 0.5: each half turn is a symmetry
UNSEEN = box(0.4, 0.6, 0.5)


@pytest.fixture(scope="module")
def fitter(tiny: Checkpoint) -> Fitter:
    """The tiny model's, with the usual effort."""
    return Fitter(tiny, FitSettings(), RowWeights(), Effort())


def way_of(fit: Fit, observation: Observation, to_scan: Similarity) -> Similarity:
    """From the frame of the true solid, by way of the scan, to where the fit puts it."""
    return fit.best.placement.after(observation.from_scan).after(to_scan)


def misfit(
    fitter: Fitter, fit: Fit, observation: Observation, to_scan: Similarity, solid: SignedDistance
) -> float:
    """Mean distance of the whole true solid from the fitted surface, canonical units.

    What was not seen counts as much as what was. Any symmetry of the solid is the same.
    """
    whole = surface_points(solid, 800, np.random.default_rng(9))
    points = torch.from_numpy(way_of(fit, observation, to_scan).apply(whole)).float()
    return float(fitter.checkpoint.decoder(fit.best.code[None], points[None]).abs().mean())


@pytest.mark.parametrize(
    ("yaw", "scale"),
    [(0.0, 1.0), (63.0, 0.3), (-151.0, 40.0)],
    ids=["where it is", "turned and small", "turned and large"],
)
def test_yaw_scale_and_place_of_an_upright_box_are_found(yaw: float, scale: float, fitter: Fitter) -> None:
    to_scan = Similarity(scale, about_y(yaw), scale * np.array([3.0, -1.0, 7.0]))
    observation = observe(moved(half_seen(BOX), to_scan))
    fit = fitter.fit(observation, "upright")
    way = way_of(fit, observation, to_scan)
    # The tiny model's solids are smaller than the unit ball, and so than a scan is expected to be.
    assert misfit(fitter, fit, observation, to_scan, BOX) < 0.04
    assert abs((yaw_of(way.rotation) + 90) % 180 - 90) < 4
    assert np.allclose(way.rotation[1], [0, 1, 0], atol=1e-5)
    assert abs(way.scale - 1) < 0.25
    assert np.linalg.norm(way.translation) < 0.12


def test_a_shape_that_was_not_trained_on_is_found_whole(fitter: Fitter) -> None:
    """Whichever of its sides is taken for the front: it may be another box, turned by a quarter."""
    to_scan = Similarity(2.0, about_y(100), np.array([3.0, -1.0, 7.0]))
    observation = observe(moved(half_seen(UNSEEN), to_scan))
    assert misfit(fitter, fitter.fit(observation, "upright"), observation, to_scan, UNSEEN) < 0.035


def test_any_turn_of_a_box_is_found(fitter: Fitter) -> None:
    to_scan = Similarity(0.7, Rotation.from_rotvec([2.0, 0.3, -1.1]).as_matrix(), np.array([0.4, 20.0, -3.0]))
    observation = observe(moved(half_seen(BOX), to_scan))
    fit = fitter.fit(observation, "free")
    assert misfit(fitter, fit, observation, to_scan, BOX) < 0.03


def test_a_canonical_pose_turns_nothing(fitter: Fitter) -> None:
    """Even where turning would help: a box turned by 45° is fitted worse than one that may be turned back."""
    to_scan = Similarity(1.0, about_y(45), np.zeros(3))
    observation = observe(moved(half_seen(BOX), to_scan))
    fits = {pose: fitter.fit(observation, pose) for pose in ("canonical", "upright")}
    assert np.allclose(fits["canonical"].best.placement.rotation, np.eye(3), atol=1e-6)
    assert fits["canonical"].best.objective > 3 * fits["upright"].best.objective


def test_a_fit_repeats_with_its_seed(fitter: Fitter) -> None:
    observation = observe(half_seen(BOX))
    one, same, other = (fitter.fit(observation, "canonical", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.best.code, same.best.code) and one.trace == same.trace
    assert not torch.equal(one.best.code, other.best.code)
    assert torch.allclose(one.best.code, other.best.code, atol=0.3)


FRONT, BACK = (0.6, 0.9, 2.6), (-0.7, 0.8, -2.5)


def test_two_views_of_one_object_are_fitted_together(fitter: Fitter) -> None:
    """From the front alone its depth is the prior's; with the back it is measured."""
    to_scan = Similarity(5.0, about_y(20), np.array([1.0, 2.0, 3.0]))
    front, back = (moved(half_seen(UNSEEN, eye), to_scan) for eye in (FRONT, BACK))
    errors = []
    for views in (front, [front, back]):
        observation = observe(views)
        errors.append(misfit(fitter, fitter.fit(observation, "upright"), observation, to_scan, UNSEEN))
    assert errors[1] < min(0.015, 1.05 * errors[0])


def test_the_order_of_views_does_not_matter(fitter: Fitter) -> None:
    """Other random rows are looked at, no more: both fits put the solid in one place."""
    here = Similarity(1.0, np.eye(3), np.zeros(3))
    views = [half_seen(BOX, eye) for eye in (FRONT, BACK)]
    ways = []
    for ordered in (views, views[::-1]):
        observation = observe(ordered)
        fit = fitter.fit(observation, "canonical")
        ways.append(way_of(fit, observation, here))
        assert misfit(fitter, fit, observation, here, BOX) < 0.015
    assert np.allclose(ways[0].matrix(), ways[1].matrix(), atol=0.015)


def test_a_view_without_its_sensors_place_helps_a_view_with_one(fitter: Fitter) -> None:
    here = Similarity(1.0, np.eye(3), np.zeros(3))
    front = half_seen(UNSEEN, FRONT)
    bare = View(half_seen(UNSEEN, BACK).points)
    observation = observe([front, bare])
    assert misfit(fitter, fitter.fit(observation, "canonical"), observation, here, UNSEEN) < 0.015


def test_points_alone_of_a_whole_object_are_enough(fitter: Fitter) -> None:
    here = Similarity(1.0, np.eye(3), np.zeros(3))
    observation = observe(View(surface_points(BOX, 3000, np.random.default_rng(0))))
    assert misfit(fitter, fitter.fit(observation, "upright"), observation, here, BOX) < 0.03


def test_every_step_is_told_and_traced(fitter: Fitter) -> None:
    told: list[tuple[int, int, float | None]] = []
    fit = fitter.fit(observe(half_seen(BOX)), "upright", tell=lambda *step: told.append(step))
    assert told[0] == (0, fitter.effort.steps, None)
    assert [step for step, _, _ in told] == list(range(len(fit.trace) + 1))
    assert {steps for _, steps, _ in told} == {fitter.effort.steps}
    assert fit.steps == len(fit.trace) <= fitter.effort.steps
    assert [one.residual for one in fit.trace] == [residual for _, _, residual in told[1:]]


def test_no_step_of_a_round_raises_the_best_objective(fitter: Fitter) -> None:
    fit = fitter.fit(observe(half_seen(BOX)), "upright")
    assert [step.round for step in fit.trace] == sorted(step.round for step in fit.trace)
    for number in range(1, len(fitter.effort.rounds) + 1):
        objectives = [step.objective for step in fit.trace if step.round == number]
        assert objectives and objectives == sorted(objectives, reverse=True)
    lowest = min([fit.best, *fit.runners_up], key=lambda end: end.objective)
    last = fit.trace[-1]
    assert (last.objective, last.residual, last.unfinished) == (lowest.objective, lowest.residual, 0)


def test_the_winner_is_the_most_central_of_those_that_were_finished(fitter: Fitter) -> None:
    fit = fitter.fit(observe(half_seen(BOX)), "upright")
    ends, others = [fit.best, *fit.runners_up], [one.objective for one in fit.runners_up]
    assert others == sorted(others)
    assert len(ends) == fitter.effort.rounds[-1].problems
    codes, cost = torch.stack([end.code for end in ends]), torch.tensor([end.objective for end in ends])
    where = [end.placement for end in ends]
    placements = Placements(
        torch.tensor([one.scale for one in where]).log(),
        torch.tensor(np.stack([one.rotation for one in where])).float(),
        torch.tensor(np.stack([one.translation for one in where])).float(),
    )
    # Several may have ended in the same place, and rounding decides between those.
    chosen = central(fitter.checkpoint.decoder, codes, placements, cost)
    assert torch.allclose(codes[chosen], codes[0], atol=1e-3)
    assert torch.equal(fit.problem.codes[0], fit.best.code)
    assert np.allclose(fit.problem.placements.similarity(0).matrix(), fit.best.placement.matrix())
    assert fit.hessian.shape == (11, 11)


def test_a_warm_start_ends_no_worse_than_the_fit_it_comes_from(fitter: Fitter) -> None:
    observation = observe(half_seen(UNSEEN))
    first = fitter.fit(observation, "canonical")
    again = fitter.fit(observation, "canonical", start=first.best.code)
    assert again.best.objective <= 1.02 * first.best.objective


def test_a_warm_start_is_a_shape_like_the_others_to_start_from(fitter: Fitter) -> None:
    shapes = fitter.start_shapes(fitter.checkpoint.codes[3])
    assert len(shapes) == len(fitter.checkpoint.starts) + 1
    assert torch.equal(shapes.codes[0], fitter.checkpoint.codes[3])
    same = fitter.checkpoint.starts.grids[3].float()
    assert (shapes.grids[0].float() - same).abs().max() <= 1
    assert torch.equal(shapes.grids[1:], fitter.checkpoint.starts.grids)
    # Its bounding box is that of all shapes: it is as wide as the widest.
    assert (shapes.extents[0, 0] <= shapes.extents[1:, 0]).all()
    assert (shapes.extents[0, 1] >= shapes.extents[1:, 1]).all()


def test_no_start_shape_takes_all_places_of_the_first_round(fitter: Fitter) -> None:
    observation = observe(half_seen(BOX))
    effort = fitter.effort
    starts = fitter.screen(observation, "upright", 0, fitter.start_shapes())
    assert len(starts.codes) == effort.rounds[0].problems
    _, counts = torch.unique(starts.codes, dim=0, return_counts=True)
    assert counts.max() <= effort.per_shape


def test_more_effort_ends_no_worse(tiny: Checkpoint) -> None:
    observation = observe(moved(half_seen(UNSEEN), Similarity(1.0, about_y(70), np.zeros(3))))
    little = Effort(moved=6, rounds=(Round(1, (256, 160), 3), Round(1, (2400, 1600), 2)))
    fits = [
        Fitter(tiny, FitSettings(), RowWeights(), effort).fit(observation, "upright")
        for effort in (little, Effort())
    ]
    assert fits[0].steps <= little.steps
    assert fits[1].best.objective <= fits[0].best.objective


def test_fits_start_from_what_they_are_given(fitter: Fitter) -> None:
    """One start, at the right place, and a prior that holds its code: only the placement is fitted."""
    observation = observe(half_seen(BOX))
    checkpoint = fitter.checkpoint
    code = checkpoint.codes[checkpoint.shapes.index("box_0.35_0.65")]
    back = observation.from_scan.inverse()
    placement = Placements(
        torch.tensor([back.scale]).float().log(),
        torch.from_numpy(back.rotation).float()[None],
        torch.from_numpy(back.translation).float()[None],
    )
    held = replace(checkpoint.prior, mean=code, precision=1e9 * torch.eye(4))
    fit = fitter.fit_starts(observation, Starts(code[None], placement), "canonical", seed=0, prior=held)
    assert torch.allclose(fit.best.code, code, atol=1e-3)
    assert fit.runners_up == []
    assert np.allclose(fit.best.placement.matrix(), back.matrix(), atol=0.1)


def test_the_published_recipe_is_given_the_place_and_finds_the_code(fitter: Fitter) -> None:
    observation = observe(half_seen(BOX, count=600))
    told: list[int] = []
    fit = fitter.fit_adam(observation, "upright", tell=lambda step, *_: told.append(step))
    assert told == list(range(1, 801)) and fit.steps == 800
    assert fit.runners_up == [] and fit.trace == []
    assert fit.best.residual < 0.1
