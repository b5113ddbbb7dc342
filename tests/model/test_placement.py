"""Placements and their moves, against SciPy's rotations, autograd and the similarities of `model.frame`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from model.frame import Similarity
from model.placement import (
    FREEDOM,
    MOVE_SIZE,
    ROTATION,
    Placements,
    by_outline,
    gradient_by_move,
    rotation_of,
    rotations_all_around,
    vector_of,
    yaws,
)
from model.starts import ROTATIONS


def rotation_vectors(count: int = 200, largest: float = 3.1, seed: int = 0) -> Tensor:
    """(count, 3) rotation vectors of every length up to `largest`, double precision."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    lengths = torch.linspace(0, largest, count, dtype=torch.float64)[:, None]
    return lengths * torch.nn.functional.normalize(directions, dim=1)


def some_placements(count: int = 6, seed: int = 1) -> Placements:
    """Any place, size and turn, double precision."""
    generator = torch.Generator().manual_seed(seed)
    scale, *translation = torch.randn(4, count, generator=generator, dtype=torch.float64)
    return Placements(0.5 * scale, rotation_of(rotation_vectors(count)), torch.stack(translation, dim=1))


def some_moves(count: int = 6, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.6 * torch.randn(count, MOVE_SIZE, generator=generator, dtype=torch.float64)


def some_points(count: int = 6, seed: int = 3) -> Tensor:
    return torch.randn(count, 20, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same(one: Placements, other: Placements) -> None:
    for name in ("log_scale", "rotation", "translation"):
        assert torch.allclose(getattr(one, name), getattr(other, name), atol=1e-9), name


def test_rotation_vectors_are_those_of_scipy_both_ways() -> None:
    vectors = rotation_vectors()
    trusted = Rotation.from_rotvec(vectors.numpy())
    assert np.allclose(rotation_of(vectors), trusted.as_matrix(), atol=1e-12)
    assert np.allclose(vector_of(torch.from_numpy(trusted.as_matrix())), trusted.as_rotvec(), atol=1e-9)


def test_a_small_rotation_vector_survives_single_precision() -> None:
    vectors = rotation_vectors(50, largest=1e-3).float()
    assert torch.allclose(vector_of(rotation_of(vectors)), vectors, atol=1e-6)


def test_since_tells_the_move_that_was_made() -> None:
    start, moves = some_placements(), some_moves()
    assert torch.allclose(start.moved(moves).since(start), moves, atol=1e-9)


def test_the_move_since_a_start_leads_from_it_to_here() -> None:
    start, here = some_placements(seed=4), some_placements(seed=5)
    assert_same(start.moved(here.since(start)), here)


def test_no_move_leads_nowhere() -> None:
    start = some_placements()
    assert_same(start.moved(torch.zeros(6, MOVE_SIZE, dtype=torch.float64)), start)
    assert not start.since(start).abs().gt(1e-9).any()


def test_the_identity_moves_nothing() -> None:
    points = some_points(3).float()
    assert torch.equal(Placements.identity(3).apply(points), points)
    assert torch.equal(Placements.identity(3).turned(points), points)


def test_a_placement_is_the_similarity_of_its_numbers() -> None:
    placements, points = some_placements(), some_points()
    for index in range(len(placements)):
        similarity = placements.similarity(index)
        assert np.allclose(similarity.apply(points[index]), placements.apply(points)[index])
        assert np.allclose(similarity.turn(points[index]), placements.turned(points)[index])
        assert np.allclose(similarity.inverse().apply(placements.apply(points)[index]), points[index])


def test_a_placement_after_a_similarity_applies_the_similarity_first() -> None:
    """As a report composes the way from a scan to the canonical frame."""
    placements, points = some_placements(), some_points()
    first = Similarity(3.0, Rotation.from_rotvec([0.1, -0.7, 0.4]).as_matrix(), np.array([5.0, 1.0, -2.0]))
    between = torch.from_numpy(np.stack([first.apply(part) for part in points.numpy()]))
    for index in range(len(placements)):
        composed = placements.similarity(index).after(first)
        assert np.allclose(composed.apply(points[index]), placements.apply(between)[index])


def test_a_similarity_is_orthogonal_however_many_moves_it_took() -> None:
    placements = Placements.identity(1)
    for seed in range(300):
        placements = placements.moved(some_moves(1, seed).float())
    rotation = placements.similarity(0).rotation
    assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-14)
    assert np.allclose(rotation, placements.rotation[0], atol=1e-4)


def test_turning_and_scaling_leave_the_origin_of_the_observation_where_it_is() -> None:
    moves, origin = some_moves(), torch.zeros(6, 1, 3, dtype=torch.float64)
    moves[:, 1:4] = 0
    start = some_placements()
    assert torch.allclose(start.moved(moves).apply(origin), start.apply(origin))


def a_field(points: Tensor) -> Tensor:
    """Something smooth of (B, K, 3) points."""
    return (points * points.new_tensor([1.3, 0.7, -0.9])).sin().prod(dim=-1) + points.square().sum(dim=-1)


def test_the_gradient_by_a_move_is_that_of_autograd_and_of_differences() -> None:
    placements, points, offsets = some_placements(), some_points(), 0.1 * some_points(seed=6)

    def field(moves: Tensor) -> Tensor:
        there = placements.moved(moves)
        return a_field(there.apply(points) + there.turned(offsets))

    nowhere = torch.zeros(6, MOVE_SIZE, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda moves: field(moves).sum(dim=0), nowhere)
    steps = 1e-5 * torch.eye(MOVE_SIZE, dtype=torch.float64)
    slopes = torch.stack([(field(nowhere + s) - field(nowhere - s)) / 2e-5 for s in steps], dim=-1)
    placed = (placements.apply(points) + placements.turned(offsets)).requires_grad_()
    (by_point,) = torch.autograd.grad(a_field(placed).sum(), placed)
    scaled = placements.apply(points) - placements.translation[:, None]
    exact = gradient_by_move(by_point, scaled, placements.turned(offsets))
    assert torch.allclose(exact, jacobian.transpose(0, 1), atol=1e-9)
    assert torch.allclose(exact, slopes, atol=1e-5)


@pytest.mark.parametrize(
    ("pose", "stays"),
    [
        ("known", ["size", "place", "up", "front"]),
        ("canonical", ["up", "front"]),
        ("upright", ["up"]),
        ("free", []),
    ],
)
def test_a_pose_mode_holds_what_it_says(pose: str, stays: list[str]) -> None:
    up, front = (torch.tensor(axis, dtype=torch.float64).expand(6, 1, 3) for axis in ([0, 1, 0], [0, 0, 1]))
    start = some_placements()
    there = start.moved(torch.tensor(FREEDOM[pose], dtype=torch.float64) * some_moves())
    turn = there.rotation @ start.rotation.transpose(1, 2)
    held = {
        "size": torch.equal(there.scale, start.scale),
        "place": torch.equal(there.translation, start.translation),
        "up": torch.allclose(up @ turn.transpose(1, 2), up),
        "front": torch.allclose(front @ turn.transpose(1, 2), front),
    }
    assert [name for name, held in held.items() if held] == stays


def test_some_joined_placements_are_the_ones_asked_for() -> None:
    one, other = some_placements(seed=7), some_placements(seed=8)
    assert len(one) == 6
    both = Placements.joined([one, other])
    assert_same(both.of(torch.arange(6, 12)), other)
    assert_same(both.of(torch.arange(6)), one)


@pytest.mark.parametrize("count", [1, 4, 24])
def test_yaws_go_once_around_the_vertical_in_equal_steps(count: int) -> None:
    steps = np.outer(np.arange(count) * 2 * np.pi / count, [0, 1, 0])
    trusted = Rotation.from_rotvec(steps).as_matrix()
    assert np.allclose(yaws(count), trusted, atol=1e-6)


def angles_to_nearest(rotations: Tensor, others: Tensor) -> Tensor:
    """The angle (N,) from each of (N, 3, 3) rotations to the nearest of the others, radians."""
    trace = torch.einsum("nij,mij->nm", rotations.double(), others.double())
    return ((trace - 1) / 2).clamp(-1, 1).acos().amin(dim=1)


def random_rotations(count: int, seed: int) -> Tensor:
    return torch.from_numpy(Rotation.random(count, rng=np.random.default_rng(seed)).as_matrix())


def ball_angle(share: float) -> float:
    """The angle of a ball of rotations that holds a share of all: its volume is (a − sin a) / π."""
    angles = np.linspace(0, np.pi, 100_000)
    return float(np.interp(share, (angles - np.sin(angles)) / np.pi, angles))


@pytest.mark.parametrize("count", [60, ROTATIONS, 1500])
def test_rotations_all_around_leave_no_hole(count: int) -> None:
    """No cover of all turns by so many balls has smaller ones than `ball_angle`; twice that is little."""
    rotations = rotations_all_around(count)
    eye = torch.eye(3).expand(count, 3, 3)
    assert torch.allclose(rotations @ rotations.transpose(1, 2), eye, atol=1e-5)
    assert torch.allclose(torch.linalg.det(rotations), torch.ones(count), atol=1e-5)
    tried = random_rotations(5000, seed=1)
    hole = angles_to_nearest(tried, rotations).max()
    assert hole < 2 * ball_angle(1 / count)
    assert hole < angles_to_nearest(tried, random_rotations(count, seed=2)).max()


def test_no_two_rotations_all_around_are_nearly_the_same() -> None:
    rotations = rotations_all_around(ROTATIONS)
    apart = torch.stack(
        [
            angles_to_nearest(rotations[i : i + 1], torch.cat([rotations[:i], rotations[i + 1 :]]))[0]
            for i in range(0, ROTATIONS, 7)
        ]
    )
    assert apart.min() > 0.5 * ball_angle(1 / ROTATIONS)


def test_a_move_turns_about_the_canonical_axes() -> None:
    """A quarter turn about y takes what a placement had at +x to −z, whatever it did before."""
    quarter = torch.zeros(6, MOVE_SIZE, dtype=torch.float64)
    quarter[:, ROTATION] = torch.tensor([0, torch.pi / 2, 0], dtype=torch.float64)
    start = some_placements()
    x = start.rotation.transpose(1, 2) @ torch.tensor([1.0, 0, 0], dtype=torch.float64)
    there = start.moved(quarter).turned(x[:, None])
    assert torch.allclose(there, torch.tensor([0.0, 0, -1], dtype=torch.float64).expand(6, 1, 3), atol=1e-9)


def test_what_is_applied_can_be_inverted() -> None:
    placements = some_placements()
    points = torch.randn(len(placements), 20, 3, dtype=torch.float64)
    assert torch.allclose(placements.inverted(placements.apply(points)), points)


def test_a_scan_of_a_whole_side_is_expected_where_it_was_seen() -> None:
    """The surface of a box in its ball, scaled, turned about the vertical and shifted; told the turn."""
    generator = torch.Generator().manual_seed(0)
    half = torch.tensor([0.5, 0.7, 0.4])
    half = half / half.norm() / 1.03
    corners = half * (2 * torch.rand(4000, 3, generator=generator) - 1)
    surface = corners.clone()
    surface[:, 2] = half[2]  # what is seen from the front
    surface[:400, :2] = corners[:400, :2].sign() * half[:2]
    rotation = yaws(5)[1:2]
    scan = (surface @ rotation[0]) / 0.4 + torch.tensor([3.0, -1.0, 2.0])
    found = by_outline(scan, rotation).placements
    back = found.apply(scan[None])[0]
    size = surface[:, :2].abs().amax(dim=0)
    assert torch.allclose(back[:, :2].abs().amax(dim=0), size, atol=0.12)
    assert torch.allclose(found.log_scale, torch.tensor([0.4]).log(), atol=0.15)


def test_expected_placements_follow_the_scan() -> None:
    generator = torch.Generator().manual_seed(1)
    scan, rotations = torch.randn(500, 3, generator=generator), yaws(7)
    shift, factor = torch.tensor([0.3, -2.0, 5.0]), 4.0
    here = by_outline(scan, rotations).placements
    there = by_outline(factor * scan + shift, rotations).placements
    points = scan.expand(7, -1, -1)
    assert torch.allclose(here.apply(points), there.apply(factor * points + shift), atol=1e-4)
