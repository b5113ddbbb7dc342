"""Scans of shapes that a decoder makes: its fields seen by a depth camera, by sphere tracing.

The decoder knows more shapes than it was trained on: codes between those of two shapes, and near one, are
shapes as well. So scans can be had from a checkpoint alone, of as many shapes as one likes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from model.checkpoint import Checkpoint
from model.decoder import Decoder
from model.training.compute import autocast

SIDE, FIELD_OF_VIEW = 56, 50.0
"""Rays along an edge of a view, and degrees between the outermost of them."""

LOWEST, HIGHEST = 5.0, 60.0  # degrees of elevation
NEAREST, FARTHEST = 2.0, 3.5  # of the camera from what it looks at
OFF_CENTRE = 0.15  # which is so far from the origin at most, along each axis

BALL = 1.02
"""Rays are followed within this radius."""

STEPS, SHARE, SHORTEST, LONGEST = 44, 0.85, 0.004, 0.09
"""Steps of a ray at most, what share of a distance is trusted, and bounds of a step."""

REACHED = 0.003
FEWEST_HITS = 300

SAMPLES, TRIED = 384, 1500
"""Signed distances kept of a shape, most of them near its surface, and those that they are chosen from."""

BETWEEN, NEARBY = 0.3, 0.1
"""Share of the codes that lie between two shapes', and deviations by which half of them are moved."""

SEVERAL = 0.3
"""Share of the scans that are of two or three views."""


@dataclass(frozen=True)
class Scans:
    """N simulated scans in the canonical frame, of K points each, and the shapes that they show."""

    points: Tensor  # (N, K, 3)
    normals: Tensor  # (N, K, 3) towards the sensor
    codes: Tensor  # (N, L)
    places: Tensor  # (N, M, 3) somewhere, most of them near the surface
    distances: Tensor  # (N, M) signed, clamped: the field there

    def __len__(self) -> int:
        return len(self.codes)

    def of(self, picks: Tensor) -> Scans:
        """The given ones."""
        return Scans(*(part[picks] for part in vars(self).values()))

    @classmethod
    def joined(cls, parts: list[Scans]) -> Scans:
        """All of the parts, in order."""
        return cls(
            *(torch.cat(column) for column in zip(*(vars(part).values() for part in parts), strict=True))
        )

    def halved(self) -> Scans:
        """In half precision, the codes aside."""
        halves = (part if part is self.codes else part.half() for part in vars(self).values())
        return Scans(*halves)


def simulated(checkpoint: Checkpoint, points: int, batch: int, seed: int = 0) -> Iterator[Scans]:
    """Batches without end of at most `batch` scans of so many points: some show too little."""
    generator = torch.Generator(checkpoint.device).manual_seed(seed)
    while True:
        yield _batch(checkpoint, draw_codes(checkpoint.codes, batch, generator), points, generator)


def draw_codes(codes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Codes (count, L): some of the (N, L) training codes, some between two, some near those."""

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=codes.device)

    picks = torch.randint(len(codes), (2, count), generator=generator, device=codes.device)
    one, other = codes[picks]
    share = 0.5 * random(count, 1) * (random(count, 1) < BETWEEN)
    noise = torch.randn(one.shape, generator=generator, device=codes.device) * (random(count, 1) < 0.5)
    return torch.lerp(one, other, share) + NEARBY * codes.std(dim=0) * noise


def _batch(checkpoint: Checkpoint, codes: Tensor, count: int, generator: torch.Generator) -> Scans:
    decoder = checkpoint.decoder
    rolled = torch.rand(len(codes), generator=generator, device=codes.device)
    shares = (1.0, SEVERAL, SEVERAL / 2)  # of two views, half have a third
    views = [_view(decoder, codes, rolled < share, generator) for share in shares]
    points = torch.cat([view.points for view in views], dim=1)
    directions = torch.cat([view.directions for view in views], dim=1)
    hits = torch.cat([view.hits for view in views], dim=1)
    enough = hits.sum(dim=1) >= FEWEST_HITS
    codes, picks = codes[enough], torch.multinomial(hits[enough].float(), count, True, generator=generator)
    points, directions = (
        part[enough].gather(1, picks[..., None].expand(-1, -1, 3)) for part in (points, directions)
    )
    _, normals = decoder.distance_and_normals(codes, points)
    normals = normalize(normals, dim=-1)
    normals = torch.where((normals * directions).sum(dim=-1, keepdim=True) > 0, -normals, normals)
    places, distances = _samples(checkpoint, codes, generator)
    # The field is thicker than the shape by the skin, on every side.
    return Scans(points - checkpoint.skin * normals, normals, codes, places, distances)


@dataclass(frozen=True)
class _View:
    points: Tensor  # (B, R, 3)
    directions: Tensor  # (B, R, 3)
    hits: Tensor  # (B, R) bool


def _view(decoder: Decoder, codes: Tensor, wanted: Tensor, generator: torch.Generator) -> _View:
    """One view of each shape, from somewhere around it; of those that are not wanted (B,) without hits."""

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, device=codes.device)

    count = len(codes)
    azimuth = between(0, 2 * math.pi, count)
    elevation = torch.deg2rad(between(LOWEST, HIGHEST, count))
    outward = torch.stack(
        [azimuth.sin() * elevation.cos(), elevation.sin(), azimuth.cos() * elevation.cos()], dim=1
    )
    target = between(-OFF_CENTRE, OFF_CENTRE, count, 3)
    eyes = target + between(NEAREST, FARTHEST, count, 1) * outward
    return traced(decoder, codes, eyes, rays(-outward), wanted)


def rays(forward: Tensor) -> Tensor:
    """Unit directions (B, SIDE², 3) of cameras that look along (B, 3) directions, none of them vertical."""
    up = forward.new_tensor([0.0, 1.0, 0.0]).expand_as(forward)
    right = normalize(torch.linalg.cross(forward, up), dim=1)
    down = torch.linalg.cross(forward, right)
    edge = math.tan(math.radians(FIELD_OF_VIEW) / 2)
    steps = torch.linspace(-edge, edge, SIDE, device=forward.device)
    across, along = torch.cartesian_prod(steps, steps).T[..., None]
    return normalize(forward[:, None] + across * right[:, None] + along * down[:, None], dim=2)


@torch.no_grad()
def traced(decoder: Decoder, codes: Tensor, eyes: Tensor, directions: Tensor, wanted: Tensor) -> _View:
    """Follow rays (B, R, 3) from (B, 3) eyes to the fields' surfaces of (B, L) codes, where wanted (B,)."""
    origins = eyes[:, None].expand_as(directions)
    near, far, meets = _through_ball(origins, directions)
    alive = meets & wanted[:, None]
    hits = torch.zeros_like(alive)
    constants = decoder.fold(codes)
    for _ in range(STEPS):
        which, ray = alive.nonzero(as_tuple=True)
        if len(which) == 0:
            break
        points = origins[which, ray] + near[which, ray, None] * directions[which, ray]
        with autocast("bfloat16", codes.device.type):
            distances = decoder.evaluate([part[which][None] for part in constants], points[None])[0].float()
        reached = distances <= REACHED
        near[which, ray] += (SHARE * distances).clamp(SHORTEST, LONGEST) * ~reached
        hits[which, ray] = reached
        alive[which, ray] = ~reached & (near[which, ray] < far[which, ray])
    return _View(origins + near[..., None] * directions, directions, hits)


def _through_ball(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How far along each ray the ball begins and ends, (B, R) each, and whether the ray meets it."""
    along = (origins * directions).sum(dim=-1)
    inside = along.square() - origins.square().sum(dim=-1) + BALL**2
    half = inside.clamp(min=0).sqrt()
    return -along - half, -along + half, inside > 0


@torch.no_grad()
def _samples(checkpoint: Checkpoint, codes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Places (B, SAMPLES, 3) and signed distances there (B, SAMPLES)."""
    shape = len(codes), TRIED
    outward = normalize(torch.randn(*shape, 3, generator=generator, device=codes.device), dim=2)
    tried = outward * torch.rand(*shape, 1, generator=generator, device=codes.device) ** (1 / 3)
    with autocast("bfloat16", codes.device.type):
        values = checkpoint.decoder(codes, tried).float()
    values = values.clamp(-checkpoint.clamping_distance, checkpoint.clamping_distance)
    likely = (-values.abs() / 0.02).exp() + 0.03
    picks = torch.multinomial(likely, SAMPLES, False, generator=generator)
    return tried.gather(1, picks[..., None].expand(-1, -1, 3)), values.gather(1, picks)
