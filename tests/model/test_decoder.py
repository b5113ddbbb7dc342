"""The decoder, against DeepSDF's published size and against differences of its own values."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.decoder import Decoder, DecoderSpec, encode_points, without_weight_norm

SPECS = {
    "as published, small": DecoderSpec(code_length=5, width=24, depth=4, skip_layer=2, dropout=0.2),
    "encoded points, no tanh": DecoderSpec(
        code_length=5, width=48, depth=4, skip_layer=3, octaves=3, weight_norm=False, dropout=0.0, tanh=0
    ),
    "several skips, the last layer among them": DecoderSpec(5, 24, 4, (2, 1, 4), dropout=0.0),
    "no skip, squashed twice": DecoderSpec(5, 24, 4, (), dropout=0.0, tanh=2),
    "layers normalised": DecoderSpec(5, 24, 4, 2, 0, False, 0.0, layer_norm=(0, 1, 3)),
    "points in all layers": DecoderSpec(
        5, 48, 4, (2,), octaves=1, weight_norm=False, dropout=0.0, tanh=0, points_in_all=True
    ),
}


@pytest.fixture(params=SPECS.values(), ids=SPECS.keys())
def decoder(request: pytest.FixtureRequest) -> Decoder:
    """A random decoder in evaluation."""
    torch.manual_seed(0)
    decoder = Decoder(request.param).eval()
    for norm in decoder.norms:  # away from the start, where weights are ones and biases zeros
        for part in norm.parameters():
            nn.init.normal_(part)
    return decoder


def inputs(decoder: Decoder, shapes: int = 3, points: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randn(shapes, decoder.spec.code_length, generator=generator)
    return codes, torch.rand(shapes, points, 3, generator=generator) * 2 - 1


def straightforward(decoder: Decoder, codes: Tensor, points: Tensor) -> Tensor:
    """The network as the paper draws it: (z, x) put together for each point, and again at the skip."""
    spec, encoded = decoder.spec, encode_points(points, decoder.spec.octaves)
    given = torch.cat([codes.unsqueeze(1).expand(-1, points.shape[1], -1), encoded], dim=-1)
    skips = [spec.skip_layer] if isinstance(spec.skip_layer, int) else spec.skip_layer
    features = given
    for index, layer in enumerate([*decoder.hidden, decoder.last]):
        if index in skips:
            features = torch.cat([features, given], dim=-1)
        elif index and spec.points_in_all:
            features = torch.cat([features, encoded], dim=-1)
        features = layer(features)
        if index in spec.layer_norm:
            norm = decoder.norms[index]
            spread = features.var(dim=-1, unbiased=False, keepdim=True) + norm.eps
            features = (features - features.mean(dim=-1, keepdim=True)) / spread.sqrt()
            features = features * norm.weight + norm.bias
        if index < spec.depth:
            features = torch.relu(features)
    distance = features.squeeze(-1)
    for _ in range(spec.tanh):
        distance = distance.tanh()
    return distance


def test_the_default_decoder_has_the_size_that_deepsdf_published() -> None:
    assert sum(part.numel() for part in Decoder(DecoderSpec()).parameters()) == 1_843_195


def test_a_layer_norm_or_a_point_seen_again_costs_no_hidden_width() -> None:
    """What a layer is given replaces features, as in the published code: every layer's input is as wide."""
    spec = DecoderSpec(5, 48, 4, (2,), points_in_all=True, layer_norm=(1,))
    assert [layer.in_features for layer in [*Decoder(spec).hidden, Decoder(spec).last]] == [8, 48, 48, 48, 48]


def test_folding_the_code_gives_what_the_plain_network_gives(decoder: Decoder) -> None:
    codes, points = inputs(decoder)
    assert torch.allclose(decoder(codes, points), straightforward(decoder, codes, points), atol=1e-6)


def test_each_point_may_have_constants_of_its_own(decoder: Decoder) -> None:
    codes, points = inputs(decoder)
    each = [constant.unsqueeze(1).expand(-1, points.shape[1], -1) for constant in decoder.fold(codes)]
    assert torch.allclose(decoder.evaluate(each, points), decoder(codes, points), atol=1e-6)


def test_a_network_grows_from_fewer_layers_to_all_of_them() -> None:
    """What the last layer is given when a layer is passed by, used in part, and in full."""
    given: list[Tensor] = []

    class Watched(Decoder):
        def _pass(self, index: int, features: Tensor, *more: Any) -> Tensor:
            if index == self.spec.depth:
                given.append(features)
            return super()._pass(index, features, *more)

    torch.manual_seed(0)
    decoder = Watched(SPECS["as published, small"]).eval()
    codes, points = inputs(decoder)
    for depth in (3.0, 3.3, 4.0, None):
        decoder(codes, points, depth)
    fewer, between, full, usual = given
    assert torch.allclose(torch.relu(decoder.hidden[3](fewer)), full, atol=1e-6)
    assert torch.allclose(between, 0.7 * fewer + 0.3 * full, atol=1e-6)
    assert torch.equal(full, usual)


def test_a_shape_does_not_see_the_others_of_its_batch(decoder: Decoder) -> None:
    codes, points = inputs(decoder)
    alone = torch.cat([decoder(codes[i : i + 1], points[i : i + 1]) for i in range(len(codes))])
    assert torch.allclose(decoder(codes, points), alone, atol=1e-6)


def test_freezing_changes_neither_distances_nor_slopes(decoder: Decoder) -> None:
    codes, points = inputs(decoder)
    frozen = copy.deepcopy(decoder).requires_grad_(False)
    pairs = zip(
        frozen.distance_and_gradients(codes, points),
        decoder.distance_and_gradients(codes, points),
        strict=True,
    )
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in pairs)


def differences(decoder: Decoder, codes: Tensor, points: Tensor, step: float = 1e-6) -> tuple[Tensor, Tensor]:
    """∂f/∂z and ∂f/∂x by central differences of the plain network in float64."""
    exact = copy.deepcopy(decoder).double()
    codes, points = codes.double(), points.double()
    by_code = [
        straightforward(exact, codes + move, points) - straightforward(exact, codes - move, points)
        for move in step * torch.eye(codes.shape[1], dtype=torch.float64)
    ]
    by_point = [
        straightforward(exact, codes, points + move) - straightforward(exact, codes, points - move)
        for move in step * torch.eye(3, dtype=torch.float64)
    ]
    return torch.stack(by_code, dim=-1) / (2 * step), torch.stack(by_point, dim=-1) / (2 * step)


def test_one_backward_pass_gives_the_gradients_of_every_point(decoder: Decoder) -> None:
    """Against one call of autograd a point, and against differences of the values."""
    codes, points = inputs(decoder)
    distances, by_code, by_point = decoder.distance_and_gradients(codes, points)
    assert torch.allclose(distances, decoder(codes, points), atol=1e-6)
    for shape in range(len(codes)):
        for index in range(points.shape[1]):
            code, point = codes[shape].clone().requires_grad_(), points[shape, index].clone().requires_grad_()
            straightforward(decoder, code[None], point[None, None]).sum().backward()
            assert torch.allclose(by_code[shape, index], code.grad, atol=1e-5)
            assert torch.allclose(by_point[shape, index], point.grad, atol=1e-5)


def test_gradients_are_the_slopes_of_the_values(decoder: Decoder) -> None:
    codes, points = inputs(decoder, points=60)
    _, *gradients = decoder.distance_and_gradients(codes, points)
    for exact, measured in zip(gradients, differences(decoder, codes, points), strict=True):
        assert torch.allclose(exact.double(), measured, rtol=1e-4, atol=1e-5)


def test_normals_are_the_gradients_in_the_point(decoder: Decoder) -> None:
    codes, points = inputs(decoder)
    distances, by_point = decoder.distance_and_normals(codes, points)
    expected_distances, _, expected = decoder.distance_and_gradients(codes, points)
    assert torch.allclose(distances, expected_distances, atol=1e-6)
    assert torch.allclose(by_point, expected, atol=1e-5)


def test_gradients_come_without_a_graph_and_from_a_frozen_decoder(decoder: Decoder) -> None:
    decoder.requires_grad_(False)
    with torch.no_grad():
        parts = decoder.distance_and_gradients(*inputs(decoder))
    assert not any(part.requires_grad for part in parts)


def test_folding_weight_norm_away_changes_no_value() -> None:
    torch.manual_seed(0)
    decoder = Decoder(SPECS["as published, small"]).eval()
    for layer in decoder.hidden:  # away from the start, where norm and direction agree
        layer.parametrizations.weight.original0.data.mul_(1.7)
    before = decoder(*inputs(decoder))
    assert without_weight_norm(decoder) is decoder
    assert torch.allclose(decoder(*inputs(decoder)), before, atol=1e-6)
    assert not any("parametrizations" in name for name in decoder.state_dict())
    assert torch.equal(without_weight_norm(decoder)(*inputs(decoder)), decoder(*inputs(decoder)))


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    decoder = Decoder(SPECS["as published, small"])
    given = inputs(decoder)
    assert not torch.equal(decoder.train()(*given), decoder(*given))
    assert torch.equal(decoder.eval()(*given), decoder(*given))


def test_the_encoding_keeps_the_point_and_tells_opposite_ends_of_the_ball_apart() -> None:
    ends = torch.cat([torch.eye(3), -torch.eye(3)])
    for octaves in (1, 5):
        encoded = encode_points(ends, octaves)
        assert encoded.shape == (6, 3 + 6 * octaves)
        assert torch.equal(encoded[:, :3], ends)
        # Without the point itself: the waves alone must not wrap.
        assert (torch.cdist(encoded[:, 3:], encoded[:, 3:]) + torch.eye(6) > 0.5).all()


def test_the_encoding_is_injective_on_the_ball() -> None:
    """The lowest octave alone tells all points of an axis apart: its phase is the point's place."""
    axis = torch.linspace(-1, 1, 201)
    waves = encode_points(torch.stack([axis, axis, axis], dim=1), 1)[:, 3:]
    phase = torch.atan2(waves[:, 0], waves[:, 3])
    assert torch.allclose(phase, axis * torch.pi / 2, atol=1e-5)


def test_no_octaves_means_the_plain_point() -> None:
    points = torch.rand(4, 3)
    assert encode_points(points, 0) is points
    assert DecoderSpec(octaves=0).point_features == 3
