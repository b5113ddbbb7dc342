"""Estimates of steepness and bend, of fields in which both are known."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model.checkpoint import load_checkpoint, read_card
from model.training import lipschitz
from model.training.lipschitz import SAFETY, STEPS, Steepness, kinds_of_codes, steepness

Evaluate = Callable[[Tensor, Tensor], Tensor]


class Exact(nn.Module):
    """What the estimate asks of a decoder: values (S, N) of codes (S, 1, L) at points (S, N, 3)."""

    def __init__(self, evaluate: Evaluate) -> None:
        super().__init__()
        self.values = evaluate

    def fold(self, codes: Tensor) -> list[Tensor]:
        return [codes]

    def evaluate(self, constants: list[Tensor], points: Tensor) -> Tensor:
        return self.values(constants[0], points)


def estimate(evaluate: Evaluate, codes: Tensor | None = None, own: list[int] | None = None) -> Steepness:
    codes = torch.zeros(4, 2) + 1e-3 * torch.randn(4, 2) if codes is None else codes
    return steepness(Exact(evaluate), codes, own or [0, 1], count=3)


def ball(codes: Tensor, points: Tensor) -> Tensor:
    return points.norm(dim=-1) - 0.6


def sheet(codes: Tensor, points: Tensor) -> Tensor:
    """A sheet without thickness, in a skin."""
    return points[..., 1].abs() - 0.006


def test_a_distance_is_as_steep_as_it_can_be_and_no_steeper() -> None:
    for field in (ball, sheet):
        found = estimate(field)
        assert all(0.99 < ratio < 1.001 for ratio in found.steep)
        assert found.lipschitz == pytest.approx(SAFETY, rel=0.01)


def test_a_plane_does_not_bend_and_a_crease_bends_as_much_as_it_is_steep() -> None:
    assert max(estimate(lambda codes, points: points[..., 1]).bent) < 1e-3
    assert all(0.95 < ratio < 1.001 for ratio in estimate(sheet).bent)


def test_a_ball_bends_half_a_step_over_its_radius() -> None:
    """The second difference of a distance with curvature 1/r; nearest to the centre that is looked at."""
    found = estimate(ball)
    inner = 0.6 - lipschitz.NEAR
    for step, bent in zip(STEPS, found.bent, strict=True):
        exact = ((inner**2 + step**2) ** 0.5 - inner) / step
        assert bent == pytest.approx(exact, rel=0.1)


def test_constants_grow_with_the_field() -> None:
    found, larger = estimate(sheet), estimate(lambda codes, points: 3 * sheet(codes, points))
    assert larger.lipschitz == pytest.approx(3 * found.lipschitz, rel=0.01)
    assert larger.bend == pytest.approx(3 * found.bend, rel=0.05)


def test_ascent_finds_a_steep_place_that_hardly_a_random_point_meets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lipschitz, "POINTS", 2000)
    """A dent of the surface a hundredth wide, three times as steep as the rest at most."""
    centre = torch.tensor([0.0, 0.6, 0.0])

    def dented(codes: Tensor, points: Tensor) -> Tensor:
        apart = (points - centre).square().sum(dim=-1)
        return ball(codes, points) - 0.08 * torch.exp(-apart / (2 * 0.02**2))

    steepest = 1 + 0.08 / 0.02 * 2.718281828**-0.5
    found = max(estimate(dented).steep)
    assert 0.9 * steepest < found < 1.001 * steepest


def test_the_steepest_code_of_any_kind_counts() -> None:
    """The field is as steep as its code says: one variant's is twice all others'."""
    codes = torch.ones(6, 1)
    codes[5] = 2.0
    found = estimate(lambda constants, points: constants[..., 0] * points[..., 1], codes, own=[0, 1, 2, 3, 4])
    assert found.lipschitz >= 2 * SAFETY * 0.999


def test_codes_are_training_shapes_variants_draws_and_what_is_in_between() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(60, 3, generator=generator) * 0.1 + torch.tensor([1.0, 2.0, 3.0])
    looked_at = kinds_of_codes(codes, list(range(20)), 10, generator)
    assert looked_at.shape == (40, 3)
    nearest = torch.cdist(looked_at, codes).argmin(dim=1)
    assert (nearest[:10] < 20).all() and (nearest[10:20] >= 20).all()
    assert torch.equal(codes[nearest[:20]], looked_at[:20])
    assert (looked_at[20:].mean(dim=0) - codes.mean(dim=0)).abs().max() < 0.1
    low, high = codes.amin(dim=0), codes.amax(dim=0)
    assert ((looked_at[30:] >= low) & (looked_at[30:] <= high)).all()


def test_the_same_seed_gives_the_same_estimate() -> None:
    codes = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    assert estimate(sheet, codes) == estimate(sheet, codes)


def test_the_command_writes_into_the_card_what_the_checkpoint_then_says(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_checkpoint, folder)
    before = read_card(folder)
    monkeypatch.setattr(sys, "argv", ["lipschitz", str(folder), "--device", "cpu"])
    assert lipschitz.main() == 0
    tiny = load_checkpoint(folder, "cpu")
    assert {**before, "lipschitz": tiny.lipschitz, "bend": tiny.bend} == tiny.card
    assert 0.5 < tiny.bend <= tiny.lipschitz < 4
    assert f"lipschitz {tiny.lipschitz:.3f}, bend {tiny.bend:.3f}" in capsys.readouterr().out


def test_a_folder_without_a_checkpoint_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lipschitz", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        lipschitz.main()
    assert ended.value.code == 1
