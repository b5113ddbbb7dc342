"""Codes beside completion: whole shapes to codes and back, the way between two, and looking up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from shapes import TINY_SOLIDS, SignedDistance, ball_points, box, surface_points
from torch import Tensor

from model.checkpoint import Checkpoint
from model.codes import between, decode, encode_rows, encode_samples, nearest_codes, nearest_shapes
from model.problems import rows_of_samples

UNSEEN = box(0.42, 0.55, 0.5)  # between the trained boxes


def samples(solid: SignedDistance, count: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3), most of them near the surface, and a solid's exact distances (N,) there."""
    rng = np.random.default_rng(seed)
    near = surface_points(solid, count, rng) + 0.05 * rng.normal(size=(count, 3))
    points = np.concatenate([near, ball_points(count // 4, rng)])
    return points, solid(points)


def field_error(checkpoint: Checkpoint, code: Tensor, solid: SignedDistance, skin: float = 0.0) -> float:
    """Mean clamped distance between a code's field and a solid's, at points that no fit has seen."""
    points, distances = samples(solid, 1500, seed=9)
    delta = checkpoint.clamping_distance
    field = checkpoint.decoder(code[None], torch.from_numpy(points).float()[None])[0]
    true = torch.from_numpy(distances).float() - skin
    return float((field.clamp(-delta, delta) - true.clamp(-delta, delta)).abs().mean())


@pytest.mark.parametrize("name", ["sphere_0.65", "box_0.35_0.65"])
def test_a_trained_shape_is_encoded_about_as_well_as_training_did(name: str, tiny: Checkpoint) -> None:
    code = encode_samples(tiny, *samples(TINY_SOLIDS[name]))
    trained = tiny.codes[tiny.shapes.index(name)]
    assert field_error(tiny, code, TINY_SOLIDS[name]) < 1.1 * field_error(tiny, trained, TINY_SOLIDS[name])


def test_a_shape_between_the_trained_ones_is_encoded_nearer_than_any_of_them(tiny: Checkpoint) -> None:
    errors = [field_error(tiny, code, UNSEEN) for code in tiny.codes]
    error = field_error(tiny, encode_samples(tiny, *samples(UNSEEN)), UNSEEN)
    assert error < 0.6 * min(errors) and error < 0.01


def test_encoding_adds_the_skin_of_the_checkpoint(tiny: Checkpoint) -> None:
    """A checkpoint of thickened shapes is given distances to the shapes themselves."""
    thick = replace(tiny, card={**tiny.card, "skin": 0.03})
    solid = TINY_SOLIDS["sphere_0.65"]
    codes = [encode_samples(checkpoint, *samples(solid)) for checkpoint in (tiny, thick)]
    assert field_error(tiny, codes[1], solid, skin=0.03) < 0.008
    assert field_error(tiny, codes[0], solid) < 0.008
    assert field_error(tiny, codes[1], solid) > 0.02


def test_encoding_repeats_with_its_seed_and_looks_at_as_many_samples_as_it_is_told(tiny: Checkpoint) -> None:
    points, distances = samples(UNSEEN)
    one, same, other = (encode_samples(tiny, points, distances, 500, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert field_error(tiny, one, UNSEEN) < 0.012


def test_rows_and_samples_of_one_shape_have_one_code(tiny: Checkpoint) -> None:
    points, distances = samples(UNSEEN, 500)
    as_tensors = (torch.from_numpy(part).float()[None] for part in (points, distances))
    rows = rows_of_samples(*as_tensors, tiny.clamping_distance)
    assert torch.allclose(encode_rows(tiny, rows), encode_samples(tiny, points, distances), atol=0.02)


@pytest.mark.parametrize("name", TINY_SOLIDS)
def test_the_shape_itself_is_the_nearest_to_its_code(name: str, tiny: Checkpoint) -> None:
    near = nearest_shapes(tiny, tiny.codes[tiny.shapes.index(name)])
    assert near[0].shape == name and near[0].distance == pytest.approx(0, abs=1e-5)
    distances = [one.distance for one in near]
    assert distances == sorted(distances) and len(near) == 5
    assert len({one.shape for one in near}) == 5


def test_two_shapes_are_about_as_far_apart_as_two_draws_of_the_prior(tiny: Checkpoint) -> None:
    """√2 root mean squared: the difference of two independent codes has twice the variance."""
    distances = [one.distance for code in tiny.codes for one in nearest_shapes(tiny, code, 99)]
    pairs = [distance for distance in distances if distance > 1e-5]
    assert np.sqrt(np.mean(np.square(pairs))) == pytest.approx(2**0.5, abs=0.3)


def test_a_variant_is_never_named(tiny: Checkpoint) -> None:
    names = [f"{name}__v01" if index % 2 else name for index, name in enumerate(tiny.shapes)]
    mixed = replace(tiny, shapes=names)
    near = nearest_shapes(mixed, mixed.codes[1], 99)
    assert [one.shape for one in near if "__v" in one.shape] == []
    assert len(near) == len(mixed.own_shapes)


@pytest.mark.parametrize("name", TINY_SOLIDS)
def test_samples_of_a_trained_shape_find_its_code(name: str, tiny: Checkpoint) -> None:
    points, distances = (torch.from_numpy(part).float()[None] for part in samples(TINY_SOLIDS[name], 800))
    ranked = nearest_codes(tiny, rows_of_samples(points, distances, tiny.clamping_distance))
    assert ranked.shape == tiny.codes.shape
    assert torch.equal(ranked[0], tiny.codes[tiny.shapes.index(name)])


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_way_between_two_codes_has_its_ends_and_even_steps(count: int) -> None:
    first, last = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    way = between(first, last, count)
    assert way.shape == (count, 5)
    assert torch.equal(way[0], first) and torch.equal(way[-1], last)
    assert torch.allclose(way.diff(dim=0), ((last - first) / (count - 1)).expand(count - 1, 5), atol=1e-6)
    assert torch.allclose(between(last, first, count), way.flip(0), atol=1e-6)


def test_between_two_balls_are_balls_of_growing_size(tiny: Checkpoint) -> None:
    small, large = (tiny.codes[tiny.shapes.index(f"sphere_{radius}")] for radius in (0.5, 0.8))
    volumes = []
    for code in between(small, large, 4):
        mesh = decode(tiny, code, 40)
        body = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
        assert body.is_watertight and body.body_count == 1
        volumes.append(body.volume)
    assert volumes == sorted(volumes)
    assert np.allclose([volumes[0], volumes[-1]], 4 / 3 * np.pi * np.array([0.5, 0.8]) ** 3, rtol=0.12)


@pytest.mark.parametrize("name", ["sphere_0.8", "box_0.5_0.35"])
def test_a_code_decodes_to_its_shape(name: str, tiny: Checkpoint) -> None:
    mesh = decode(tiny, tiny.codes[tiny.shapes.index(name)], 64)
    assert np.abs(TINY_SOLIDS[name](mesh.vertices.astype(float))).mean() < 0.02
