"""The decoder f(z, x): signed distance of point x for the shape with latent code z.

DeepSDF section 3 and its figure 4, with the variants that its published code can train and an optional
positional encoding of x. A layer that is fed the input sees z only through W_z·z + b, which is the same
for every point of a shape. `fold` computes these constants once a code; everything else works on them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize


@dataclass(frozen=True)
class DecoderSpec:
    """Shape of the network. The defaults are DeepSDF's own. Layers count from 0; the last, which reads the
    distance out, is layer `depth`."""

    code_length: int = 256
    width: int = 512
    depth: int = 8  # hidden layers
    skip_layer: int | Sequence[int] = 4  # the layer whose input holds (z, x) again, or several, or none
    octaves: int = 0  # positional encoding: sin and cos of 2^k·π/2·x for k < octaves
    weight_norm: bool = True
    dropout: float = 0.2
    tanh: int = 1  # how often the output is squashed
    layer_norm: Sequence[int] = ()  # hidden layers that are layer-normalised
    points_in_all: bool = False  # every layer sees x again

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a card."""
        return asdict(self)

    @property
    def point_features(self) -> int:
        """Length of an encoded point."""
        return 3 + 6 * self.octaves

    @property
    def fed(self) -> tuple[int, ...]:
        """The layers whose input holds (z, x)."""
        skips = (self.skip_layer,) if isinstance(self.skip_layer, int) else self.skip_layer
        return (0, *sorted(set(skips)))

    def given(self, layer: int) -> int:
        """How many columns of a layer's input are not features of the layer before, but z and x."""
        if layer in self.fed:
            return self.code_length + self.point_features
        return self.point_features if self.points_in_all else 0


def encode_points(points: Tensor, octaves: int) -> Tensor:
    """Positional encoding of (..., 3) points: (..., 3 + 6·octaves).

    The lowest frequency has a period of 4, so that the unit ball does not wrap onto itself.
    """
    if octaves == 0:
        return points
    frequencies = math.pi / 2 * 2.0 ** torch.arange(octaves, device=points.device, dtype=points.dtype)
    angles = (points.unsqueeze(-1) * frequencies).flatten(-2)
    return torch.cat([points, angles.sin(), angles.cos()], dim=-1)


def _linear(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if weight.requires_grad:
        return nn.functional.linear(features, weight, bias)
    through: Tensor = _FrozenLinear.apply(features, weight, bias)  # type: ignore[no-untyped-call]
    return through


class _FrozenLinear(torch.autograd.Function):
    """x·Wᵀ + b where W and b are constants."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return nn.functional.linear(features, weight, bias)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _slope_times(slope, weight), None, None


def _slope_times(slope: Tensor, weight: Tensor) -> Tensor:
    """A slope (..., M) times a weight (M, N), on a GPU in half precision: twice as fast there.

    A slope off by 3e-4 of itself leads a fit or a normal astray by nothing that counts; a distance would.
    """
    if slope.dtype != torch.float32 or slope.device.type != "cuda":
        return slope @ weight.to(slope.dtype)  # of lower precision where autocast is on
    flat: Tensor = torch.mm(slope.flatten(0, -2).half(), weight.half(), out_dtype=slope.dtype)
    return flat.reshape(*slope.shape[:-1], -1)


class Decoder(nn.Module):
    """An MLP from (z, x) to signed distance, factored so that the z part is computed once a code."""

    recorded_rows = 40_000  # see `latent.CodedFields`

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        inputs = [spec.given(0)] + [spec.width] * (spec.depth - 1)
        # What a layer is given takes the place of as many features of the layer before.
        outputs = [spec.width - spec.given(layer + 1) for layer in range(spec.depth)]
        layers: list[nn.Module] = [nn.Linear(*sizes) for sizes in zip(inputs, outputs, strict=True)]
        if spec.weight_norm:
            layers = [parametrizations.weight_norm(layer) for layer in layers]
        self.hidden = nn.ModuleList(layers)
        self.norms = nn.ModuleList(
            nn.LayerNorm(size) if layer in spec.layer_norm else nn.Identity()
            for layer, size in enumerate(outputs)
        )
        self.last = nn.Linear(spec.width, 1)
        # Distances begin near zero: where all are beyond the clamping distance, nothing can be learnt.
        nn.init.zeros_(self.last.bias)

    def layer(self, index: int) -> nn.Linear:
        """The layer of that number; the last is number `depth`."""
        layer = self.last if index == self.spec.depth else self.hidden[index]
        assert isinstance(layer, nn.Linear)
        return layer

    def _columns_of_code(self, weight: Tensor) -> slice:
        """Which columns of a fed layer see the code. Before them are features, after them the point."""
        stop = weight.shape[1] - self.spec.point_features
        return slice(stop - self.spec.code_length, stop)

    def fold(self, codes: Tensor) -> list[Tensor]:
        """Constants W_z·z + b of the fed layers for (S, L) codes: a list of (S, width)."""
        constants = []
        for index in self.spec.fed:
            layer = self.layer(index)
            of_code = layer.weight[:, self._columns_of_code(layer.weight)]
            constants.append(nn.functional.linear(codes, of_code, layer.bias))
        return constants

    def code_weights(self) -> list[Tensor]:
        """W_z of the fed layers, each (width, L): how the constants of `fold` move with the code."""
        weights = [self.layer(index).weight for index in self.spec.fed]
        return [weight[:, self._columns_of_code(weight)] for weight in weights]

    def evaluate(self, constants: list[Tensor], points: Tensor, depth: float | None = None) -> Tensor:
        """Signed distances (S, N) of (S, N, 3) points.

        `constants` are those of `fold`, as (S, 1, width), or (S, N, width) if each point has its own.
        With a `depth` d below that of the network, its last layers are passed by: of layer i the share d − i
        is used, within 0 and 1, and the rest is what came in (Curriculum DeepSDF, section 3.2).
        """
        encoded = encode_points(points, self.spec.octaves)
        features, fed = encoded, iter(constants)
        depth = self.spec.depth if depth is None else depth
        for index in range(math.ceil(depth)):
            before = features
            features = self.norms[index](self._pass(index, features, encoded, fed))
            # What a layer returns is a view: changed in place, the backward pass would copy it to and fro.
            features = nn.functional.relu(features, inplace=not torch.is_grad_enabled())
            if self.spec.dropout and self.training:
                features = nn.functional.dropout(features, self.spec.dropout)
            if depth < index + 1:
                features = torch.lerp(before, features, depth - index)
        # bfloat16 has steps of 0.0005 at the clamping distance: the last layer stays in float32.
        with torch.autocast(features.device.type, enabled=False):
            distance = self._pass(self.spec.depth, features.to(points.dtype), encoded, fed).squeeze(-1)
        for _ in range(self.spec.tanh):
            distance = distance.tanh()
        return distance

    def _pass(self, index: int, features: Tensor, encoded: Tensor, fed: Iterator[Tensor]) -> Tensor:
        """What a layer makes of the features before it and of what it is given."""
        layer = self.layer(index)
        if index and self.spec.given(index):
            features = torch.cat([features, encoded.to(features.dtype)], dim=-1)
        if index in self.spec.fed:
            of_code = self._columns_of_code(layer.weight)
            weight = torch.cat([layer.weight[:, : of_code.start], layer.weight[:, of_code.stop :]], dim=1)
            return _linear(features, weight) + next(fed)
        return _linear(features, layer.weight, layer.bias)

    def forward(self, codes: Tensor, points: Tensor, depth: float | None = None) -> Tensor:
        """Signed distances (S, N) for (S, L) codes and (S, N, 3) points; `depth` as in `evaluate`."""
        return self.evaluate([constant.unsqueeze(1) for constant in self.fold(codes)], points, depth)

    def distance_and_gradients(self, codes: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Signed distances (S, N), their gradients in the code (S, N, L) and in the point (S, N, 3).

        One backward pass for the whole Jacobian: a row of it depends on its own point alone, and on the
        code only through the constants of `fold`.
        """
        with torch.enable_grad():
            count = points.shape[1]
            constants = [
                constant.detach().unsqueeze(1).expand(-1, count, -1).contiguous().requires_grad_()
                for constant in self.fold(codes)
            ]
            points = points.detach().requires_grad_()
            distances = self.evaluate(constants, points)
            *by_constant, by_point = torch.autograd.grad(distances.sum(), [*constants, points])
        weights = self.code_weights()
        by_code = sum(
            (_slope_times(slope, weight) for slope, weight in zip(by_constant[1:], weights[1:], strict=True)),
            _slope_times(by_constant[0], weights[0]),
        )
        return distances.detach(), by_code.detach(), by_point

    def distance_and_normals(self, codes: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distances (S, N) and their gradients in the point (S, N, 3)."""
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            distances = self(codes, points)
            (by_point,) = torch.autograd.grad(distances.sum(), [points])
        return distances.detach(), by_point


def without_weight_norm(decoder: Decoder) -> Decoder:
    """Fold weight normalisation into plain weights, in place: what is served and stored."""
    for layer in decoder.hidden:
        if parametrize.is_parametrized(layer):
            parametrize.remove_parametrizations(layer, "weight")
    return decoder
