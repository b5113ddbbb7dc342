"""Scans simulated of a decoder's shapes, and the encoder that learns from them."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import torch

from model.checkpoint import Checkpoint, load_checkpoint
from model.encoder import Encoder
from model.training.encoder import WRONG, Lesson, collected, learnt, losses, main, shown
from model.training.simulated import REACHED, SIDE, Scans, draw_codes, rays, simulated, traced


def spheres(tiny: Checkpoint) -> torch.Tensor:
    """Codes of two of the tiny model's spheres."""
    return tiny.codes[[number for number, name in enumerate(tiny.shapes) if name.startswith("sphere")][:2]]


@pytest.fixture(scope="module")
def scans(tiny: Checkpoint) -> Scans:
    return next(simulated(tiny, points=256, batch=24, seed=1))


def test_rays_end_where_the_field_is_zero_and_pass_nothing_on_the_way(tiny: Checkpoint) -> None:
    codes = spheres(tiny)
    eyes = torch.tensor([[0.0, 0.0, 2.5]]).expand(2, 3)
    view = traced(tiny.decoder, codes, eyes, rays(-eyes / 2.5), torch.tensor([True, True]))
    assert view.hits.any(dim=1).all() and not view.hits.all(dim=1).any()
    field = tiny.decoder(codes, view.points)
    assert field[view.hits].abs().max() < 5 * REACHED
    for share in (0.7, 0.9, 0.98):
        on_the_way = eyes[:, None] + share * (view.points - eyes[:, None])
        inside_ball = on_the_way.norm(dim=-1) < 1
        before = tiny.decoder(codes, on_the_way)[view.hits & inside_ball]
        assert (before > 0).all()


def test_views_that_are_not_wanted_hit_nothing(tiny: Checkpoint) -> None:
    eyes = torch.tensor([[0.0, 0.0, 2.5]]).expand(2, 3)
    view = traced(tiny.decoder, spheres(tiny), eyes, rays(-eyes / 2.5), torch.tensor([True, False]))
    assert view.hits[0].any() and not view.hits[1].any()


def test_a_camera_sees_what_is_before_it() -> None:
    directions = rays(torch.tensor([[0.6, 0.0, -0.8]]))
    assert directions.shape == (1, SIDE**2, 3)
    assert torch.allclose(directions.norm(dim=-1), torch.ones(1, SIDE**2))
    assert (directions @ torch.tensor([0.6, 0.0, -0.8]) > 0.8).all()
    assert torch.allclose(
        torch.nn.functional.normalize(directions.mean(dim=1), dim=1),
        torch.tensor([[0.6, 0.0, -0.8]]),
        atol=1e-5,
    )


def test_simulated_scans_lie_on_their_shapes(scans: Scans, tiny: Checkpoint) -> None:
    assert 12 < len(scans) <= 24
    assert scans.points.shape == scans.normals.shape == (len(scans), 256, 3)
    on_field = scans.points + tiny.skin * scans.normals
    assert tiny.decoder(scans.codes, on_field).abs().quantile(0.99) < 5 * REACHED
    assert torch.allclose(scans.normals.norm(dim=-1), torch.ones(len(scans), 256), atol=1e-4)
    outside = tiny.decoder(scans.codes, scans.points + 0.05 * scans.normals)
    assert (outside > 0.02).float().mean() > 0.95


def test_the_distances_are_those_of_the_field(scans: Scans, tiny: Checkpoint) -> None:
    true = tiny.decoder(scans.codes, scans.places).clamp(-tiny.clamping_distance, tiny.clamping_distance)
    assert (scans.distances - true).abs().max() < 0.02  # in bfloat16 where a device has it
    elsewhere = (
        tiny.decoder(scans.codes, scans.places.roll(1, dims=0)).abs().clamp(max=tiny.clamping_distance)
    )
    assert scans.distances.abs().mean() < 0.9 * elsewhere.mean()  # most are near the surface


def test_codes_are_those_of_training_or_near_them(tiny: Checkpoint) -> None:
    drawn = draw_codes(tiny.codes, 200, torch.Generator().manual_seed(0))
    nearest = torch.cdist(drawn, tiny.codes).amin(dim=1)
    assert (nearest < 1e-6).any() and (nearest > 1e-3).any()
    assert nearest.max() < torch.cdist(tiny.codes, tiny.codes).max()


def test_what_is_shown_first_is_turned_right(scans: Scans) -> None:
    """Turned on by the yaw and put into the place that is told, it lies on the points of the scan."""
    seen = shown(scans, torch.Generator().manual_seed(0))
    count = len(scans)
    assert len(seen.points) == (1 + WRONG) * count
    boxes = seen.points[:count].amax(dim=1) - seen.points[:count].amin(dim=1)
    assert ((boxes.norm(dim=1) / 2 - 1).abs() < 0.35).all()  # quantiles, and points far out
    assert seen.yaw.abs().max() < 0.15
    radius = (scans.points.amax(dim=1) - scans.points.amin(dim=1)).norm(dim=1) / 2
    assert ((seen.place[:, 0] - radius.log()).abs() < 0.5).all()
    assert (seen.normals[:count].norm(dim=-1) < 1 + 1e-4).all()


def test_an_encoder_learns(tiny: Checkpoint) -> None:
    """A few steps make it better than an untrained one is on scans that it was not shown."""

    def quiet(numbers: range, name: str) -> range:
        return numbers

    lesson = Lesson(scans=64, steps=50, batch=8, width=8, rate=4e-3)
    encoder, _ = learnt(tiny, lesson, quiet)
    untrained = Encoder(tiny.codes.shape[1], lesson.width).eval()
    untrained.learn_units(tiny.prior)
    scans = collected(tiny, Lesson(scans=32, seed=5), quiet)
    after, before = (
        losses(one, tiny, scans, torch.Generator().manual_seed(0)) for one in (encoder, untrained)
    )
    assert after.place < before.place - 0.2
    assert after.turn < before.turn
    assert after.field < before.field


def test_the_command_writes_an_encoder_that_is_loaded(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))
    assert main([str(folder), "--scans", "12", "--steps", "2", "--batch", "4", "--device", "cpu"]) == 0
    assert "on scans held out" in capsys.readouterr().out
    assert load_checkpoint(folder, "cpu").encoder is not None


def test_the_same_seed_gives_the_same_scans(tiny: Checkpoint) -> None:
    one, other = (next(itertools.islice(simulated(tiny, 64, 8, seed=3), 1)) for _ in range(2))
    assert torch.equal(one.points, other.points) and torch.equal(one.codes, other.codes)
