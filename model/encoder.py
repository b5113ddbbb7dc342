"""What a scan suggests at first sight of its object: how it is turned, where it stands, and its latent code.

A small network, trained on simulated scans of shapes that the decoder makes (`model.training.encoder`): the
inverse of the decoder, learnt (amortised inference). It is no completion, but it knows what a fit
cannot see in residuals: that behind such a back there usually is a seat, and how deep. It gives a fit
its first starts and its priors (decision 17).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.graphs import recorder
from model.placement import (
    EXPECTED_CENTRE,
    EXPECTED_LOG_SCALE,
    Boxes,
    ExpectedPlacements,
    Placements,
    about_y,
    boxes_of,
)
from model.problems import CodePrior

POINTS = 512
"""Points of a scan that are looked at, evenly chosen."""

HEADS = 4
"""Codes that are named for a scan: what it does not show may be one thing or another."""

SCALES = ".scales"
"""What the names of the scales of weights that are kept as bytes end with."""

FINEST_PLACE, FINEST_CODE = 0.02, 0.15
"""Least standard deviations that are told: canonical units, and those of the training codes."""

DOUBT_PLACE, DOUBT_CODE = 3.0, 1.5
"""Factors of what is told: designs that were not learnt lie farther off than those that were. The first was
chosen on validation shapes, the second on real scans (docs/log.md)."""


class StaleEncoder(Exception):
    """The encoder was trained for another decoder."""


@dataclass(frozen=True)
class Guess:
    """What the network says of B scans, each turned in one way. Distances in canonical units."""

    log_odds: Tensor  # (B,) that this turn is right, within 8° of yaw
    yaw: Tensor  # (B,) radians by which to turn on
    place: Tensor  # (B, 4) log radius of the scan's box and its centre, less the usual ones; turned on
    place_deviation: Tensor  # (B, 4)
    code: Tensor  # (B, L) along the columns of the root of the training codes' precision
    code_deviation: Tensor  # (B, L)
    named: Tensor  # (B, HEADS, L) codes one of which is near the true one, told like `code`


@dataclass(frozen=True)
class Suggestion:
    """What follows for T turns of one scan."""

    log_odds: Tensor  # (T,)
    named: Tensor  # (T, HEADS, L) codes to start from
    placements: Placements  # the likeliest, turned on by the yaw
    prior: CodePrior  # of the code, for each turn
    expected: ExpectedPlacements  # with the turn as it was given

    def best(self, count: int) -> tuple[Tensor, Placements]:
        """Codes and placements in at most so many turns, the likeliest first: those named, and the mean."""
        order = self.log_odds.argsort(descending=True)[:count]
        codes = torch.cat([self.named[order], self.prior.mean[order, None]], dim=1)
        return codes.flatten(0, 1), self.placements.of(order.repeat_interleave(codes.shape[1]))


@dataclass(frozen=True)
class _Turned:
    """What is looked at of a scan, and T turns of it."""

    points: Tensor  # (POINTS, 3)
    normals: Tensor  # (POINTS, 3) 0 where they are not known
    rotations: Tensor  # (T, 3, 3)


@cache
def usual_place(device: torch.device) -> Tensor:
    """What a `Guess` tells places from, (4,): log radius of the scan's box, and its centre."""
    return torch.tensor([EXPECTED_LOG_SCALE, *EXPECTED_CENTRE], device=device)


class Encoder(nn.Module):
    """From points and normals to a `Guess`: each point alone, then with the maximum over all (PointNet).

    Qi, Su, Mo, Guibas: "PointNet", CVPR 2017, section 4.2.
    """

    mean: Tensor  # (L,) of the training codes
    root: Tensor  # (L, L) lower triangular, of their precision

    def __init__(self, code_length: int, width: int = 64) -> None:
        super().__init__()
        self.code_length, self.width = code_length, width
        self.alone = _layers(6, width, 2 * width, 4 * width)
        self.together = _layers(8 * width, 4 * width, 4 * width, 8 * width)
        self.head = nn.Sequential(
            nn.LayerNorm(16 * width),
            *_layers(16 * width, 8 * width, 8 * width, dropout=0.1),
            nn.Linear(8 * width, 10 + (2 + HEADS) * code_length),
        )
        self.register_buffer("mean", torch.zeros(code_length))
        self.register_buffer("root", torch.eye(code_length))

    def learn_units(self, prior: CodePrior) -> None:
        """Tell codes from now on as multiples of the deviations of these."""
        self.mean = prior.mean.clone()
        self.root = torch.linalg.cholesky(prior.precision)

    def forward(self, points: Tensor, normals: Tensor) -> Guess:
        """The guesses for (B, K, 3) points, their boxes centred and of radius 1, and normals (0: unknown)."""
        features = self.alone(torch.cat([points, normals], dim=-1))
        most = features.amax(dim=1, keepdim=True).expand_as(features)
        features = self.together(torch.cat([features, most], dim=-1))
        whole = self.head(torch.cat([features.amax(dim=1), features.mean(dim=1)], dim=-1)).float()
        length = self.code_length
        odds, place, place_log, code, code_log, named = whole.split(
            [2, 4, 4, length, length, HEADS * length], dim=1
        )
        return Guess(
            odds[:, 0],
            0.1 * odds[:, 1],
            0.1 * place,
            (place_log - 2.5).clamp(-5, 1).exp(),
            code,
            code_log.clamp(-4, 2).exp(),
            named.unflatten(1, (HEADS, length)),
        )

    def codes(self, told: Tensor) -> Tensor:
        """Latent codes (..., L) of what a guess says of them."""
        flat = told.reshape(-1, self.code_length).T
        centred: Tensor = torch.linalg.solve_triangular(self.root.T, flat, upper=True).T
        return self.mean + centred.reshape(told.shape)

    @torch.no_grad()
    def suggest(self, surface: Tensor, normals: Tensor, rotations: Tensor) -> Suggestion:
        """For (K, 3) points and normals (NaN: unknown) of a scan, turned in T ways (T, 3, 3)."""
        picks = torch.linspace(0, len(surface) - 1, POINTS, device=surface.device).long()
        turned = _Turned(surface[picks], normals[picks].nan_to_num(0.0), rotations)
        return recorder(self._suggested, turned, "suggested", self)

    def _suggested(self, turned: _Turned) -> Suggestion:
        rotations = turned.rotations
        boxes = boxes_of(turned.points, rotations)
        points, normals = (some @ rotations.transpose(1, 2) for some in (turned.points, turned.normals))
        guess = self(normalized(points, boxes), normals)
        log_radius, centre = (usual_place(points.device) + guess.place).split([1, 3], dim=1)
        scale = log_radius.exp() / boxes.radius[:, None]
        onward = about_y(guess.yaw)
        turned_on = centre - scale * (onward @ boxes.centre[..., None])[..., 0]
        log_scale = scale[:, 0].log()
        weights = (DOUBT_CODE * guess.code_deviation.clamp(min=FINEST_CODE)) ** -2
        precision = (self.root * weights[:, None]) @ self.root.T
        return Suggestion(
            guess.log_odds,
            self.codes(guess.named),
            Placements(log_scale, onward @ rotations, turned_on),
            CodePrior(self.codes(guess.code), precision),
            ExpectedPlacements(
                Placements(log_scale, rotations, centre - scale * boxes.centre),
                DOUBT_PLACE * guess.place_deviation.clamp(min=FINEST_PLACE),
            ),
        )


def _layers(first: int, *sizes: int, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers, each with a ReLU."""
    parts: list[nn.Module] = []
    for inputs, outputs in zip((first, *sizes), sizes, strict=False):
        parts += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*parts)


def normalized(points: Tensor, boxes: Boxes) -> Tensor:
    """(B, K, 3) points with their boxes centred and of radius 1."""
    return (points - boxes.centre[:, None]) / boxes.radius[:, None, None]


def save_encoder(encoder: Encoder, file: Path, digest: str) -> None:
    """Write the weights, by rename, a byte each; `digest` is that of the decoder."""
    kept, weights = dict(encoder.named_buffers()), dict(encoder.named_parameters())
    for name, weight in weights.items():
        if weight.dim() == 2:
            kept[name], kept[name + SCALES] = _in_bytes(weight)
        else:
            kept[name] = weight
    told = {"code_length": encoder.code_length, "width": encoder.width, "decoder": digest}
    part = file.with_suffix(".part")
    tensors = {name: value.detach().cpu().contiguous() for name, value in kept.items()}
    save_file(tensors, part, metadata={"encoder": json.dumps(told)})
    part.rename(file)


def told_of(file: Path) -> dict[str, Any]:
    """Of an encoder's file: `code_length`, `width`, and the digest of its `decoder`."""
    with safe_open(file, framework="pt") as opened:
        told: dict[str, Any] = json.loads(opened.metadata()["encoder"])
    return told


def load_encoder(file: Path, device: str, digest: str) -> Encoder:
    """Read the weights, frozen. Raises StaleEncoder if they belong to another decoder than `digest`."""
    told = told_of(file)
    if told["decoder"] != digest:
        raise StaleEncoder(
            f"{file} was trained for another decoder: delete it, or train it anew with "
            f"python -m model.training.encoder {file.parent}"
        )
    encoder, kept = Encoder(told["code_length"], told["width"]), load_file(file)
    scales = {name.removesuffix(SCALES): kept.pop(name) for name in list(kept) if name.endswith(SCALES)}
    for name, scale in scales.items():
        kept[name] = kept[name].float() * scale
    encoder.load_state_dict(kept)
    return encoder.to(device).eval().requires_grad_(False)


def _in_bytes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, M) weights as int8, and what each row (N, 1) must be multiplied by."""
    scales = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    return (weight / scales).round().to(torch.int8), scales
