"""The decoder on a GPU in one launch of `model.kernels.decode`, its weights laid out as that wants them."""

from __future__ import annotations

from functools import cache, cached_property

import torch
from torch import Tensor

from model.decoder import Decoder
from model.kernels import launch, power_of_two, usable

ROWS, COLUMNS, SHARE, STAGES, WARPS = 64, 128, 32, 3, 4
"""Points that a program works on, outputs and inputs of a layer that it multiplies at a time, how many of the
latter are on their way to it, and how many warps it has: the fastest of some on an H200 (docs/log.md)."""

PROGRAMS = 2
"""There is room for so many on a multiprocessor."""

LARGEST = 256.0
"""Weights are multiplied by a power of two that makes the largest about so large: what half precision leaves
of them is then large enough for it too."""


class FusedDecoder(Decoder):
    """A decoder as it is served: once it is frozen and on a GPU, all of its layers are one launch.

    Elsewhere, and where there is no kernel for it, it is the plain one.
    """

    def forward(self, codes: Tensor, points: Tensor, depth: float | None = None) -> Tensor:
        """Signed distances (S, N) for (S, L) codes and (S, N, 3) points; `depth` as in `evaluate`."""
        wanted = torch.is_grad_enabled() and (codes.requires_grad or points.requires_grad)
        if depth is None and not wanted and (layers := self._layers(points)):
            return layers(codes, points)[0]
        return super().forward(codes, points, depth)

    def distance_and_gradients(self, codes: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Signed distances (S, N), their gradients in the code (S, N, L) and in the point (S, N, 3)."""
        if layers := self._layers(points):
            distances, by_point, by_code = layers(codes, points, sloped=True, coded=True)
            return distances, by_code, by_point
        return super().distance_and_gradients(codes, points)

    def distance_and_normals(self, codes: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distances (S, N) and their gradients in the point (S, N, 3)."""
        if layers := self._layers(points):
            return layers(codes, points, sloped=True)[:2]
        return super().distance_and_normals(codes, points)

    def _layers(self, points: Tensor) -> Layers | None:
        """What evaluates these points in one launch."""
        if self.training or self.last.weight.requires_grad or points.dtype != torch.float32:
            return None
        return self._packed if usable(points.device) else None

    @cached_property
    def _packed(self) -> Layers | None:
        spec = self.spec
        known = not (spec.layer_norm or spec.points_in_all or spec.depth in spec.fed)
        return Layers(self) if known else None


class Layers:
    """A frozen decoder's layers, as `kernels.decode` reads them."""

    def __init__(self, decoder: Decoder) -> None:
        spec, last = decoder.spec, decoder.last
        self.octaves, self.tanh, depth = spec.octaves, spec.tanh, spec.depth
        self.length, self.fed = spec.code_length, sum(1 << layer for layer in spec.fed)
        width, encoded = power_of_two(spec.width, SHARE), power_of_two(spec.point_features, SHARE)
        weights = last.weight.new_zeros(depth, width + encoded, width)
        of_code = last.weight.new_zeros(depth, width, spec.code_length)
        bias = last.weight.new_zeros(depth, width)
        for layer in range(depth):
            matrix, shift = decoder.layer(layer).weight, decoder.layer(layer).bias
            own, before = bias[layer, : len(shift)], matrix.shape[1] - spec.given(layer)
            weights[layer, :before, : len(own)] = matrix[:, :before].T
            own.copy_(shift)
            if layer in spec.fed:
                point = matrix.shape[1] - spec.point_features
                place = slice(width, width + spec.point_features)
                weights[layer, place, : len(own)] = matrix[:, point:].T
                of_code[layer, : len(own)] = matrix[:, before:point]
        self.scale = 2.0 ** int((LARGEST / weights.abs().max().clamp(min=1e-9)).log2())
        self.high = (self.scale * weights).half()
        self.low = (self.scale * weights - self.high.float()).half()
        short = power_of_two(spec.code_length, SHARE) - spec.code_length
        self.of_code = torch.nn.functional.pad(of_code.mT, (0, 0, 0, short)).half().contiguous()
        self.by_code, self.bias = of_code.flatten(0, 1).T.contiguous(), bias.flatten()
        self.last = torch.nn.functional.pad(last.weight[0], (0, width - spec.width))
        self.last = torch.cat([self.last, last.bias])

    def __call__(
        self, codes: Tensor, points: Tensor, sloped: bool = False, coded: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Signed distances (S, N) for (S, L) codes and (S, N, 3) points.

        And their gradients in the point (S, N, 3), if they are to be `sloped`, and in the code (S, N, L), if
        they are to be `coded` as well.
        """
        from model.kernels.decode import decode

        constants = torch.addmm(self.bias, codes, self.by_code)
        points = points.contiguous()
        count, depth, inputs, width = points[..., 0].numel(), *self.high.shape
        blocks = min(-(-count // ROWS), PROGRAMS * _processors(points.device))
        slots = depth + 1 if sloped else 2
        scratch = [
            blocks * slots * ROWS * inputs,
            blocks * 2 * ROWS * inputs,
            sloped * blocks * depth * ROWS * width,
        ]
        distances = points.new_empty(points.shape[:-1])
        by_point = points.new_empty(points.shape if sloped else 0)
        by_code = points.new_empty((*points.shape[:-1], self.length) if coded else 0)
        if count:
            launch(
                decode, (blocks,),
                points, constants, self.high, self.low, self.of_code, self.last,
                *(self.high.new_empty(size) for size in scratch), distances, by_point, by_code,
                count, points.shape[-2], self.fed, 1 / self.scale, OCTAVES=self.octaves, TANH=self.tanh,
                DEPTH=depth, WIDTH=width, ENCODED=inputs - width, CODE=self.of_code.shape[1],
                LENGTH=self.length, SLOTS=slots, ROWS=ROWS, COLUMNS=min(COLUMNS, width), SHARE=SHARE,
                SLOPED=sloped, CODED=coded, STAGES=STAGES, num_warps=WARPS,
            )  # fmt: skip
        return distances, by_point, by_code


@cache
def _processors(device: torch.device) -> int:
    """How many multiprocessors a GPU has."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
