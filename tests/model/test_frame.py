"""Frames: maps that compose and invert, and the canonical ball."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from model.frame import BALL_RADIUS, UP_AXES, Normalization, Similarity, normalization_of, upright

AXES = {"x": np.array([1.0, 0, 0]), "y": np.array([0, 1.0, 0]), "z": np.array([0, 0, 1.0])}


def similarity(seed: int) -> Similarity:
    rng = np.random.default_rng(seed)
    rotation = Rotation.random(rng=rng).as_matrix()
    return Similarity(float(np.exp(rng.normal())), rotation, 10 * rng.normal(size=3))


def cloud(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(50, 3))


def homogeneous(points: np.ndarray) -> np.ndarray:
    return np.column_stack([points, np.ones(len(points))])


def test_a_similarity_and_its_inverse_lead_back() -> None:
    there = similarity(0)
    assert np.allclose(there.inverse().apply(there.apply(cloud())), cloud())
    assert np.allclose(there.apply(there.inverse().apply(cloud())), cloud())


def test_after_applies_the_other_map_first() -> None:
    first, second = similarity(1), similarity(2)
    assert np.allclose(second.after(first).apply(cloud()), second.apply(first.apply(cloud())))


def test_the_matrix_is_the_same_map_and_composes_as_matrices_do() -> None:
    first, second = similarity(3), similarity(4)
    assert np.allclose((homogeneous(cloud()) @ first.matrix().T)[:, :3], first.apply(cloud()))
    assert np.allclose(second.after(first).matrix(), second.matrix() @ first.matrix())
    assert np.allclose(first.inverse().matrix(), np.linalg.inv(first.matrix()))


def test_directions_turn_without_moving_or_stretching() -> None:
    way = similarity(5)
    a, b = cloud(6), cloud(7)
    assert np.allclose(way.turn(a - b), (way.apply(a) - way.apply(b)) / way.scale)


@pytest.mark.parametrize("up", UP_AXES)
def test_upright_is_a_rotation_that_turns_the_axis_to_y(up: str) -> None:
    rotation = upright(up)
    sign = 1 if up[0] == "+" else -1
    assert np.allclose(rotation @ rotation.T, np.eye(3))
    assert np.isclose(np.linalg.det(rotation), 1)
    assert np.allclose(rotation @ (sign * AXES[up[1]]), AXES["y"])


def test_what_a_depth_camera_sees_faces_the_front() -> None:
    """A camera looks along its +z with y down; the side that it sees must face the canonical front, +z."""
    towards_camera = np.array([0.0, 0.0, -1.0])
    assert np.allclose(upright("-y") @ towards_camera, AXES["z"])


@pytest.mark.parametrize("word", ["y", "up", "", "+Y", "auto"])
def test_another_word_for_up_is_refused_with_the_choice(word: str) -> None:
    with pytest.raises(ValueError, match=r"\+y, -y, \+z"):
        upright(word)


@pytest.mark.parametrize("up", UP_AXES)
@pytest.mark.parametrize("length", [1.0, 300.0])
def test_up_as_a_vector_is_up_as_a_word(up: str, length: float) -> None:
    vector = length * (1 if up[0] == "+" else -1) * AXES[up[1]]
    assert np.allclose(upright(vector), upright(up))
    assert np.allclose(upright(vector.tolist()), upright(up))


@pytest.mark.parametrize("seed", range(20))
def test_any_vector_is_turned_to_y_by_a_rotation(seed: int) -> None:
    up = np.random.default_rng(seed).normal(size=3)
    rotation = upright(up)
    assert np.allclose(rotation @ rotation.T, np.eye(3))
    assert np.isclose(np.linalg.det(rotation), 1)
    assert np.allclose(rotation @ up, np.linalg.norm(up) * AXES["y"])


@pytest.mark.parametrize("up", UP_AXES)
def test_a_vector_near_an_axis_is_turned_by_no_more_than_it_is_off(up: str) -> None:
    axis = (1 if up[0] == "+" else -1) * AXES[up[1]]
    for seed in range(5):
        near = axis + 0.1 * np.random.default_rng(seed).normal(size=3)
        off = np.arccos(near @ axis / np.linalg.norm(near))
        turn = Rotation.from_matrix(upright(near) @ upright(up).T).magnitude()
        assert np.isclose(turn, off, atol=1e-9)


@pytest.mark.parametrize("up", [[0, 0, 0], [1, 2], [np.nan, 0, 1], [np.inf, 0, 0], [[0, 1, 0]], 1.0])
def test_what_is_no_direction_is_refused(up: object) -> None:
    with pytest.raises(ValueError, match="three numbers"):
        upright(up)


def test_normalisation_centres_the_box_and_fills_the_ball() -> None:
    raw = cloud() * [1, 20, 3] + [1000, -5, 7]
    normalised = normalization_of(raw).apply(raw)
    assert np.allclose(normalised.min(axis=0), -normalised.max(axis=0))
    assert np.isclose(np.linalg.norm(normalised, axis=1).max(), BALL_RADIUS)


def test_normalisation_inverts_and_follows_the_convention_of_deepsdf() -> None:
    way = Normalization(offset=np.array([1.0, 2.0, 3.0]), scale=0.5)
    assert np.allclose(way.apply(np.array([[1.0, 0, 0]])), [[1.0, 1.0, 1.5]])
    assert np.allclose(way.invert(way.apply(cloud())), cloud())


def test_a_point_has_no_normalisation() -> None:
    with pytest.raises(ValueError, match="no extent"):
        normalization_of(np.ones((5, 3)))
