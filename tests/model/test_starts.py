"""Start shapes on grids, and the hypotheses tried on them: exact fields, and boxes whose place is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator
from seen import about_y, half_seen, moved, yaw_of
from shapes import TINY_SOLIDS, box, sphere, surface_points
from torch import Tensor

from model.batch import alone
from model.checkpoint import Checkpoint
from model.fitting import Effort
from model.frame import Similarity
from model.observation import Observation, RowWeights, observe, rows_of
from model.placement import by_outline, rotation_of
from model.problems import FitSettings
from model.starts import (
    FARTHEST,
    GRID_CELLS,
    HALF_WIDTH,
    SCALE_SHARES,
    YAWS,
    Hypotheses,
    StartShapes,
    grids_of,
    hypotheses,
    screening,
    turns,
)

CPU = torch.device("cpu")
CELL = 2 * HALF_WIDTH / GRID_CELLS
STEP = FARTHEST / 127
AXIS = torch.linspace(-HALF_WIDTH, HALF_WIDTH, GRID_CELLS + 1)


def start_shapes(grids: Tensor) -> StartShapes:
    count = len(grids)
    whole = torch.tensor([[-1.0, -1, -1], [1, 1, 1]]).expand(count, 2, 3)
    return StartShapes(torch.zeros(count, 4), whole, grids)


def affine_grids() -> tuple[Tensor, Tensor, Tensor]:
    """Grids of affine fields whose corners are whole int8 steps; slopes (S, 3) a cell, and offsets (S,)."""
    slopes, offsets = torch.tensor([[1, 2, -1], [0, -3, 0], [-1, 1, 1]]), torch.tensor([-20, 50, 3])
    corners = torch.stack(torch.meshgrid(*3 * [torch.arange(GRID_CELLS + 1)], indexing="ij"), dim=-1)
    grids = (corners[None] * slopes[:, None, None, None]).sum(dim=-1) + offsets[:, None, None, None]
    return grids.to(torch.int8), slopes.float(), offsets.float()


def points_in_grid(batch: int, count: int = 300, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return HALF_WIDTH * (2 * torch.rand(batch, count, 3, generator=generator) - 1)


def test_an_affine_field_is_looked_up_exactly_with_its_gradient() -> None:
    grids, slopes, offsets = affine_grids()
    codes, points = torch.tensor([[2.0], [0.0], [1.0], [0.0]]), points_in_grid(4)
    which = codes[:, 0].long()
    in_cells = (points + HALF_WIDTH) / CELL
    expected = STEP * ((in_cells * slopes[which][:, None]).sum(dim=-1) + offsets[which][:, None])
    shapes = start_shapes(grids)
    values, by_code, by_point = shapes.distance_and_gradients(codes, points)
    assert torch.allclose(shapes(codes, points), expected, atol=1e-4)
    assert torch.allclose(values, expected, atol=1e-4)
    assert torch.allclose(by_point, (STEP / CELL * slopes[which])[:, None].expand(-1, 300, -1), atol=1e-4)
    assert by_code.shape == (4, 300, 1) and not by_code.any()


def random_grids(count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = (count, *3 * [GRID_CELLS + 1])
    return torch.randint(-127, 128, size, generator=generator).to(torch.int8)


def test_any_grid_is_looked_up_as_scipy_does_it() -> None:
    grids, points = random_grids(), points_in_grid(3)
    codes = torch.tensor([[1.0], [2.0], [0.0]])
    found = start_shapes(grids)(codes, points)
    for index, number in enumerate((1, 2, 0)):
        trusted = RegularGridInterpolator(3 * [AXIS.double().numpy()], grids[number].numpy() * STEP)
        # float32 places a point within 1e-6 of a cell, where the field jumps by a whole range.
        assert np.allclose(found[index], trusted(points[index].double().clamp(AXIS[0], AXIS[-1])), atol=1e-4)


def test_gradients_are_the_slopes_of_the_values() -> None:
    """Within a cell a trilinear field is linear along each axis, so that differences are exact."""
    generator = torch.Generator().manual_seed(1)
    cells = torch.randint(0, GRID_CELLS, (3, 200, 3), generator=generator)
    points = (cells + 0.2 + 0.6 * torch.rand(3, 200, 3, generator=generator)) * CELL - HALF_WIDTH
    shapes, codes = start_shapes(random_grids()), torch.tensor([[0.0], [1.0], [2.0]])
    _, _, by_point = shapes.distance_and_gradients(codes, points)
    step = 0.15 * CELL
    for axis in range(3):
        move = step * torch.eye(3)[axis]
        slope = (shapes(codes, points + move) - shapes(codes, points - move)) / (2 * step)
        assert torch.allclose(by_point[..., axis], slope, atol=1e-2)  # of slopes up to 15


def test_beyond_the_grid_the_field_is_that_at_its_border() -> None:
    shapes, codes = start_shapes(affine_grids()[0]), torch.zeros(1, 1)
    inside = points_in_grid(1)
    inside[..., 1] = HALF_WIDTH
    outside = inside.clone()
    outside[..., 1] = 1.7
    assert torch.allclose(shapes(codes, outside), shapes(codes, inside), atol=2 * STEP)


class ClampedSpheres:
    """A decoder whose code (1,) is a radius, and which says nothing beyond δ."""

    def __init__(self, delta: float) -> None:
        self.delta = delta

    def __call__(self, codes: Tensor, points: Tensor) -> Tensor:
        return (points.norm(dim=-1) - codes).clamp(-self.delta, self.delta)


@pytest.mark.parametrize("delta", [0.1, 0.2])
def test_the_grid_of_a_sphere_is_its_distance_near_and_about_it_far(delta: float) -> None:
    radii = torch.tensor([[0.4], [0.7], [0.95]])
    grids = grids_of(ClampedSpheres(delta), radii, delta).float() * STEP
    corners = torch.stack(torch.meshgrid(AXIS, AXIS, AXIS, indexing="ij"), dim=-1)
    exact = corners.norm(dim=-1)[None] - radii[:, :, None, None]
    near = exact.abs() < 0.9 * delta
    assert (grids - exact)[near].abs().max() <= STEP / 2 + 1e-6
    # Farther the distance goes on from a corner that is less than a cell's diagonal nearer.
    off = (grids - exact.clamp(-FARTHEST, FARTHEST))[~near].abs()
    assert off.max() <= CELL * 3**0.5 + STEP
    assert ((grids < 0) == (exact < 0))[exact.abs() > STEP].all()


def test_the_grids_of_a_checkpoint_are_its_decoders_fields(tiny: Checkpoint) -> None:
    starts, points = tiny.starts, points_in_grid(len(tiny.starts.codes), 2000)
    numbers = torch.arange(len(starts))[:, None].float()
    decoded = tiny.decoder(starts.codes, points)
    near = decoded.abs() < 0.5 * tiny.clamping_distance
    # Half a step of rounding, and the bend of edges within a cell.
    off = (starts(numbers, points) - decoded)[near].abs()
    assert off.mean() < 2 * STEP and off.max() < CELL


def test_shapes_that_are_spread_are_far_from_each_other(tiny: Checkpoint) -> None:
    starts = tiny.starts
    everything = starts.spread(len(starts))
    assert sorted(everything.tolist()) == list(range(len(starts)))
    assert starts.spread(4).tolist() == everything[:4].tolist()
    assert len(starts.spread(100)) == len(starts)
    names = [tiny.shapes[row] for row in starts.spread(3)]
    assert "sphere_0.95" in names  # the largest is the one that is most unlike the others
    grids = starts.grids.flatten(1).float()
    nearest_of = {count: _nearest_pair(grids[starts.spread(count)]) for count in (3, 6, len(starts))}
    assert nearest_of[3] > nearest_of[6] > nearest_of[len(starts)]


def _nearest_pair(features: Tensor) -> float:
    return float((torch.cdist(features, features) + 1e9 * torch.eye(len(features))).min())


def test_shapes_chosen_by_number_keep_their_numbers_order(tiny: Checkpoint) -> None:
    picks = torch.tensor([3, 0])
    some, points = tiny.starts.of(picks), points_in_grid(2)
    assert len(some) == 2
    own = some(torch.tensor([[0.0], [1.0]]), points)
    assert torch.equal(own, tiny.starts(picks[:, None].float(), points))


@pytest.mark.parametrize(("pose", "count"), [("canonical", 1), ("upright", YAWS)])
def test_a_pose_mode_tries_the_turns_that_it_frees(pose: str, count: int) -> None:
    rotations = turns(pose, CPU)
    assert len(rotations) == count
    assert torch.allclose(rotations[0], torch.eye(3))
    up = torch.tensor([0.0, 1, 0])
    assert torch.allclose(rotations @ up, up.expand(count, 3), atol=1e-6)


HALF_EXTENTS = np.array([0.6, 0.45, 0.3])
CUTS = {
    "whole": np.full((2, 3), [[-1.0], [1.0]]),
    "its left part": np.array([[-1, -1, -1], [-0.2, 1, 1]]),
    "its right part": np.array([[0.1, -1, -1], [1, 1, 1]]),
    "its middle": np.array([[-0.6, -1, -1], [0.6, 1, 1]]),
    "its upper front": np.array([[-1, -0.1, 0], [1, 1, 1]]),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("yaw", [0.0, 75.0, -142.0])
def test_some_hypothesis_is_near_where_the_scan_lies(cut: str, yaw: float) -> None:
    """A box of which an axis-aligned part was seen, in another size and place; any yaw is near one of 24."""
    points = surface_points(box(*HALF_EXTENTS), 8000, np.random.default_rng(0))
    low, high = CUTS[cut] * HALF_EXTENTS
    points = points[((points >= low - 1e-9) & (points <= high + 1e-9)).all(axis=1)]
    away = Similarity(1.7, about_y(yaw), np.array([0.2, -0.1, 0.3]))
    scan = torch.from_numpy(away.apply(points)).float()
    extents = torch.from_numpy(np.stack([-HALF_EXTENTS, HALF_EXTENTS])).float()[None]
    starts = StartShapes(torch.zeros(1, 4), extents, torch.zeros(1, 2, 2, 2, dtype=torch.int8))
    tried = hypotheses(starts, scan, turns("upright", CPU), torch.tensor([0]))
    placed = tried.placements.apply(scan[None, ::20].expand(len(tried), -1, -1))
    off = (placed - torch.from_numpy(points[::20]).float()).square().sum(dim=-1).mean(dim=-1).sqrt()
    # Half a step of the yaw alone moves the corners by 0.08.
    assert off.min() < 0.1


def test_hypotheses_are_every_shape_at_every_turn_size_and_place(tiny: Checkpoint) -> None:
    scan = torch.from_numpy(surface_points(sphere(1.0), 500, np.random.default_rng(0))).float()
    numbers, rotations = torch.tensor([4, 1]), turns("upright", CPU)
    tried = hypotheses(tiny.starts, scan, rotations, numbers)
    assert len(tried) == 2 * YAWS * len(SCALE_SHARES) * 18
    assert set(tried.origin.tolist()) == {4, 1} and set(tried.turn.tolist()) == set(range(YAWS))
    assert torch.equal(tried.placements.rotation, rotations[tried.turn])
    # Where the scan is no larger than the shape's bounding box it sticks out of it nowhere, else somewhere.
    bounds = tiny.starts.extents[tried.origin]
    placed = tried.placements.apply(scan.expand(len(tried), -1, -1))
    out = torch.maximum(placed.amax(dim=1) - bounds[:, 1], bounds[:, 0] - placed.amin(dim=1)).amax(dim=1)
    fits = torch.tensor([share <= 1 for share in SCALE_SHARES])
    by_scale = out.reshape(2 * YAWS, len(SCALE_SHARES), 18)
    assert by_scale[:, fits].max() < 0.02 < by_scale[:, ~fits].min()


BOX = "box_0.35_0.65"  # half extents 0.35, 0.65 and 0.5: each half turn about an axis is a symmetry


def scan_of_box(to_scan: Similarity) -> Observation:
    return observe(moved(half_seen(TINY_SOLIDS[BOX]), to_scan))


def screen(checkpoint: Checkpoint, observation: Observation, pose: str, kept: int = 96) -> Hypotheses:
    few, some = (
        rows_of(observation, counts, checkpoint.skin, RowWeights(), CPU, seed)
        for seed, counts in enumerate([(60, 36), (192, 96)])
    )
    surface = torch.from_numpy(observation.surface).float()
    expected = by_outline(surface, turns(pose, CPU))
    return alone(screening(checkpoint.starts, pose, few, some, surface, expected, FitSettings(), kept))


@pytest.mark.parametrize("yaw", [0.0, 50.0, 117.0, -80.0])
def test_screening_finds_the_yaw_of_a_box_modulo_its_symmetry(yaw: float, tiny: Checkpoint) -> None:
    to_scan = Similarity(2.5, about_y(yaw), np.array([1.0, 3.0, -2.0]))
    observation = scan_of_box(to_scan)
    found = screen(tiny, observation, "upright")
    way = found.placements.similarity(0).after(observation.from_scan).after(to_scan)
    assert tiny.shapes[tiny.own_shapes[int(found.origin[0])]] == BOX
    assert abs((yaw_of(way.rotation) + 90) % 180 - 90) < 8
    assert abs(way.scale - 1) < 0.1
    assert np.linalg.norm(way.translation) < 0.1


def test_screening_finds_any_turn_of_a_box_modulo_its_symmetry(tiny: Checkpoint) -> None:
    """Among the few that a fit goes on with; judged by where the whole box goes, whichever way round."""
    turn = rotation_of(torch.tensor([[0.9, -1.4, 0.7]], dtype=torch.float64))[0].numpy()
    to_scan = Similarity(0.4, turn, np.array([1.0, 3.0, -2.0]))
    observation = scan_of_box(to_scan)
    found = screen(tiny, observation, "free").of(torch.arange(Effort().rounds[0].problems))
    whole = surface_points(TINY_SOLIDS[BOX], 1000, np.random.default_rng(3))
    ways = [
        found.placements.similarity(index).after(observation.from_scan).after(to_scan)
        for index in range(len(found))
    ]
    points = torch.from_numpy(np.stack([way.apply(whole) for way in ways])).float()
    assert tiny.starts(found.origin[:, None].float(), points).abs().mean(dim=1).min() < 0.03


def test_the_best_hypotheses_come_first_each_shape_and_turn_once(tiny: Checkpoint) -> None:
    observation = scan_of_box(Similarity(2.5, about_y(50), np.zeros(3)))
    found = screen(tiny, observation, "upright", kept=40)
    pairs = list(zip(found.origin.tolist(), found.turn.tolist(), strict=True))
    assert len(pairs) == len(set(pairs)) == 40
    rows = rows_of(observation, (192, 96), tiny.skin, RowWeights(), CPU, 1).expanded(40)
    points = found.placements.apply(rows.points)
    at_surface = tiny.starts(found.origin[:, None].float(), points[:, :64]).abs().mean(dim=1)
    assert at_surface[:5].mean() < at_surface[-5:].mean()


@pytest.mark.parametrize("pose", ["canonical", "upright"])
def test_screening_turns_a_scan_only_as_far_as_the_pose_mode_allows(pose: str, tiny: Checkpoint) -> None:
    observation = scan_of_box(Similarity(2.5, about_y(50), np.zeros(3)))
    found = screen(tiny, observation, pose, kept=10)
    tilt = found.placements.rotation[:, 1] - torch.tensor([0.0, 1, 0])
    assert tilt.abs().max() < 1e-5
    if pose == "canonical":
        assert torch.allclose(found.placements.rotation, torch.eye(3).expand(len(found), 3, 3), atol=1e-6)
