"""Ablations: variants of a recipe, trained alike and judged on shapes that none has seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trimesh
from shapes import TINY_RECIPE, tiny_samples
from training_folders import write_originals

from model.checkpoint import Checkpoint
from model.training import ablation, trials
from model.training.ablation import SWITCHES, chosen, variants_of
from model.training.recipe import load_recipe
from model.training.trainer import Trainer, run
from model.training.trials import Given, chamfer, checkpoint_of, fitted, step_seconds

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = "[base]\n[bounded]\ntraining.code_bound = 0.1\n[short]\ndecoder.code_length = 2\n[twin]\n"


@pytest.fixture
def arguments(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a command that compares four variants, 20 steps each."""
    monkeypatch.setattr(trials, "CHAMFER_POINTS", 2000)
    write_originals(folder.parent / "data")
    (folder / "variants.toml").write_text(VARIANTS)
    arguments = [str(folder), str(folder / "variants.toml"), "--data", str(folder.parent / "data")]
    return [*arguments, "--device", "cpu", "--steps", "20", "--output", str(folder / "ablation.jsonl")]


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "ablation.jsonl").read_text().splitlines()]


def test_a_variant_is_the_recipe_with_its_settings_changed(folder: Path) -> None:
    base = load_recipe(folder)
    made = variants_of(base, {"base": {}, "wide": {"decoder": {"width": 48}, "training": {"seed": 1}}})
    assert made["base"] == base
    assert made["wide"].decoder == base.decoder.model_copy(update={"width": 48})
    assert made["wide"].training == base.training.model_copy(update={"seed": 1})


def test_a_variant_may_not_change_the_samples_that_all_share(folder: Path) -> None:
    with pytest.raises(ValueError, match="samples"):
        variants_of(load_recipe(folder), {"more": {"samples": {"points": 7}}})


def test_every_switch_is_one_that_the_recipe_of_chairs_does_not_have() -> None:
    base = load_recipe(ROOT / "checkpoints" / "chairs")
    made = variants_of(base, chosen(SWITCHES, None))
    assert made.pop("base") == base
    assert len({recipe.model_dump_json() for recipe in [base, *made.values()]}) == len(made) + 1


def test_every_variant_gets_a_line_at_once_and_only_once(
    folder: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablation.main([*arguments, "--rows", "base,bounded"]) == 0
    assert [line["variant"] for line in lines(folder)] == ["base", "bounded"]
    for line in lines(folder):
        assert line["steps"] == 20 and line["samples"] == 20 * 2 * 32
        assert line["errors"].keys() == line["chamfers"].keys() == {"sphere_0.65"}
    assert lines(folder)[0]["errors"] != lines(folder)[1]["errors"]
    capsys.readouterr()
    assert ablation.main([*arguments, "--rows", "bounded,base"]) == 0  # both are known
    assert len(lines(folder)) == 2
    table = capsys.readouterr().out.splitlines()
    assert len({row.count("|") for row in table}) == 1
    assert [row.split("|")[1:3] for row in table[2:]] == [
        [" bounded ", " `code_bound = 0.1` "],
        [" base ", "  "],
    ]


def test_a_variant_that_stops_learning_is_judged_too(
    folder: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "variants.toml").write_text("[wild]\ntraining.decoder_rate = 10.0\n[base]\n")
    assert ablation.main(arguments) == 0
    wild, base = lines(folder)
    assert "wild: nothing is learnt any more" in capsys.readouterr().err
    assert wild["chamfer_median"] > base["chamfer_median"]
    assert wild["error"] > base["error"]


def test_variants_in_processes_side_by_side_do_not_disturb_each_other(
    folder: Path, arguments: list[str]
) -> None:
    assert ablation.main([*arguments, "--rows", "base,twin", "--jobs", "2"]) == 0
    base, twin = lines(folder)
    assert {base["variant"], twin["variant"]} == {"base", "twin"}
    assert base["beside"] == twin["beside"] == 2
    assert all(base[figure] == twin[figure] for figure in ("loss", "errors", "chamfers", "known_median"))


def test_what_is_not_begun_in_time_is_left_to_the_next_run(
    folder: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablation.main([*arguments, "--minutes", "0"]) == 0
    assert not (folder / "ablation.jsonl").exists()
    assert "4 were not begun" in capsys.readouterr().err
    assert ablation.main([*arguments, "--rows", "short"]) == 0
    assert [line["variant"] for line in lines(folder)] == ["short"]


@pytest.mark.parametrize(("more", "why"), [(["--rows", "none"], "none"), ([], "model.training.sources")])
def test_what_is_missing_is_named(
    folder: Path, more: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "variants.toml").write_text(VARIANTS)
    data = str(folder.parent / "data")
    assert ablation.main([str(folder), str(folder / "variants.toml"), "--data", data, *more]) == 1
    assert why in capsys.readouterr().err


def test_training_lowers_the_error_of_unseen_shapes(folder: Path) -> None:
    """From that of an untrained network, to one well below the distances themselves."""
    errors = []
    file = folder.parent / "data" / "samples" / "tiny" / "SdfSamples" / "pack" / "s" / "sphere_0.65.npz"
    for steps in (1, 150):
        settings = TINY_RECIPE.training.model_copy(update={"steps": steps})
        trainer = Trainer(TINY_RECIPE.model_copy(update={"training": settings}), tiny_samples(2000), "cpu")
        list(run(trainer))
        errors.append(fitted(checkpoint_of(trainer), file)[1])
    assert errors[1] < 0.3 * errors[0]


@pytest.mark.parametrize("radius", [0.5, 0.8])
def test_the_chamfer_distance_is_that_of_the_two_surfaces(
    radius: float, tiny: Checkpoint, tmp_path: Path
) -> None:
    """Two spheres around the origin: twice the square of the difference of their radii."""
    trimesh.creation.icosphere(4).export(tmp_path / "ball.ply")  # in the unit-ball frame of radius 1 / 1.03
    code = tiny.codes[tiny.shapes.index(f"sphere_{radius}")]
    found = chamfer(tiny, code, tmp_path / "ball.ply")
    assert found == pytest.approx(2000 * (1 / 1.03 - radius) ** 2, rel=0.15)


def test_the_probe_is_longer_for_a_longer_step(folder: Path) -> None:
    recipe = load_recipe(folder)
    given = Given("cpu", tiny_samples(600), {}, {})
    large = recipe.model_copy(
        update={"training": recipe.training.model_copy(update={"points_per_shape": 8192})}
    )
    assert step_seconds(recipe, given) < 0.5 * step_seconds(large, given)


def test_a_time_is_as_many_steps_as_it_holds(
    folder: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "step_seconds", lambda recipe, of: 0.01)
    at = arguments.index("--steps")
    arguments[at : at + 2] = ["--seconds", "0.3", "--rows", "base"]
    assert ablation.main(arguments) == 0
    assert [(line["steps"], line["step_ms"]) for line in lines(folder)] == [(30, 10)]
