"""Samples of all shapes in one tensor: half outside, half inside, none left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from shapes import TINY_SOLIDS, ball_points, box, sphere, tiny_samples

from model.training.dataset import MissingSamples, SampleSet, load_sample_set, sample_files
from model.training.recipe import Recipe, SamplesRecipe

HEADER = "id,name,category,kind,split,group,package,file,rotation,width,height,depth,author,licence"


def save_samples(file: Path, outside: int, inside: int, radius: float = 0.5, seed: int = 0) -> Path:
    """Exact samples of a sphere, so many on each side."""
    points = ball_points(60 * (outside + inside), np.random.default_rng(seed))
    rows = np.column_stack([points, sphere(radius)(points)]).astype(np.float32)
    negative = rows[:, 3] < 0
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, pos=rows[~negative][:outside], neg=rows[negative][:inside])
    return file


def distinct(rows: torch.Tensor) -> int:
    return len(torch.unique(rows.flatten(0, -2), dim=0))


def test_half_of_the_samples_are_outside_and_half_inside(tmp_path: Path) -> None:
    files = [save_samples(tmp_path / "a.npz", 300, 200), save_samples(tmp_path / "b.npz", 250, 400, 0.7)]
    data = load_sample_set(files, 200)
    assert data.names == ["a", "b"]
    assert data.samples.shape == (2, 2, 100, 4)
    assert (data.samples[:, 0, :, 3] >= 0).all() and (data.samples[:, 1, :, 3] < 0).all()
    assert distinct(data.samples) == 400


def test_a_thin_shape_with_few_inside_samples_repeats_them_evenly(tmp_path: Path) -> None:
    data = load_sample_set([save_samples(tmp_path / "thin.npz", 500, 7)], 200)
    _, counts = torch.unique(data.samples[0, 1], dim=0, return_counts=True)
    assert len(counts) == 7
    assert counts.max() - counts.min() <= 1
    assert distinct(data.samples[:, :1]) == 100


@pytest.mark.parametrize(("outside", "inside", "named"), [(100, 0, "neg"), (0, 100, "pos")])
def test_a_shape_without_one_of_the_sides_is_refused(
    outside: int, inside: int, named: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"sheet\.npz has no '{named}'"):
        load_sample_set([save_samples(tmp_path / "sheet.npz", outside, inside)], 100)


def test_loading_repeats_with_its_seed(tmp_path: Path) -> None:
    file = save_samples(tmp_path / "a.npz", 500, 500)
    one, same, other = (load_sample_set([file], 100, seed).samples for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_draw_is_half_outside_half_inside_and_of_the_shapes_asked_for() -> None:
    data = tiny_samples(2000)
    shapes = torch.tensor([3, 0, 3])
    points, distances = data.draw(shapes, 400, torch.Generator().manual_seed(0))
    assert points.shape == (3, 400, 3) and distances.shape == (3, 400)
    assert ((distances < 0).sum(dim=1) == 200).all()
    names = list(TINY_SOLIDS)
    for row, shape in enumerate(shapes.tolist()):
        exact = TINY_SOLIDS[names[shape]](points[row].double().numpy())
        assert np.allclose(distances[row], exact, atol=1e-6)
    assert not torch.equal(points[0], points[2])


def test_extents_are_the_corners_of_the_inside() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (200_000, 3))
    rows = np.column_stack([points, box(0.3, 0.5, 0.7)(points)]).astype(np.float32)
    sides = [rows[rows[:, 3] >= 0][:5000], rows[rows[:, 3] < 0][:5000]]
    (extent,) = SampleSet(["box"], torch.from_numpy(np.stack(sides)[None])).extents()
    assert torch.allclose(extent, torch.tensor([[-0.3, -0.5, -0.7], [0.3, 0.5, 0.7]]), atol=0.01)


RECIPE = Recipe(name="balls", description="", category="ball", samples=SamplesRecipe(variants=2, points=100))


def catalogue(folder: Path, *splits: str) -> Path:
    """A checkpoint folder whose shapes are named after their split."""
    rows = [f"{split},{split},ball,ball,{split},{split},pack,,,1,1,1,,CC0-1.0" for split in splits]
    folder.mkdir(exist_ok=True)
    (folder / "shapes.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    return folder


def test_without_samples_the_command_that_makes_them_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingSamples, match=r"python -m model\.training\.samples"):
        sample_files(catalogue(tmp_path / "balls", "train", "test"), tmp_path, RECIPE)


def test_a_split_without_shapes_has_no_samples(tmp_path: Path) -> None:
    with pytest.raises(MissingSamples):
        sample_files(catalogue(tmp_path / "balls", "test"), tmp_path, RECIPE)
