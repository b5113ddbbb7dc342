"""How steep a decoder is and how sharply it bends: `python -m model.training.lipschitz checkpoints/chairs`.

What `model.surface` leaves out rests on two bounds of f(z, ·), for points p and steps d of the lengths
between the corners of its grids:

    |f(p) − f(p + d)| ≤ L |d|     and     |f(p) − (f(p + d) + f(p − d)) / 2| ≤ B |d|.

Both are estimated where a surface is near, for codes of training shapes, of their variants, of draws from
the prior and of interpolations: at random points first, then by ascent from the worst of them. The card's L
and B are the largest ratios found, times `SAFETY`. They bound what was found and are not proven; an
extraction that meets a contradiction begins anew with larger ones.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoint import BadCheckpoint, choose_device, load_checkpoint, write_card
from model.decoder import Decoder
from model.problems import CodePrior
from model.surface import FEWEST_CELLS, HALF_WIDTH

NEAR = 0.2
"""Twice the clamping distance: where the farthest of the steps may meet a surface."""

STEPS = tuple(HALF_WIDTH / FEWEST_CELLS / 2**k for k in range(7))
"""Lengths of steps: half the spacing of the coarsest grid, down to half of that with 513 corners an edge."""

SAFETY = 1.2

CODES = 32
"""Codes of each of the four kinds."""

POINTS, WORST, ASCENTS = 2000, 6, 24
"""Points of a code, how many of them are improved for each length of step, and in how many moves."""

CHUNK_CODES = 8


@dataclass(frozen=True)
class Steepness:
    """What goes into the card, and the largest ratios found for each length of step."""

    steep: tuple[float, ...]
    bent: tuple[float, ...]

    @property
    def lipschitz(self) -> float:
        """L, with its safety."""
        return SAFETY * max(self.steep)

    @property
    def bend(self) -> float:
        """B, with its safety; a field never bends more sharply than it is steep."""
        return min(SAFETY * max(self.bent), self.lipschitz)

    def card(self) -> dict[str, float]:
        """The entries of a checkpoint's card."""
        return {"lipschitz": round(self.lipschitz, 3), "bend": round(self.bend, 3)}


def steepness(
    decoder: Decoder, codes: Tensor, own: list[int], seed: int = 0, count: int = CODES
) -> Steepness:
    """Estimate L and B of a decoder for (N, L) codes of training, of which the rows `own` are no variants.

    `count` is how many codes of each kind are looked at.
    """
    decoder.eval()
    generator = torch.Generator().manual_seed(seed)
    looked_at = kinds_of_codes(codes.detach(), own, count, generator)
    found = torch.zeros(2, len(STEPS))
    for chunk in looked_at.split(CHUNK_CODES):
        constants = [constant.detach().unsqueeze(1) for constant in decoder.fold(chunk)]
        found = torch.maximum(found, _largest(decoder, constants, generator))
    steep, bent = found.tolist()
    return Steepness(tuple(steep), tuple(bent))


def kinds_of_codes(codes: Tensor, own: list[int], count: int, generator: torch.Generator) -> Tensor:
    """Up to 4 · `count` codes: of training shapes, of variants, drawn from the prior, and in between."""

    def some(rows: Tensor) -> Tensor:
        return codes[rows[torch.randperm(len(rows), generator=generator)[:count]].to(codes.device)]

    is_own = torch.zeros(len(codes), dtype=torch.bool)
    is_own[own] = True
    one, other = (torch.randint(len(codes), (count,), generator=generator) for _ in range(2))
    share = torch.rand(count, 1, generator=generator).to(codes)
    between = torch.lerp(codes[one.to(codes.device)], codes[other.to(codes.device)], share)
    prior = CodePrior.from_codes(codes)
    spread = torch.linalg.cholesky(torch.linalg.inv(prior.precision))
    draws = prior.mean + torch.randn(count, codes.shape[1], generator=generator).to(codes) @ spread.T
    return torch.cat([some(is_own.nonzero()[:, 0]), some((~is_own).nonzero()[:, 0]), draws, between])


def _largest(decoder: Decoder, constants: list[Tensor], generator: torch.Generator) -> Tensor:
    """Largest steepness and bend (2, lengths) of some codes' fields."""
    points, normals = _points_near_the_surface(decoder, constants, generator)
    noise = torch.randn(points.shape, generator=generator).to(points)
    stencil = _Stencil(decoder, constants, points, normals + 0.5 * noise)
    with torch.no_grad():
        ratios = torch.stack([stencil.ratios(length) for length in STEPS], dim=1)
    worst = ratios.flatten(0, 1).topk(WORST, dim=-1).indices  # (2 · lengths, S, WORST)
    return stencil.of(worst).ascended().view(2, len(STEPS)).cpu()


@dataclass
class _Stencil:
    """Points (S, N, 3) of S fields, and directions (S, N, 3) of any length in which steps are taken."""

    decoder: Decoder
    constants: list[Tensor]
    points: Tensor
    directions: Tensor

    def ratios(self, length: float | Tensor) -> Tensor:
        """Steepness and bend (2, S, N) for steps of these lengths; 0 far from the surface."""
        step = length * torch.nn.functional.normalize(self.directions, dim=-1)
        middle, ahead, behind = (
            self.decoder.evaluate(self.constants, self.points + sign * step) for sign in (0, 1, -1)
        )
        near = middle.detach().abs() <= NEAR
        steep = torch.maximum((ahead - middle).abs(), (behind - middle).abs())
        bent = (middle - (ahead + behind) / 2).abs()
        size = step.norm(dim=-1)
        return torch.stack([near * steep / size, near * bent / size])

    def of(self, picks: Tensor) -> _Stencil:
        """Those of some (groups, S, n) of the points, group after group."""
        index = picks.movedim(0, 1).flatten(1).unsqueeze(-1).expand(-1, -1, 3)
        return replace(self, points=self.points.gather(1, index), directions=self.directions.gather(1, index))

    def ascended(self) -> Tensor:
        """The largest ratio (groups) that is met while points and directions go where it grows.

        The groups are those of each kind of ratio and, among these, of each length of step.
        """
        points, directions = self.points, self.directions
        fields, groups = len(points), 2 * len(STEPS)
        lengths = (
            torch.tensor(STEPS).to(points).repeat(2).repeat_interleave(points.shape[1] // groups)[:, None]
        )
        best = points.new_zeros(groups)
        for move in range(ASCENTS + 1):
            points, directions = points.detach().requires_grad_(), directions.detach().requires_grad_()
            with torch.enable_grad():
                both = replace(self, points=points, directions=directions).ratios(lengths)
                steep, bent = both[0].chunk(2, dim=1)[0], both[1].chunk(2, dim=1)[1]
                ratio = torch.cat([steep, bent], dim=1)
                ways = torch.autograd.grad(ratio.sum(), [points, directions])
            best = torch.maximum(best, ratio.detach().view(fields, groups, -1).amax(dim=(0, 2)))
            stride = 0.3 * (1 - move / ASCENTS)
            to_point, to_direction = (torch.nn.functional.normalize(way, dim=-1) for way in ways)
            points = (points + stride * lengths * to_point).clamp(-HALF_WIDTH, HALF_WIDTH)
            directions = torch.nn.functional.normalize(directions, dim=-1) + stride * to_direction
        return best


def _points_near_the_surface(
    decoder: Decoder, constants: list[Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Points (S, P, 3) of the grid's cube, half of them close to the surface, and unit gradients there."""
    shape = (len(constants[0]), POINTS, 3)
    points = (2 * torch.rand(shape, generator=generator) - 1).to(constants[0]) * HALF_WIDTH
    for _ in range(3):
        values, gradients = _with_gradient(decoder, constants, points)
        size = gradients.norm(dim=-1).clamp(min=0.3)
        aim = (torch.rand(values.shape, generator=generator).to(values) - 0.5) * 0.05
        move = -((values - aim) / size.square()).unsqueeze(-1) * gradients
        points[:, : POINTS // 2] += move[:, : POINTS // 2].clamp(-0.1, 0.1)
        points = points.clamp(-HALF_WIDTH, HALF_WIDTH)
    _, gradients = _with_gradient(decoder, constants, points)
    return points, torch.nn.functional.normalize(gradients, dim=-1)


def _with_gradient(decoder: Decoder, constants: list[Tensor], points: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        values = decoder.evaluate(constants, points)
        (gradients,) = torch.autograd.grad(values.sum(), [points])
    return values.detach(), gradients


def main() -> int:
    """Estimate both constants of a finished checkpoint and write them into its card."""
    parser = argparse.ArgumentParser(prog="python -m model.training.lipschitz", description=__doc__)
    parser.add_argument("folder", type=Path, help="a checkpoint")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    options = parser.parse_args()
    try:
        checkpoint = load_checkpoint(options.folder, choose_device(options.device))
    except BadCheckpoint as error:
        parser.exit(1, f"{error}\n")
    found = steepness(checkpoint.decoder, checkpoint.codes, checkpoint.own_shapes)
    for step, steep, bent in zip(STEPS, found.steep, found.bent, strict=True):
        print(f"steps of {step:.4f}: steepness up to {steep:.2f}, bend up to {bent:.2f}")
    write_card(options.folder, {**checkpoint.card, **found.card()})
    print(f"{options.folder}: lipschitz {found.lipschitz:.3f}, bend {found.bend:.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
