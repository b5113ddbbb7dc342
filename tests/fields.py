"""Fields that tests make of a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CPU = torch.device("cpu")


@dataclass(frozen=True)
class TorchField:
    """A field that torch computes, no steeper than a distance and not bent more sharply."""

    evaluate: Callable[[Tensor], Tensor]
    lipschitz: float = 1.0
    bend: float = 1.0
    device: torch.device = CPU

    def distance(self, points: Tensor) -> Tensor:
        return self.evaluate(points)

    def distance_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            values = self.evaluate(points)
            (gradient,) = torch.autograd.grad(values.sum(), [points])
        return values.detach(), gradient
