"""Where scans stand: B similarities from the observation's frame into the canonical one, and their moves.

A move is (log scale, translation, rotation vector): seven numbers, of which a pose mode frees some. The
mean of a partial scan is no point of the shape's frame, so none of them is known beforehand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.frame import Similarity

MOVE_SIZE = 7
SCALE, TRANSLATION, ROTATION = slice(0, 1), slice(1, 4), slice(4, 7)

FREEDOM: dict[str, tuple[float, ...]] = {
    "known": (0, 0, 0, 0, 0, 0, 0),
    "canonical": (1, 1, 1, 1, 0, 0, 0),
    "upright": (1, 1, 1, 1, 0, 1, 0),
    "free": (1, 1, 1, 1, 1, 1, 1),
}
"""Which parts of a move each pose mode leaves to the fit; the yaw axis is y."""


EXPECTED_LOG_SCALE, SCALE_STD = -0.02, 0.08
EXPECTED_CENTRE, TRANSLATION_STD = (0.0, 0.01, -0.02), (0.03, 0.03, 0.09)
"""What one view of a depth camera shows of an object, along the axes of its canonical frame: nearly all of
its bounding box. Logarithm of the box's radius (half its diagonal), and its centre; canonical units. Rounded
from 2,400 views of 229 pieces of furniture, 138 planes and 33 cars, which differ little (docs/log.md)."""


@dataclass(frozen=True)
class Boxes:
    """Bounding boxes of a scan, turned in T ways, without its outermost points."""

    low: Tensor  # (T, 3)
    size: Tensor  # (T, 3)

    @property
    def radius(self) -> Tensor:
        """Half the diagonals, (T,)."""
        half: Tensor = self.size.norm(dim=1) / 2
        return half.clamp(min=1e-6)

    @property
    def centre(self) -> Tensor:
        """The middles, (T, 3)."""
        return self.low + self.size / 2


def boxes_of(surface: Tensor, rotations: Tensor) -> Boxes:
    """The boxes of (K, 3) points, or of (T, K, 3), at rotations (T, 3, 3)."""
    ranked = (surface @ rotations.transpose(1, 2)).sort(dim=1).values  # (T, K, 3)
    low, high = _quantile(ranked, 0.005), _quantile(ranked, 0.995)
    return Boxes(low, high - low)


def _quantile(ranked: Tensor, share: float) -> Tensor:
    """(T, 3) of (T, K, 3) values in order. `torch.quantile` would bring the share to the device each time."""
    place = share * (ranked.shape[1] - 1)
    return torch.lerp(ranked[:, math.floor(place)], ranked[:, math.ceil(place)], place % 1)


@dataclass(frozen=True)
class Placements:
    """x = e^{log_scale} · rotation · p + translation, B times."""

    log_scale: Tensor  # (B,)
    rotation: Tensor  # (B, 3, 3)
    translation: Tensor  # (B, 3) canonical units

    @classmethod
    def identity(cls, count: int, device: torch.device | str = "cpu") -> Placements:
        """`count` times the placement that moves nothing."""
        eye = torch.eye(3, device=device).expand(count, 3, 3).clone()
        return cls(torch.zeros(count, device=device), eye, torch.zeros(count, 3, device=device))

    @classmethod
    def joined(cls, parts: list[Placements]) -> Placements:
        """All placements of the parts, in order."""
        return cls(
            torch.cat([part.log_scale for part in parts]),
            torch.cat([part.rotation for part in parts]),
            torch.cat([part.translation for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.log_scale)

    @property
    def scale(self) -> Tensor:
        """Canonical units a unit of the observation, (B,)."""
        return self.log_scale.exp()

    def of(self, picks: Tensor | slice) -> Placements:
        """The given ones."""
        return Placements(self.log_scale[picks], self.rotation[picks], self.translation[picks])

    def turned(self, vectors: Tensor) -> Tensor:
        """(B, K, 3) vectors rotated."""
        return vectors @ self.rotation.transpose(1, 2)

    def apply(self, points: Tensor) -> Tensor:
        """Canonical points (B, K, 3) of (B, K, 3) points."""
        return self.scale[:, None, None] * self.turned(points) + self.translation[:, None]

    def inverted(self, points: Tensor) -> Tensor:
        """The points (B, K, 3) of (B, K, 3) canonical ones: what `apply` undoes."""
        return (points - self.translation[:, None]) @ self.rotation / self.scale[:, None, None]

    def moved(self, moves: Tensor) -> Placements:
        """The placements after (B, 7) moves; the rotation turns about the observation's origin."""
        return Placements(
            self.log_scale + moves[:, 0],
            rotation_of(moves[:, ROTATION]) @ self.rotation,
            self.translation + moves[:, TRANSLATION],
        )

    def since(self, start: Placements) -> Tensor:
        """The moves (B, 7) that lead here from `start`."""
        turn = vector_of(self.rotation @ start.rotation.transpose(1, 2))
        scale = (self.log_scale - start.log_scale)[:, None]
        return torch.cat([scale, self.translation - start.translation, turn], dim=1)

    def similarity(self, index: int) -> Similarity:
        """One of them as plain numbers, its rotation orthogonal to double precision."""
        left, _, right = np.linalg.svd(self.rotation[index].detach().cpu().double().numpy())
        translation = self.translation[index].detach().cpu().double().numpy()
        return Similarity(float(self.log_scale[index].double().exp()), left @ right, translation)


@dataclass(frozen=True)
class ExpectedPlacements:
    """Where B scans are expected to stand, and how surely: the prior of a fit's placement."""

    placements: Placements
    deviation: Tensor  # (B, 4) standard deviations of log scale and translation

    @classmethod
    def around(cls, placements: Placements) -> ExpectedPlacements:
        """As surely as `by_outline` knows them."""
        usual = placements.translation.new_tensor([SCALE_STD, *TRANSLATION_STD])
        return cls(placements, usual.expand(len(placements), 4))

    @classmethod
    def joined(cls, parts: list[ExpectedPlacements]) -> ExpectedPlacements:
        """All of the parts, in order."""
        placements = Placements.joined([part.placements for part in parts])
        return cls(placements, torch.cat([part.deviation for part in parts]))

    def of(self, picks: Tensor) -> ExpectedPlacements:
        """The given ones."""
        return ExpectedPlacements(self.placements.of(picks), self.deviation[picks])


def by_outline(surface: Tensor, rotations: Tensor) -> ExpectedPlacements:
    """Where (K, 3) points of a scan, turned in T ways (T, 3, 3), are expected in the canonical frame.

    A sensor that sees an object from one side sees its outline, and so nearly how large it is.
    """
    boxes = boxes_of(surface, rotations)
    scale = math.exp(EXPECTED_LOG_SCALE) / boxes.radius
    translation = surface.new_tensor(EXPECTED_CENTRE) - scale[:, None] * boxes.centre
    return ExpectedPlacements.around(Placements(scale.log(), rotations, translation))


def gradient_by_move(by_point: Tensor, scaled: Tensor, offsets: Tensor) -> Tensor:
    """∂f/∂move (B, K, 7) from ∂f/∂x (B, K, 3), with s·R·p and the turned offsets, each (B, K, 3)."""
    by_scale = (by_point * scaled).sum(dim=-1, keepdim=True)
    by_rotation = torch.linalg.cross(scaled + offsets, by_point)
    return torch.cat([by_scale, by_point, by_rotation], dim=-1)


def rotation_of(vectors: Tensor) -> Tensor:
    """Rotation matrices (B, 3, 3) of (B, 3) rotation vectors (Rodrigues)."""
    angle = vectors.norm(dim=1)[:, None, None]
    cross = _cross_matrix(vectors)
    sine = torch.sinc(angle / torch.pi)  # sin(angle) / angle
    versine = torch.sinc(angle / (2 * torch.pi)).square() / 2  # (1 - cos(angle)) / angle²
    eye = torch.eye(3, dtype=vectors.dtype, device=vectors.device)
    return eye + sine * cross + versine * (cross @ cross)


def _cross_matrix(v: Tensor) -> Tensor:
    zero = torch.zeros_like(v[:, 0])
    rows = [zero, -v[:, 2], v[:, 1], v[:, 2], zero, -v[:, 0], -v[:, 1], v[:, 0], zero]
    return torch.stack(rows, dim=1).reshape(-1, 3, 3)


def vector_of(rotations: Tensor) -> Tensor:
    """Rotation vectors (B, 3) of (B, 3, 3) rotation matrices; near a half turn the axis is imprecise."""
    skew = rotations - rotations.transpose(1, 2)
    twice = torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], dim=1)  # 2 sin(angle) · axis
    cosine = ((rotations.diagonal(dim1=1, dim2=2).sum(dim=1) - 1) / 2).clamp(-1, 1)
    sine = twice.norm(dim=1) / 2
    angle = torch.atan2(sine, cosine)
    share: Tensor = (angle / sine.clamp(min=1e-6)).where(sine > 1e-6, torch.ones_like(sine))
    return twice / 2 * share[:, None]


def yaws(count: int, device: torch.device | str = "cpu") -> Tensor:
    """`count` rotations (count, 3, 3) about +y at equal steps, the first of them none."""
    return about_y(torch.arange(count, device=device) * (2 * torch.pi / count))


def about_y(angles: Tensor) -> Tensor:
    """Rotations (B, 3, 3) by (B,) radians about the vertical."""
    return rotation_of(torch.nn.functional.pad(angles[:, None], (1, 1)))


def rotations_all_around(count: int, device: torch.device | str = "cpu") -> Tensor:
    """About evenly spread rotations (count, 3, 3): a super-Fibonacci spiral of quaternions.

    Alexa, "Super-Fibonacci Spirals: Fast, Low-Discrepancy Sampling of SO(3)", CVPR 2022, algorithm 1.
    """
    phi, psi = 2**0.5, 1.533751168755204288118041
    s = torch.arange(count, device=device, dtype=torch.float64) + 0.5
    inner, outer = (s / count).sqrt(), (1 - s / count).sqrt()
    alpha, beta = 2 * torch.pi * s / phi, 2 * torch.pi * s / psi
    x, y = inner * alpha.sin(), inner * alpha.cos()
    z, w = outer * beta.sin(), outer * beta.cos()
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=1).reshape(-1, 3, 3).float()
