"""Recipes: read strictly, so that a misspelt setting is an error and not a silent default."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from model.decoder import Decoder
from model.training.recipe import DecoderRecipe, Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[2]
HEAD = 'name = "a"\ndescription = "b"\ncategory = "c"\n'


def read(folder: Path, text: str) -> Recipe:
    (folder / "recipe.toml").write_text(HEAD + text)
    return load_recipe(folder)


def test_what_is_written_is_set_and_the_rest_is_default(tmp_path: Path) -> None:
    recipe = read(tmp_path, "[decoder]\nwidth = 128\n[training]\nsteps = 7\n")
    assert (recipe.decoder.width, recipe.training.steps) == (128, 7)
    assert recipe.decoder.depth == DecoderRecipe().depth
    assert recipe.samples == Recipe(name="a", description="b", category="c").samples


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("colour = 1\n", "colour"),
        ("[decoder]\nwdith = 64\n", "wdith"),
        ("[training]\nlearning_rate = 1e-3\n", "learning_rate"),
        ("[trainning]\nsteps = 3\n", "trainning"),
        ("[training]\nsteps = 0\n", "steps"),
        ("[samples]\nskin = -0.1\n", "skin"),
        ("[decoder]\ndropout = 1.0\n", "dropout"),
        (
            "[decoder]\npoints_in_all = true\n"
            "[training]\ncurriculum = [{until = 0.5, depth = 6}, {until = 1.0}]\n",
            "points_in_all",
        ),
        ("[decoder]\nskip_layer = 9\n", "skip_layer"),
        ("[decoder]\nskip_layer = [0, 4]\n", "skip_layer"),
        ("[decoder]\nlayer_norm = [8]\n", "layer_norm"),
        ("[decoder]\nwidth = 97\n", "width 97 must exceed the 97"),
        ("[decoder]\nwidth = 33\nskip_layer = []\npoints_in_all = true\n", "width 33 must exceed the 33"),
        ("[decoder]\ntanh = 3\n", "tanh"),
        ('[samples]\nskin = 0\nsource = "data"\n', "source and train_split"),
        ('[samples]\nsource = "data"\ntrain_split = "train.json"\n', "give the skin"),
        ('[training]\nsteps = "many"\n', "steps"),
    ],
)
def test_an_unknown_or_impossible_setting_is_refused_by_name(text: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=named):
        read(tmp_path, text)


def test_a_recipe_without_a_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('description = "b"\n')
    with pytest.raises(ValidationError, match="name"):
        load_recipe(tmp_path)


def test_a_recipe_cannot_be_changed_after_it_was_read(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        read(tmp_path, "").training.steps = 5


def test_the_defaults_build_a_decoder_of_their_own_size() -> None:
    recipe = DecoderRecipe()
    decoder = Decoder(recipe.spec())
    assert decoder.spec.to_dict() == recipe.model_dump()


def test_what_the_network_may_look_like_is_read(tmp_path: Path) -> None:
    text = "skip_layer = [2, 5]\nlayer_norm = [0, 1]\npoints_in_all = true\ntanh = true\n"
    spec = read(tmp_path, f"[decoder]\n{text}").decoder.spec()
    assert (spec.fed, tuple(spec.layer_norm), spec.points_in_all, spec.tanh) == ((0, 2, 5), (0, 1), True, 1)


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in ROOT.glob("checkpoints/*/recipe.toml")), ids=str
)
def test_every_recipe_of_this_repository_is_valid_and_named_as_its_folder(folder: Path) -> None:
    recipe = load_recipe(folder)
    assert recipe.name == folder.name
    Decoder(recipe.decoder.spec())
