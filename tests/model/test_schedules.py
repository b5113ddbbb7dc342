"""What changes in the course of training: rates, curriculum, depth, precision."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from model.training.recipe import DecoderRecipe, Recipe, Stage, TrainingRecipe
from model.training.schedules import depth_at, penalty_at, precision_at, rate_share, rates_at, stage_at

PUBLISHED = [
    Stage(until=0.1, tolerance=0.025, hardness=0.0, depth=5),
    Stage(until=0.3, tolerance=0.01, hardness=0.1, depth=6),
    Stage(until=0.5, tolerance=0.0025, hardness=0.2, depth=7),
    Stage(until=1.0, tolerance=0.0, hardness=0.5, depth=8),
]


def recipe(**settings: object) -> TrainingRecipe:
    return TrainingRecipe.model_validate({"steps": 2000, **settings})


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_the_learning_rate_rises_in_a_line_and_falls_in_half_a_cosine(warmup: float) -> None:
    settings = recipe(steps=200, warmup_share=warmup)
    shares = np.array([rate_share(step, settings) for step in range(200)])
    rise = max(1, round(200 * warmup))
    assert np.allclose(shares[:rise], np.arange(1, rise + 1) / rise)
    assert shares.max() == 1
    assert (np.diff(shares[rise:]) < 0).all()
    assert 0 < shares[-1] < 1e-3
    assert np.isclose(rate_share((200 + rise) // 2, settings), 0.5, atol=0.01)
    assert rate_share(200, settings) == pytest.approx(0)


def test_the_step_schedule_of_deepsdf_halves_the_rates_every_quarter() -> None:
    settings = recipe(schedule="step", warmup_share=0, step_share=0.25, step_factor=0.5)
    for step in range(0, 2000, 7):
        assert rate_share(step, settings) == 0.5 ** (step // 500)


def test_the_constant_schedule_is_the_peak_after_its_rise() -> None:
    assert {rate_share(step, recipe(schedule="constant", warmup_share=0)) for step in range(2000)} == {1}
    risen = [rate_share(step, recipe(schedule="constant", warmup_share=0.1)) for step in range(2000)]
    assert np.allclose(risen, np.minimum(1, np.arange(1, 2001) / 200))


def test_both_rates_follow_the_schedule() -> None:
    settings = recipe(warmup_share=0.5, decoder_rate=0.1, code_rate=0.2)
    assert rates_at(249, settings) == pytest.approx((0.1 / 4, 0.2 / 4))


def test_stages_last_until_their_share_of_the_steps() -> None:
    settings = recipe(curriculum=PUBLISHED)
    for step, stage in ((0, 0), (199, 0), (200, 1), (599, 1), (600, 2), (1000, 3), (1999, 3)):
        assert stage_at(step, settings) == PUBLISHED[stage]


def test_without_a_curriculum_nothing_is_forgiven_and_all_layers_are_in_use() -> None:
    stage = stage_at(7, recipe())
    assert (stage.tolerance, stage.hardness, depth_at(7, recipe(), 8)) == (0, 0, 8)


def test_the_network_grows_smoothly_from_stage_to_stage() -> None:
    settings = recipe(curriculum=PUBLISHED, growth_share=0.05)
    depths = np.array([depth_at(step, settings, 8) for step in range(2001)])
    assert (depths[:201] == 5).all() and (depths[300:601] == 6).all()
    assert (depths[700:1001] == 7).all() and (depths[1100:] == 8).all()
    assert depths[250] == pytest.approx(5.5)
    assert (np.diff(depths) >= 0).all() and np.diff(depths).max() < 0.011


def test_layers_may_come_at_once() -> None:
    settings = recipe(curriculum=PUBLISHED, growth_share=0)
    assert [depth_at(step, settings, 8) for step in (199, 200, 600, 1000)] == [5, 6, 7, 8]


def test_the_code_penalty_rises_in_a_line() -> None:
    settings = recipe(penalty_share=0.5, code_penalty=0.3)
    weights = [penalty_at(step, settings) for step in range(2000)]
    assert np.allclose(weights, 0.3 * np.minimum(1, np.arange(1, 2001) / 1000))
    assert penalty_at(0, recipe(code_penalty=0.3)) == 0.3


def test_the_last_steps_have_a_precision_of_their_own() -> None:
    settings = recipe(precision="tf32", float32_share=0.25)
    assert [precision_at(step, settings) for step in (0, 1499, 1500, 1999)] == ["tf32"] * 2 + ["float32"] * 2
    assert {precision_at(step, recipe(float32_share=0)) for step in (0, 1999)} == {"bfloat16"}
    assert precision_at(1999, recipe(final_precision="tf32")) == "tf32"


def with_stages(*stages: Stage) -> Recipe:
    head = {"name": "a", "description": "b", "category": "c", "decoder": DecoderRecipe()}
    return Recipe.model_validate({**head, "training": recipe(curriculum=stages)})


def test_a_curriculum_must_go_to_the_end_in_order_and_to_the_full_network() -> None:
    assert with_stages(*PUBLISHED).training.curriculum == PUBLISHED
    for wrong in ([0.5], [0.5, 0.3, 1.0], [0.5, 0.5, 1.0]):
        with pytest.raises(ValidationError, match="until"):
            recipe(curriculum=[Stage(until=end) for end in wrong])
    for depths in ((5, 7), (6, 5, 8), (4, 8)):
        ends = np.linspace(0, 1, len(depths) + 1)[1:]
        with pytest.raises(ValidationError, match="depth"):
            with_stages(*(Stage(until=end, depth=deep) for end, deep in zip(ends, depths, strict=True)))
