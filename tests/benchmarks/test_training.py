"""The benchmark of training: both sides train the network that they say they train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from listing import last_number

from benchmarks import training
from model.decoder import Decoder, DecoderSpec

SMALL = training.Sizes(shapes=2, points=128, stored=2000, steps=1)


def test_the_plain_network_has_the_size_that_deepsdf_published() -> None:
    plain = training.PublishedDecoder()
    assert sum(part.numel() for part in plain.parameters()) == 1_843_195


def test_the_plain_network_is_our_decoder_with_the_code_beside_every_point() -> None:
    plain, decoder = training.PublishedDecoder().eval(), Decoder(DecoderSpec()).eval()
    weights = zip(decoder.state_dict(), plain.state_dict().values(), strict=True)
    decoder.load_state_dict(dict(weights))
    code, points = torch.randn(1, 256), torch.rand(1, 50, 3)
    given = torch.cat([code.expand(50, -1), points[0]], dim=1)
    assert torch.allclose(decoder(code, points)[0], plain(given)[:, 0], atol=1e-5)


@pytest.mark.parametrize("way", [training.published, training.ours])
def test_both_ways_learn(way: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[float] = []
    item = torch.Tensor.item

    def watched(tensor: torch.Tensor) -> float:
        losses.append(item(tensor))
        return losses[-1]

    assert callable(way)
    step = way(training.write_spheres(tmp_path, SMALL), SMALL, "cpu")
    monkeypatch.setattr(torch.Tensor, "item", watched)
    for _ in range(6):
        step()
    assert losses[-1] < losses[0]


def test_it_tells_how_much_faster_ours_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "QUICK", SMALL)
    file = tmp_path / "training.json"
    assert training.main(["--quick", "--json", str(file)]) == 0
    ratio = last_number(capsys.readouterr().out, r"training: ([\d.]+)x")
    facts = json.loads(file.read_text())
    rows = {row["step"]: row for row in facts["shapes"]}
    assert ratio == pytest.approx(facts["number"], abs=0.05)
    assert facts["number"] == pytest.approx(rows["published"]["seconds"] / rows["ours"]["seconds"])
