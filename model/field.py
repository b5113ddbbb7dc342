"""A signed-distance field in the canonical frame, whatever made it: what surface and report look at.

A field is a decoder with its code held (`DecodedField`), or that plus a correction that makes it pass
through what was observed (`CorrectedField`). Knows no observation and no mesh.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from model.decoder import Decoder


class Field(Protocol):
    """Signed distance of canonical points: negative inside, positive outside."""

    @property
    def device(self) -> torch.device:
        """Where points are expected."""

    @property
    def lipschitz(self) -> float:
        """L with |f(a) − f(b)| ≤ L · |a − b|: how steep the field may be. A true distance has 1."""

    @property
    def bend(self) -> float:
        """B with |f(p) − (f(p + d) + f(p − d)) / 2| ≤ B · |d|: how sharply it may bend. Never more than L."""

    def distance(self, points: Tensor) -> Tensor:
        """Signed distances (N,) of (N, 3) points."""

    def distance_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distances (N,) and their gradients (N, 3) at (N, 3) points."""


class DecodedField:
    """f(z, ·) of one code."""

    def __init__(self, decoder: Decoder, code: Tensor, lipschitz: float, bend: float | None = None) -> None:
        """`code` is (L,); `lipschitz` and `bend` come from the checkpoint's card."""
        self.decoder, self.code, self.lipschitz = decoder, code, lipschitz
        self.bend = lipschitz if bend is None else bend

    @property
    def device(self) -> torch.device:
        """The code's."""
        return self.code.device

    @torch.no_grad()
    def distance(self, points: Tensor) -> Tensor:
        """Signed distances (N,) of (N, 3) points."""
        distances: Tensor = self.decoder(self.code[None], points[None])
        return distances[0]

    def distance_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distances (N,) and their gradients (N, 3) at (N, 3) points."""
        distances, gradients = self.decoder.distance_and_normals(self.code[None], points[None])
        return distances[0], gradients[0]


def at_a_time(device: torch.device, few: int, many: int) -> int:
    """How much is computed at a time: `few` fit into a processor's cache, `many` keep a GPU busy."""
    return many if device.type == "cuda" else few
