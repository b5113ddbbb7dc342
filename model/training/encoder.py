"""Teach a checkpoint what a scan suggests at first sight: `python -m model.training.encoder FOLDER`.

From the checkpoint alone: scans are simulated of the shapes that its decoder makes
(`model.training.simulated`), and the network of `model.encoder` learns to tell turn, place and code. So an
imported checkpoint gets its encoder like any other. On a GPU it takes three minutes; on a CPU, with
`--scans 8000 --steps 3000 --batch 32`, about two hours of a core.

Loss of a scan, whose place p and code z in units of their deviations σ are known:

    cross entropy of the turn + |yaw| + NLL(p; μ, σ) + NLL(z; μ, σ) + `FIELD` · min_h |f(z_h, x) − f(z, x)|

In the last term stand the codes that are named. What counts is the field that the decoder makes of them, and
the best of them alone, so that each finds shapes of its own (multiple choice learning: Guzmán-Rivera, Batra,
Kohli, NIPS 2012); the others weigh a tenth.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from model.checkpoint import ENCODER_FILE, BadCheckpoint, Checkpoint, choose_device, load_checkpoint
from model.encoder import POINTS, Encoder, Guess, normalized, save_encoder, usual_place
from model.placement import Boxes, about_y, boxes_of, rotation_of
from model.training.compute import autocast
from model.training.simulated import Scans, simulated

TURNS = 24
"""Turns that the right one is told from, when a scan is looked at."""

WRONG = 3
"""Wrong turns shown of each scan; each stands for several."""

NEAR_TURN, FAR_TURN = math.radians(8), math.radians(12)
"""A turn is right up to the first, and wrong from the second on."""

TILT = math.radians(2)
"""Standard deviation of the vertical."""

NOISE, NOISY = 0.012, 0.7
"""Largest standard deviation of a point, canonical units, and the share of the scans that have noise."""

HOLES, HOLE = 0.4, (0.1, 0.4)
CUT, CUT_SHARE = 0.1, 0.25
"""Shares of the scans with a hole, of a radius in between, and of those with so much of them cut off."""

BARE = 0.1
"""Share of the scans without normals."""

FIELD, OTHERS, FAR = 30.0, 0.1, 1e-3
"""Weights of the field's error, of that of the codes that are not the best, and of their squared length."""

HELD_OUT = 0.02

Random = Callable[..., Tensor]
Bar = Callable[[Iterable[int], str], Iterable[int]]
"""Shows how far a loop is, of which it is told the name."""


@dataclass(frozen=True)
class Lesson:
    """How long is learnt, and from how much."""

    scans: int = 40_000
    steps: int = 9000
    batch: int = 192
    width: int = 64
    rate: float = 1e-3
    seed: int = 0


@dataclass(frozen=True)
class Shown:
    """B scans as the network sees them, once each in the right turn and then in wrong ones."""

    points: Tensor  # ((1 + WRONG) · B, K, 3)
    normals: Tensor  # ((1 + WRONG) · B, K, 3)
    yaw: Tensor  # (B,) by which the right turn is off
    place: Tensor  # (B, 4) as `Guess` tells it


@dataclass(frozen=True)
class Losses:
    """Parts of the loss, each a number."""

    turn: Tensor
    yaw: Tensor
    place: Tensor
    code: Tensor
    field: Tensor  # of the best named code
    others: Tensor  # of all of them
    length: Tensor  # squared, a dimension

    @property
    def total(self) -> Tensor:
        """What is made small."""
        told = self.turn + 10 * self.yaw + self.place + self.code
        return told + FIELD * (self.field + OTHERS * self.others) + FAR * self.length

    def told(self) -> str:
        """For people."""
        return ", ".join(f"{part.name} {float(getattr(self, part.name)):.4f}" for part in fields(self))


def shown(scans: Scans, generator: torch.Generator) -> Shown:
    """The scans spoilt as real ones are, and turned."""
    count, device = len(scans), scans.codes.device

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    points, normals = _spoilt(scans.points.float(), scans.normals.float(), random, generator)
    yaw = (2 * random(count) - 1) * NEAR_TURN * (random(count) < 0.7)
    wrong = FAR_TURN + (2 * math.pi - 2 * FAR_TURN) * random(WRONG * count)
    tilt = TILT * torch.randn(count, 3, generator=generator, device=device)
    turns = about_y(torch.cat([-yaw, wrong])) @ rotation_of(tilt).repeat(1 + WRONG, 1, 1)
    points, normals = (
        vectors.repeat(1 + WRONG, 1, 1) @ turns.transpose(1, 2) for vectors in (points, normals)
    )
    boxes = boxes_of(points, torch.eye(3, device=device)[None])
    right = Boxes(boxes.low[:count], boxes.size[:count])
    centre = (about_y(yaw) @ right.centre[..., None])[..., 0]
    usual = usual_place(points.device)
    place = torch.cat([right.radius.log()[:, None], centre], dim=1) - usual
    return Shown(normalized(points, boxes), normals, yaw, place)


def _spoilt(
    points: Tensor, normals: Tensor, random: Random, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """With noise, holes, a part cut off, or without normals; points lost are replaced by others."""
    count, each, _ = points.shape

    def gaussian() -> Tensor:
        return torch.randn(points.shape, generator=generator, device=points.device)

    noise = NOISE * random(count, 1, 1) * (random(count, 1, 1) < NOISY)
    points = points + noise * gaussian()
    normals = normalize(normals + (0.05 + 6 * noise) * gaussian(), dim=-1)
    normals = normals * (random(count, 1, 1) >= BARE)
    middle = points[:, :1]  # any point: they are in no order
    reach = (HOLE[0] + (HOLE[1] - HOLE[0]) * random(count, 1)) * (random(count, 1) < HOLES)
    lost = (points - middle).norm(dim=-1) < reach
    way = normalize(gaussian()[:, :1], dim=-1)
    along = (points * way).sum(dim=-1)
    cut_off = along < torch.quantile(along, CUT_SHARE, dim=1, keepdim=True)
    lost |= cut_off & (random(count, 1) < CUT)
    others = torch.multinomial(1e-6 + (~lost).float(), each, True, generator=generator)
    picks = torch.where(lost, others, torch.arange(each, device=points.device))[..., None].expand(-1, -1, 3)
    return points.gather(1, picks), normals.gather(1, picks)


def losses(encoder: Encoder, checkpoint: Checkpoint, scans: Scans, generator: torch.Generator) -> Losses:
    """How wrong the network is of some scans, on average."""
    count, seen = len(scans), shown(scans, generator)
    with autocast("bfloat16", scans.codes.device.type):
        guess = encoder(seen.points, seen.normals)
    right = Guess(*(part[:count] for part in vars(guess).values()))
    is_right = torch.zeros_like(guess.log_odds)
    is_right[:count] = 1
    stands_for = torch.where(is_right > 0, 1.0, (TURNS - 1) / WRONG) * 2 / TURNS
    turn = binary_cross_entropy_with_logits(guess.log_odds, is_right, stands_for, reduction="sum") / count
    true_codes = (scans.codes - encoder.mean) @ encoder.root
    errors = _field_errors(checkpoint, encoder.codes(right.named), scans)
    return Losses(
        turn=turn,
        yaw=(right.yaw - seen.yaw).abs().clamp(max=0.3).mean(),
        place=_surprise(seen.place - right.place, right.place_deviation),
        code=_surprise(true_codes - right.code, right.code_deviation),
        field=errors.amin(dim=1).mean(),
        others=errors.mean(),
        length=right.named.square().mean(),
    )


def _field_errors(checkpoint: Checkpoint, named: Tensor, scans: Scans) -> Tensor:
    """Mean errors of the clamped fields of (B, H, L) codes, (B, H)."""
    heads, delta = named.shape[1], checkpoint.clamping_distance
    places = scans.places.float().repeat_interleave(heads, dim=0)
    with autocast("bfloat16", named.device.type):
        found = checkpoint.decoder(named.flatten(0, 1), places).float().clamp(-delta, delta)
    apart: Tensor = found.unflatten(0, (-1, heads)) - scans.distances.float()[:, None]
    return apart.abs().mean(dim=-1)


def _surprise(off: Tensor, deviation: Tensor) -> Tensor:
    """Negative log likelihood of a Gaussian, constants aside, of each number on average."""
    return (0.5 * (off / deviation).square() + deviation.log()).mean()


def collected(checkpoint: Checkpoint, lesson: Lesson, bar: Bar) -> Scans:
    """Simulated scans, kept in half precision."""
    batch = 256 if checkpoint.device.type == "cuda" else 16
    source = simulated(checkpoint, POINTS, batch, lesson.seed)
    parts: list[Scans] = []
    for _ in bar(range(-(-lesson.scans // batch)), "scans"):
        parts.append(next(source).halved())
    return Scans.joined(parts)


def learnt(checkpoint: Checkpoint, lesson: Lesson, bar: Bar) -> tuple[Encoder, Losses]:
    """The network, and its losses on the scans that were held out."""
    device = checkpoint.device
    scans = collected(checkpoint, lesson, bar)
    torch.manual_seed(lesson.seed)
    generator = torch.Generator(device).manual_seed(lesson.seed)
    encoder = Encoder(checkpoint.codes.shape[1], lesson.width).to(device)
    encoder.learn_units(checkpoint.prior)
    held_out = max(1, round(HELD_OUT * len(scans)))
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=lesson.rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lesson.rate, lesson.steps, pct_start=0.05)
    for _ in bar(range(lesson.steps), "steps"):
        picks = torch.randint(held_out, len(scans), (lesson.batch,), generator=generator, device=device)
        loss = losses(encoder, checkpoint, scans.of(picks), generator).total
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    encoder.eval()
    first = torch.arange(held_out, device=device)
    with torch.no_grad():
        return encoder, losses(encoder, checkpoint, scans.of(first), generator)


def _parser() -> argparse.ArgumentParser:
    usual = Lesson()
    parser = argparse.ArgumentParser(prog="python -m model.training.encoder", description=__doc__)
    parser.add_argument("folder", type=Path, help="a checkpoint")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--scans", type=int, default=usual.scans, help="simulated scans [%(default)s]")
    parser.add_argument("--steps", type=int, default=usual.steps, help="steps of AdamW [%(default)s]")
    parser.add_argument("--batch", type=int, default=usual.batch, help="scans a step [%(default)s]")
    parser.add_argument("--seed", type=int, default=usual.seed)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the encoder of a finished checkpoint and write it beside the decoder."""
    parser = _parser()
    options = parser.parse_args(arguments)
    lesson = Lesson(options.scans, options.steps, options.batch, seed=options.seed)
    file = options.folder / ENCODER_FILE
    try:
        checkpoint = load_checkpoint(options.folder, choose_device(options.device), encoder=False)
    except BadCheckpoint as error:
        parser.exit(1, f"{error}\n")
    encoder, found = learnt(checkpoint, lesson, lambda numbers, name: track(numbers, name))
    save_encoder(encoder, file, checkpoint.digest)
    print(f"{file}: on scans held out, {found.told()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
