"""Surfaces of fields that are known exactly, and the dense grid as reference of the sparse one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from fields import TorchField
from shapes import SignedDistance, box, gradient, sphere, torus
from torch import Tensor

from model.checkpoint import load_checkpoint
from model.surface import (
    HALF_WIDTH,
    Extraction,
    NoSurface,
    extract_surface,
    zero_level,
)

CPU = torch.device("cpu")
SOLIDS = {"sphere": sphere(0.8), "box": box(0.42, 0.61, 0.5), "torus": torus(0.6, 0.2)}


@dataclass(frozen=True)
class ExactField:
    """A solid whose distance is known exactly: no field of distances is steeper or bends more sharply."""

    solid: SignedDistance
    lipschitz: float = 1.0
    bend: float = 1.0
    device: torch.device = CPU

    def distance(self, points: Tensor) -> Tensor:
        return torch.from_numpy(self.solid(points.double().numpy())).float()

    def distance_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        slopes = gradient(self.solid, points.double().numpy(), step=1e-4)
        return self.distance(points), torch.from_numpy(slopes).float()


BALL = TorchField(lambda points: points.norm(dim=1) - 0.7)


def extracted(solid: SignedDistance, resolution: int = 64, skin: float = 0.0) -> Extraction:
    return extract_surface(ExactField(solid), resolution, skin)


def closed(vertices: np.ndarray, faces: np.ndarray) -> trimesh.Trimesh:
    """The mesh, after the checks that hold for each one we make."""
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_watertight and mesh.is_winding_consistent
    assert mesh.volume > 0
    return mesh


def cell(resolution: int) -> float:
    return 2 * HALF_WIDTH / resolution


@pytest.mark.parametrize("resolution", [32, 64, 100])
@pytest.mark.parametrize(("name", "bend"), [("sphere", 0.8), ("torus", 0.2)])
def test_vertices_err_by_no_more_than_linear_interpolation_does(
    name: str, bend: float, resolution: int
) -> None:
    """On an edge of length h the error of a distance with curvature 1/r is at most h² / 8r."""
    mesh, h = extracted(SOLIDS[name], resolution).mesh, cell(resolution)
    assert np.abs(SOLIDS[name](mesh.vertices.astype(float))).max() < h**2 / (8 * (bend - h))


def test_flat_faces_are_exact_and_sharp_edges_lose_less_than_a_cell() -> None:
    vertices = extracted(SOLIDS["box"]).mesh.vertices.astype(float)
    error = np.abs(SOLIDS["box"](vertices))
    to_faces = np.sort(np.abs(np.abs(vertices) - [0.42, 0.61, 0.5]), axis=1)
    on_a_face = to_faces[:, 1] > cell(64)
    assert on_a_face.mean() > 0.7
    assert error[on_a_face].max() < 1e-5
    assert error.max() < cell(64)


@pytest.mark.parametrize(("name", "euler"), [("sphere", 2), ("box", 2), ("torus", 0)])
def test_a_mesh_is_closed_outward_and_of_the_solids_topology(name: str, euler: int) -> None:
    mesh = extracted(SOLIDS[name]).mesh
    body = closed(mesh.vertices, mesh.faces)
    assert body.euler_number == euler
    assert len(body.split()) == 1
    assert (mesh.vertices.dtype, mesh.faces.dtype) == (np.float32, np.int32)


def test_the_volume_is_that_of_the_solid() -> None:
    exact = {
        "sphere": 4 / 3 * np.pi * 0.8**3,
        "box": 8 * 0.42 * 0.61 * 0.5,
        "torus": 2 * np.pi**2 * 0.6 * 0.2**2,
    }
    for name, volume in exact.items():
        mesh = extracted(SOLIDS[name]).mesh
        assert np.isclose(closed(mesh.vertices, mesh.faces).volume, volume, rtol=0.02)


def test_normals_are_unit_and_point_where_the_distance_grows() -> None:
    mesh = extracted(SOLIDS["sphere"]).mesh
    assert mesh.normals is not None
    assert np.allclose(mesh.normals, mesh.vertices / 0.8, atol=2e-3)


def assert_same_mesh(field: TorchField | ExactField, resolution: int) -> tuple[int, int]:
    """The sparse grid's mesh is the dense one, vertex for vertex; returns what both cost."""
    sparse, dense = zero_level(field, resolution), zero_level(field, resolution, dense=True)
    assert np.array_equal(sparse.vertices, dense.vertices)
    assert np.array_equal(sparse.faces, dense.faces)
    return sparse.evaluations, dense.evaluations


@pytest.mark.parametrize("resolution", [20, 32, 40, 50, 64, 99, 128, 160])
def test_the_sparse_grid_gives_the_very_mesh_of_the_dense_one(resolution: int) -> None:
    for solid in SOLIDS.values():
        few, many = assert_same_mesh(ExactField(solid), resolution)
        assert few < many / 3 or resolution < 64


def test_a_field_that_is_clamped_as_in_training_gives_the_same_mesh_too() -> None:
    inner = ExactField(SOLIDS["torus"])
    assert_same_mesh(TorchField(lambda points: inner.distance(points).clamp(-0.1, 0.1)), 64)


def test_so_do_many_thin_sheets_and_crumbs_that_touch_nothing() -> None:
    """Pieces smaller than a cell of all grids but the last: only the bounds can find them."""
    rng = np.random.default_rng(0)
    centres, sizes = rng.uniform(-0.9, 0.9, (30, 3)), rng.uniform(0.004, 0.07, (30, 3))

    def crumbs(points: np.ndarray) -> np.ndarray:
        return np.min([box(*size)(points - at) for at, size in zip(centres, sizes, strict=True)], axis=0)

    few, many = assert_same_mesh(ExactField(crumbs), 96)
    assert few < many / 3
    level = zero_level(ExactField(crumbs), 96)
    assert len(closed(level.vertices, level.faces).split()) > 15


def test_a_trained_field_gives_the_same_mesh_too(tiny_checkpoint: Path) -> None:
    tiny = load_checkpoint(tiny_checkpoint, "cpu")
    for code in tiny.codes[[0, -1]]:
        field = tiny.field(code)
        ours, reference = (extract_surface(field, 96, dense=dense) for dense in (False, True))
        # The last bits of a value depend on how many points are evaluated at once.
        assert np.allclose(ours.mesh.vertices, reference.mesh.vertices, atol=1e-5)
        assert np.array_equal(ours.mesh.faces, reference.mesh.faces)
        assert ours.evaluations < reference.evaluations / 2


def test_what_a_field_says_of_its_bends_saves_evaluations() -> None:
    """The same values, of which one field says only that they may be steep."""
    steep = TorchField(BALL.evaluate, lipschitz=3.0, bend=3.0)
    gentle = TorchField(BALL.evaluate, lipschitz=3.0, bend=1.0)
    assert np.array_equal(zero_level(steep, 128).vertices, zero_level(gentle, 128).vertices)
    assert zero_level(gentle, 128).evaluations < 0.7 * zero_level(steep, 128).evaluations


def test_a_field_that_is_steeper_than_it_says_costs_more_and_is_extracted_all_the_same() -> None:
    """A ball with ripples twenty times as steep as the field admits."""
    ripples = TorchField(lambda p: p.norm(dim=1) - 0.6 + 0.08 * torch.sin(40 * p).prod(dim=1), 0.2, 0.2)
    honest = TorchField(ripples.evaluate, 4.3, 4.3)
    found, expected = zero_level(ripples, 64), zero_level(honest, 64, dense=True)
    assert np.array_equal(found.vertices, expected.vertices)


def test_a_fine_grid_costs_a_small_share_of_the_dense_one() -> None:
    assert zero_level(BALL, 256).evaluations < 257**3 / 30


def test_evaluations_are_counted_truly() -> None:
    asked = 0

    def counted(points: Tensor) -> Tensor:
        nonlocal asked
        asked += len(points)
        return points.norm(dim=1) - 0.8

    assert zero_level(TorchField(counted), 64).evaluations == asked
    asked = 0
    assert zero_level(TorchField(counted), 40, dense=True).evaluations == asked == 41**3


def test_the_grid_has_at_least_as_many_cells_as_asked_for() -> None:
    """A plane along the grid has four vertices a cell: two triangles' corners, shared."""
    for resolution in (13, 24, 47, 49, 101, 130):
        level = zero_level(TorchField(lambda points: points[:, 0] - 0.01), resolution)
        edges = np.unique(np.round(level.vertices[:, 1], 5))
        assert len(edges) - 3 >= resolution - 2


@pytest.mark.parametrize("dense", [False, True])
def test_the_seams_between_slabs_are_closed(monkeypatch: pytest.MonkeyPatch, dense: bool) -> None:
    """The same mesh from slabs of one coarse cell and from a single one, but for the order of vertices."""
    two = torus(0.6, 0.15)

    def solid(points: np.ndarray) -> np.ndarray:
        return np.minimum(two(points - [0.0, 0.2, 0.01]), sphere(0.2)(points))

    whole = zero_level(ExactField(solid), 96, dense=dense)
    monkeypatch.setattr("model.surface.SLAB_VALUES", (1, 1))
    slabs = zero_level(ExactField(solid), 96, dense=dense)
    assert slabs.evaluations == whole.evaluations
    bodies = [closed(level.vertices, level.faces) for level in (whole, slabs)]
    assert len(bodies[0].vertices) == len(bodies[1].vertices)
    assert len(bodies[0].faces) == len(bodies[1].faces)
    assert bodies[0].euler_number == bodies[1].euler_number == 2
    assert np.isclose(bodies[0].volume, bodies[1].volume, rtol=1e-5)
    gap = np.abs(sorted_rows(whole.vertices) - sorted_rows(slabs.vertices)).max()
    assert gap < 1e-5


def sorted_rows(vertices: np.ndarray) -> np.ndarray:
    rounded = np.round(vertices.astype(float), 4)
    return vertices[np.lexsort(rounded.T)]


MEMORY_MIB = 256

PEAK_OF_513 = """
import resource
import torch
from model.surface import zero_level

class Ball:
    lipschitz = bend = 1.0
    device = torch.device("cpu")

    def distance(self, points):
        return points.norm(dim=1) - 0.6

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

zero_level(Ball(), 32)
before = peak()
level = zero_level(Ball(), 512)
print(len(level.vertices), level.evaluations, peak() - before)
"""


def test_513_corners_an_edge_fit_into_bounded_memory() -> None:
    """Growth of the largest resident set of a fresh process; the values of a dense grid alone are 515 MiB."""
    command = [sys.executable, "-c", PEAK_OF_513]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    vertices, evaluations, growth = map(float, printed.stdout.split())
    assert vertices > 300_000
    assert evaluations < 513**3 / 60
    assert growth < MEMORY_MIB


@pytest.mark.parametrize(
    "evaluate",
    [
        lambda points: points[:, 0] - 0.3,
        lambda points: points.sum(dim=1) / 3**0.5,
        lambda points: -torch.ones(len(points)),
        lambda points: 0.9 - points.norm(dim=1),
        lambda points: points.norm(dim=1) - 1.3,
    ],
    ids=["half space", "diagonal half space", "all inside", "hollow ball", "ball beyond the grid"],
)
@pytest.mark.parametrize("resolution", [32, 96])
def test_a_field_that_is_negative_at_the_border_is_closed_there(
    evaluate: Callable[[Tensor], Tensor], resolution: int
) -> None:
    assert_same_mesh(TorchField(evaluate), resolution)
    level = zero_level(TorchField(evaluate), resolution)
    closed(level.vertices, level.faces)
    assert np.abs(level.vertices).max() <= HALF_WIDTH


@pytest.mark.parametrize(
    "evaluate",
    [
        lambda points: points.norm(dim=1) + 0.05,
        lambda points: torch.full((len(points),), 0.1),
        lambda points: torch.zeros(len(points)),
        lambda points: HALF_WIDTH - 1e-3 - points.abs().amax(dim=1),
        lambda points: points[:, 0] * torch.nan,
    ],
    ids=["positive", "far everywhere", "zero everywhere", "negative at the border only", "not a number"],
)
@pytest.mark.parametrize("resolution", [20, 48])
def test_a_field_without_an_inside_is_no_surface(
    evaluate: Callable[[Tensor], Tensor], resolution: int
) -> None:
    with pytest.raises(NoSurface):
        zero_level(TorchField(evaluate), resolution)


@pytest.mark.parametrize("resolution", [16, 32, 64])
def test_a_surface_through_the_corners_of_the_grid_is_closed(resolution: int) -> None:
    """Faces of the box lie on grid planes: the field is exactly zero at thousands of corners."""
    half = 8 * cell(32)
    exact = ExactField(box(half, half, half))
    zeros = 0

    def snapped(points: Tensor) -> Tensor:
        nonlocal zeros
        values = exact.distance(points)
        values[values.abs() < 1e-6] = 0
        zeros += int((values == 0).sum())
        return values

    level = zero_level(TorchField(snapped), resolution)
    assert zeros > 200
    body = closed(level.vertices, level.faces)
    assert np.isclose(body.volume, (2 * half) ** 3, rtol=0.1)


def test_what_is_raised_between_chunks_ends_the_extraction() -> None:
    calls = 0

    def cancel() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_surface(ExactField(SOLIDS["sphere"]), 128, on_chunk=cancel)
    assert calls == 5


SKIN = 0.02


def test_the_skin_is_taken_off_a_thick_solid() -> None:
    swollen = extracted(sphere(0.7 + SKIN)).mesh
    bare = extracted(lambda points: sphere(0.7)(points) - SKIN, skin=SKIN).mesh
    assert np.allclose(np.linalg.norm(swollen.vertices, axis=1), 0.7 + SKIN, atol=1e-3)
    assert np.allclose(np.linalg.norm(bare.vertices, axis=1), 0.7, atol=1e-3)
    closed(bare.vertices, bare.faces)


def test_a_sheet_stays_as_thick_as_its_skin_made_it() -> None:
    """A sheet has no inside of its own: with its skin taken off nothing would be left."""
    sheet = box(0.6, 0.0, 0.6)
    mesh = extracted(lambda points: sheet(points) - SKIN, resolution=128, skin=SKIN).mesh
    closed(mesh.vertices, mesh.faces)
    middle = (np.abs(mesh.vertices[:, [0, 2]]) < 0.5).all(axis=1)
    assert middle.sum() > 1000
    assert np.allclose(np.abs(mesh.vertices[middle, 1]), SKIN, atol=2e-3)


def test_between_sheet_and_solid_the_skin_fades_without_a_step() -> None:
    """Half thickness after the skin is off, against the true one: it never jumps and never grows thinner."""
    halves = np.linspace(0.0, 3 * SKIN, 7)
    made = []
    for half in halves:
        plate = box(0.6, half, 0.6)
        mesh = extracted(lambda points, plate=plate: plate(points) - SKIN, resolution=128, skin=SKIN).mesh
        middle = (np.abs(mesh.vertices[:, [0, 2]]) < 0.4).all(axis=1)
        made.append(np.abs(mesh.vertices[middle, 1]).mean())
    assert np.isclose(made[0], SKIN, atol=2e-3) and np.isclose(made[-1], halves[-1], atol=2e-3)
    assert (np.array(made) >= halves - 2e-3).all()
    assert np.abs(np.diff(made)).max() < SKIN
