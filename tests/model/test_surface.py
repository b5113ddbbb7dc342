"""Surfaces of fields that are known exactly, and the dense grid as reference of the sparse one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from shapes import SignedDistance, box, sphere, torus
from torch import Tensor

from model.checkpoint import load_checkpoint
from model.surface import (
    HALF_WIDTH,
    Extraction,
    Field,
    NoSurface,
    decoded_field,
    dense_volume,
    extract_surface,
    sparse_volume,
    triangulate,
)

CPU = torch.device("cpu")
SOLIDS = {"sphere": sphere(0.8), "box": box(0.42, 0.61, 0.5), "torus": torus(0.6, 0.2)}


def field_of(solid: SignedDistance) -> Field:
    return lambda points: torch.from_numpy(solid(points.double().numpy())).float()


class AnalyticDecoder:
    """What the extraction asks of a decoder, answered by a solid that is known exactly."""

    def __init__(self, solid: SignedDistance) -> None:
        self.solid = solid

    def fold(self, codes: Tensor) -> list[Tensor]:
        return [codes]

    def evaluate(self, constants: list[Tensor], points: Tensor) -> Tensor:
        return field_of(self.solid)(points[0])[None]

    def distance_and_normals(self, codes: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        moves = 1e-4 * torch.eye(3, dtype=torch.float64)
        field = [self.solid((points[0].double() + sign * m).numpy()) for m in moves for sign in (1, -1)]
        slopes = np.stack([field[2 * axis] - field[2 * axis + 1] for axis in range(3)], axis=1) / 2e-4
        return self.evaluate([], points), torch.from_numpy(slopes).float()[None]


def extracted(solid: SignedDistance, resolution: int = 64, skin: float = 0.0) -> Extraction:
    return extract_surface(AnalyticDecoder(solid), torch.zeros(1), resolution, skin)


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


def assert_same_mesh(field: Field, resolution: int) -> tuple[int, int]:
    sparse, few = sparse_volume(field, resolution, CPU)
    dense, many = dense_volume(field, resolution, CPU)
    assert sparse.shape == dense.shape == (resolution + 1,) * 3
    assert ((sparse < 0) == (dense < 0)).all()
    for ours, reference in zip(triangulate(sparse), triangulate(dense), strict=True):
        assert np.array_equal(ours, reference)
    return few, many


@pytest.mark.parametrize("resolution", [32, 40, 50, 64, 99, 128])
def test_the_sparse_grid_gives_the_very_mesh_of_the_dense_one(resolution: int) -> None:
    for solid in SOLIDS.values():
        few, many = assert_same_mesh(field_of(solid), resolution)
        assert resolution < 64 or resolution % 2 or few < many / 3


def test_a_field_that_is_clamped_as_in_training_gives_the_same_mesh_too() -> None:
    assert_same_mesh(lambda points: field_of(SOLIDS["torus"])(points).clamp(-0.1, 0.1), 64)


def test_a_trained_field_gives_the_same_mesh_too(tiny_checkpoint: Path) -> None:
    tiny = load_checkpoint(tiny_checkpoint, "cpu")
    for code in tiny.codes[[0, -1]]:
        assert_same_mesh(decoded_field(tiny.decoder, code), 64)
        ours, reference = (extract_surface(tiny.decoder, code, 64, dense=dense) for dense in (False, True))
        assert np.array_equal(ours.mesh.vertices, reference.mesh.vertices)
        assert ours.evaluations < reference.evaluations / 2


def test_a_fine_grid_costs_a_small_share_of_the_dense_one() -> None:
    _, evaluations = sparse_volume(field_of(SOLIDS["sphere"]), 256, CPU)
    assert evaluations < 257**3 / 12


def test_evaluations_are_counted_truly() -> None:
    asked = 0

    def counted(points: Tensor) -> Tensor:
        nonlocal asked
        asked += len(points)
        return field_of(SOLIDS["sphere"])(points)

    _, claimed = sparse_volume(counted, 64, CPU)
    assert asked == claimed


@pytest.mark.parametrize(
    "field",
    [
        lambda points: points[:, 0] - 0.3,
        lambda points: points.sum(dim=1),
        lambda points: -torch.ones(len(points)),
        lambda points: 0.9 - points.norm(dim=1),
        lambda points: points.norm(dim=1) - 1.3,
    ],
    ids=["half space", "diagonal half space", "all inside", "hollow ball", "ball beyond the grid"],
)
def test_a_field_that_is_negative_at_the_border_is_closed_there(field: Field) -> None:
    volume, _ = sparse_volume(field, 32, CPU)
    vertices, faces = triangulate(volume)
    closed(vertices, faces)
    assert np.abs(vertices).max() <= HALF_WIDTH


@pytest.mark.parametrize(
    "field",
    [
        lambda points: points.norm(dim=1) + 0.05,
        lambda points: torch.full((len(points),), 0.1),
        lambda points: torch.zeros(len(points)),
        lambda points: HALF_WIDTH - 1e-3 - points.abs().amax(dim=1),
    ],
    ids=["positive", "far everywhere", "zero everywhere", "negative at the border only"],
)
def test_a_field_without_an_inside_is_no_surface(field: Field) -> None:
    volume, _ = dense_volume(field, 32, CPU)
    with pytest.raises(NoSurface):
        triangulate(volume)


def test_a_field_of_nothing_but_nan_is_no_surface() -> None:
    volume, _ = sparse_volume(lambda points: points[:, 0] * torch.nan, 32, CPU)
    with pytest.raises(NoSurface):
        triangulate(volume)


def test_a_surface_through_the_corners_of_the_grid_is_closed() -> None:
    """Faces of the box lie on grid planes: the field is exactly zero at thousands of corners."""
    half = 8 * cell(32)
    volume, _ = dense_volume(field_of(box(half, half, half)), 32, CPU)
    volume[np.abs(volume) < 1e-6] = 0
    assert (volume == 0).sum() > 1000
    closed(*triangulate(volume))


def test_a_volume_is_not_written_to() -> None:
    volume, _ = dense_volume(lambda points: points[:, 0], 32, CPU)
    before = volume.copy()
    triangulate(volume)
    assert np.array_equal(volume, before)


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
