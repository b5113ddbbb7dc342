"""Ablations: variants of a recipe, trained alike and judged on shapes that none has seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shapes import TINY_RECIPE, tiny_samples

from model.training import ablation
from model.training.ablation import checkpoint_of, steps_in, validation_error, variants_of
from model.training.recipe import load_recipe
from model.training.trainer import Trainer, run


def test_a_variant_is_the_recipe_with_its_settings_changed(folder: Path) -> None:
    base = load_recipe(folder)
    made = variants_of(base, {"base": {}, "wide": {"decoder": {"width": 48}, "training": {"seed": 1}}})
    assert made["base"] == base
    assert made["wide"].decoder == base.decoder.model_copy(update={"width": 48})
    assert made["wide"].training == base.training.model_copy(update={"seed": 1})


def test_a_variant_may_not_change_the_samples_that_all_share(folder: Path) -> None:
    with pytest.raises(ValueError, match="samples"):
        variants_of(load_recipe(folder), {"more": {"samples": {"points": 7}}})


def test_every_variant_gets_a_line_at_once_and_only_once(folder: Path) -> None:
    variants, output = folder / "variants.toml", folder / "ablation.jsonl"
    variants.write_text("[base]\n[bounded]\ntraining.code_bound = 0.1\n")
    arguments = [str(folder), str(variants), "--data", str(folder.parent / "data"), "--device", "cpu"]
    arguments += ["--steps", "20", "--output", str(output)]
    assert ablation.main(arguments) == 0
    lines = [json.loads(line) for line in output.open()]
    assert [line["variant"] for line in lines] == ["base", "bounded"]
    assert all(line["steps"] == 20 and line["samples"] == 20 * 2 * 32 for line in lines)
    assert all(line["errors"].keys() == {"sphere_0.65"} for line in lines)
    assert lines[0]["errors"] != lines[1]["errors"]
    assert ablation.main(arguments) == 0  # all are known
    assert len(output.read_text().splitlines()) == 2


def test_training_lowers_the_error_of_unseen_shapes(folder: Path) -> None:
    """From that of an untrained network, to one well below the distances themselves."""
    errors = []
    file = folder.parent / "data" / "samples" / "tiny" / "SdfSamples" / "pack" / "s" / "sphere_0.65.npz"
    for steps in (1, 150):
        settings = TINY_RECIPE.training.model_copy(update={"steps": steps})
        trainer = Trainer(TINY_RECIPE.model_copy(update={"training": settings}), tiny_samples(2000), "cpu")
        list(run(trainer))
        errors.append(validation_error(checkpoint_of(trainer), file))
    assert errors[1] < 0.3 * errors[0]


def test_the_probe_tells_how_many_steps_fill_a_time(folder: Path) -> None:
    recipe, data = load_recipe(folder), tiny_samples(600)
    few, many = (steps_in(seconds, recipe, data, "cpu") for seconds in (0.2, 20.0))
    assert few < many / 10
