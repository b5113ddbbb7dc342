"""What a scan suggests at first sight: units and frames, files, and what a fit makes of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from seen import half_seen
from shapes import TINY_SOLIDS
from torch import Tensor

from model.checkpoint import ENCODER_FILE, BadCheckpoint, Checkpoint, load_checkpoint, save_checkpoint
from model.encoder import (
    DOUBT_CODE,
    DOUBT_PLACE,
    FINEST_CODE,
    FINEST_PLACE,
    HEADS,
    POINTS,
    Encoder,
    save_encoder,
)
from model.fitting import Effort, Fitter
from model.observation import RowWeights, observe
from model.placement import about_y, by_outline, yaws
from model.problems import FitSettings
from model.starts import turns

BOX = TINY_SOLIDS["box_0.35_0.65"]


@pytest.fixture
def encoder(tiny: Checkpoint) -> Encoder:
    """Not trained, but with the units of the tiny model's codes."""
    torch.manual_seed(0)
    made = Encoder(tiny.codes.shape[1], width=8).eval().requires_grad_(False)
    made.learn_units(tiny.prior)
    return made


def says_nothing(encoder: Encoder) -> Encoder:
    """It guesses what is usual, of any scan."""
    last = encoder.head[-1]
    assert isinstance(last, torch.nn.Linear)
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    return encoder


def a_scan(count: int = 3 * POINTS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(count, 3, generator=generator) * torch.tensor([0.5, 0.8, 0.2])
    return points, torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)


def test_a_scan_in_another_frame_and_unit_suggests_the_same(encoder: Encoder) -> None:
    points, normals = a_scan()
    shift, factor, turns = torch.tensor([0.3, -2.0, 5.0]), 4.0, yaws(5)
    turn = about_y(torch.tensor([0.7]))[0]
    here = encoder.suggest(points, normals, turns)
    moved = factor * (points @ turn.T) + shift
    there = encoder.suggest(moved, normals @ turn.T, turns @ turn.T)
    assert torch.allclose(here.named, there.named, atol=1e-3)
    assert torch.allclose(here.log_odds, there.log_odds, atol=1e-3)
    for one, other in (
        (here.placements, there.placements),
        (here.expected.placements, there.expected.placements),
    ):
        canonical = one.apply(points.expand(5, -1, -1))
        assert torch.allclose(canonical, other.apply(moved.expand(5, -1, -1)), atol=1e-3)


def test_the_suggested_yaw_turns_the_scan_about_the_middle_of_its_box(encoder: Encoder) -> None:
    points, normals = a_scan()
    told = encoder.suggest(points, normals, yaws(3))
    start, expected = told.placements, told.expected.placements
    assert torch.equal(expected.rotation, yaws(3))
    onward = start.rotation @ expected.rotation.transpose(1, 2)
    assert torch.allclose(onward[:, 1], torch.tensor([0.0, 1, 0]).expand(3, 3), atol=1e-6)
    assert (onward - torch.eye(3)).abs().amax() > 1e-4
    assert torch.equal(start.log_scale, expected.log_scale)


def test_without_an_opinion_it_expects_what_the_outline_says(encoder: Encoder) -> None:
    points, normals = a_scan(POINTS)
    told = says_nothing(encoder).suggest(points, normals, yaws(4))
    outline = by_outline(points, yaws(4)).placements
    assert torch.allclose(told.expected.placements.log_scale, outline.log_scale, atol=1e-5)
    assert torch.allclose(told.expected.placements.translation, outline.translation, atol=1e-5)
    assert torch.allclose(told.named, encoder.mean.expand(4, HEADS, -1), atol=1e-5)
    assert torch.allclose(told.prior.mean, encoder.mean.expand(4, -1), atol=1e-5)


def test_the_prior_of_the_code_is_as_wide_as_it_says(encoder: Encoder, tiny: Checkpoint) -> None:
    """With deviations of 1 along the training codes' own axes it is as wide as theirs."""
    points, normals = a_scan()
    told = says_nothing(encoder).suggest(points, normals, yaws(2))
    doubted = told.prior.precision[1] * DOUBT_CODE**2
    assert torch.allclose(doubted, tiny.prior.precision, rtol=1e-3, atol=1e-3)
    last = encoder.head[-1]
    length = tiny.codes.shape[1]
    last.bias[10 + length : 10 + 2 * length] = -100.0  # as sure as can be
    sure = encoder.suggest(points, normals, yaws(2))
    assert torch.allclose(sure.prior.precision * FINEST_CODE**2, told.prior.precision, rtol=1e-3, atol=1e-3)
    assert (sure.expected.deviation >= DOUBT_PLACE * FINEST_PLACE).all()


def test_unknown_normals_are_no_harm(encoder: Encoder) -> None:
    points, normals = a_scan()
    told = encoder.suggest(points, torch.full_like(normals, torch.nan), yaws(2))
    assert told.named.isfinite().all() and told.log_odds.isfinite().all()


def test_the_likeliest_turns_come_first(encoder: Encoder) -> None:
    points, normals = a_scan()
    told = encoder.suggest(points, normals, yaws(24))
    codes, placements = told.best(3)
    first = int(told.log_odds.argmax())
    each = HEADS + 1
    assert len(codes) == len(placements) == 3 * each
    assert torch.equal(codes[:HEADS], told.named[first])
    assert torch.equal(codes[HEADS], told.prior.mean[first])
    assert torch.equal(placements.rotation[:each], told.placements.rotation[first].expand(each, 3, 3))


@pytest.fixture
def copied(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny model in a folder of its own."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))


def test_a_saved_encoder_is_loaded_with_its_checkpoint(
    copied: Path, encoder: Encoder, tiny: Checkpoint
) -> None:
    save_encoder(encoder, copied / ENCODER_FILE, tiny.digest)
    loaded = load_checkpoint(copied, "cpu").encoder
    assert loaded is not None and not any(part.requires_grad for part in loaded.parameters())
    points, normals = a_scan()
    one, other = (each.suggest(points, normals, yaws(3)) for each in (encoder, loaded))
    assert torch.allclose(one.named, other.named, atol=0.01)  # weights are kept as bytes
    assert load_checkpoint(copied, "cpu", encoder=False).encoder is None


def test_an_encoder_of_another_decoder_is_refused_with_what_to_do(copied: Path, encoder: Encoder) -> None:
    save_encoder(encoder, copied / ENCODER_FILE, "another digest")
    with pytest.raises(BadCheckpoint, match=r"another decoder: delete it, or train it anew with python -m"):
        load_checkpoint(copied, "cpu")


def test_new_weights_of_the_decoder_leave_no_encoder_of_the_old_ones(
    copied: Path, encoder: Encoder, tiny: Checkpoint
) -> None:
    file, old = copied / ENCODER_FILE, load_checkpoint(copied, "cpu")
    for digest, stays in ((tiny.digest, True), ("another digest", False)):
        save_encoder(encoder, file, digest)
        save_checkpoint(copied, old.decoder, old.codes, old.extents, old.shapes, old.card)
        assert file.exists() == stays


@pytest.mark.parametrize(("pose", "suggested"), [("canonical", 1), ("upright", 3), ("free", 0)])
def test_a_fit_starts_where_the_encoder_would(
    pose: str, suggested: int, encoder: Encoder, tiny: Checkpoint
) -> None:
    """Not where the vertical is unknown: it has seen no such scan."""
    fitter = Fitter(replace(tiny, encoder=encoder), FitSettings(), RowWeights(), Effort())
    observation = observe(half_seen(BOX))
    starts = fitter.expected(observation, turns(pose, tiny.device), pose).starts(3)
    assert sum(len(some.codes) for some in starts) == suggested * (HEADS + 1)
    expected = fitter.expected(observation, yaws(2), pose)
    usual = Fitter(tiny, FitSettings(), RowWeights(), Effort()).expected(observation, yaws(2), pose)
    same = torch.equal(expected.placements.placements.log_scale, usual.placements.placements.log_scale)
    assert same == (pose == "free")


def test_a_wrong_suggestion_does_not_spoil_a_fit(encoder: Encoder, tiny: Checkpoint) -> None:
    """An untrained encoder suggests anything; what was seen decides."""
    fitter = Fitter(replace(tiny, encoder=encoder), FitSettings(), RowWeights(), Effort())
    observation = observe(half_seen(BOX))
    fit = fitter.fit(observation, "canonical")
    assert fit.best.residual < 0.02
    assert np.isfinite(fit.best.objective)
