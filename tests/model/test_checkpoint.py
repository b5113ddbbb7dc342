"""Checkpoints: what is saved is what is loaded, and what cannot be served is refused by name."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from model.checkpoint import (
    CARD_FILE,
    DECODER_FILE,
    LATENTS_FILE,
    MAX_STARTS,
    UNKNOWN_LIPSCHITZ,
    BadCheckpoint,
    Checkpoint,
    choose_device,
    load_checkpoint,
    own_rows,
    read_card,
    save_checkpoint,
    start_rows,
    write_card,
)
from model.decoder import Decoder, DecoderSpec

CARD = {"name": "random", "skin": 0.004, "clamping_distance": 0.1}


@pytest.fixture
def copied(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that may be broken."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))


def saved(folder: Path, decoder: Decoder) -> Checkpoint:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(3, decoder.spec.code_length, generator=generator)
    extents = torch.randn(3, 2, 3, generator=generator)
    save_checkpoint(folder, decoder, codes, extents, ["a", "a__v01", "b"], CARD)
    loaded = load_checkpoint(folder, "cpu")
    assert torch.equal(loaded.codes, codes) and torch.equal(loaded.extents, extents)
    return loaded


@pytest.mark.parametrize(
    "spec",
    [
        DecoderSpec(code_length=4, width=32, depth=4, skip_layer=2),
        DecoderSpec(4, 48, 3, 2, octaves=2, weight_norm=False, dropout=0.0, tanh=0),
        DecoderSpec(4, 32, 4, (1, 3), tanh=2, layer_norm=(0, 2), points_in_all=True),
    ],
    ids=["weight norm, dropout and tanh", "plain, encoded points", "every variant"],
)
def test_a_loaded_decoder_gives_the_distances_of_the_saved_one(spec: DecoderSpec, tmp_path: Path) -> None:
    torch.manual_seed(0)
    decoder = Decoder(spec).eval()
    codes, points = torch.randn(2, 4), torch.rand(2, 50, 3) * 2 - 1
    before = decoder(codes, points).detach()
    loaded = saved(tmp_path, decoder)
    assert torch.allclose(loaded.decoder(codes, points), before, atol=1e-6)


def test_a_card_from_before_the_variants_is_read_as_it_was_meant(copied: Path) -> None:
    """`tanh` was true or false then, and there was one skip layer and nothing else."""
    card = json.loads((copied / CARD_FILE).read_text())
    before = load_checkpoint(copied, "cpu").decoder.spec
    old = {key: card["decoder"][key] for key in card["decoder"] if key not in ("layer_norm", "points_in_all")}
    (copied / CARD_FILE).write_text(json.dumps({**card, "decoder": {**old, "tanh": bool(old["tanh"])}}))
    assert replace(load_checkpoint(copied, "cpu").decoder.spec, layer_norm=[]) == before


def test_a_loaded_checkpoint_is_frozen_named_and_in_evaluation(tmp_path: Path) -> None:
    loaded = saved(tmp_path, Decoder(DecoderSpec(code_length=4, width=32, depth=4, skip_layer=2)))
    assert not loaded.decoder.training
    assert not any(part.requires_grad for part in loaded.decoder.parameters())
    assert (loaded.name, loaded.skin, loaded.clamping_distance) == ("random", 0.004, 0.1)
    assert loaded.shapes == ["a", "a__v01", "b"]
    assert loaded.device == torch.device("cpu")


def test_the_card_is_plain_json_and_keeps_what_it_was_given(tmp_path: Path) -> None:
    saved(tmp_path, Decoder(DecoderSpec(code_length=4, width=32, depth=4, skip_layer=2)))
    card = json.loads((tmp_path / CARD_FILE).read_text())
    assert {key: card[key] for key in CARD} == CARD
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([CARD_FILE, DECODER_FILE, LATENTS_FILE])


def test_no_file_of_a_checkpoint_is_a_pickle(tiny_checkpoint: Path) -> None:
    """A pickle could run any code: torch's are zip archives, plain ones start with the byte 0x80."""
    for file in tiny_checkpoint.iterdir():
        start = file.read_bytes()[:16]
        assert not start.startswith((b"PK", b"\x80"))
        if file.suffix == ".safetensors":
            assert start[8:10] == b'{"'


def test_a_pickle_in_the_place_of_the_weights_is_not_run(copied: Path) -> None:
    torch.save({"codes": torch.zeros(1)}, copied / DECODER_FILE)
    with pytest.raises(BadCheckpoint):
        load_checkpoint(copied, "cpu")


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def scribble(file: Path) -> None:
    file.write_bytes(b"{ not what it should be")


@pytest.mark.parametrize("harm", [Path.unlink, truncate, scribble])
@pytest.mark.parametrize("name", [DECODER_FILE, LATENTS_FILE, CARD_FILE])
def test_a_missing_or_corrupt_file_is_a_bad_checkpoint(
    name: str, harm: Callable[[Path], None], copied: Path
) -> None:
    harm(copied / name)
    with pytest.raises(BadCheckpoint, match="tiny"):
        load_checkpoint(copied, "cpu")


@pytest.mark.parametrize(
    "change",
    [
        {"decoder": {"code_length": 4, "width": 32}},
        {"decoder": {"code_length": 4, "colour": "red"}},
        {"decoder": None},
    ],
    ids=["another size", "an unknown key", "none"],
)
def test_a_card_that_does_not_fit_the_weights_is_a_bad_checkpoint(change: dict, copied: Path) -> None:
    card = json.loads((copied / CARD_FILE).read_text())
    (copied / CARD_FILE).write_text(json.dumps({**card, **change}))
    with pytest.raises(BadCheckpoint, match="tiny"):
        load_checkpoint(copied, "cpu")


def test_a_folder_that_is_not_there_is_a_bad_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="nowhere"):
        load_checkpoint(tmp_path / "nowhere", "cpu")


def test_auto_takes_the_gpu_where_there_is_one() -> None:
    assert choose_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == "cpu"


def test_a_fit_starts_from_shapes_and_not_from_their_variants(tmp_path: Path) -> None:
    loaded = saved(tmp_path, Decoder(DecoderSpec(code_length=4, width=32, depth=4, skip_layer=2)))
    assert loaded.own_shapes == [0, 2]
    assert torch.equal(loaded.starts.codes, loaded.codes[[0, 2]])
    assert torch.equal(loaded.starts.extents, loaded.extents[[0, 2]])
    assert len(loaded.starts.grids) == 2


@pytest.mark.parametrize("count", [1, MAX_STARTS, MAX_STARTS + 1, 10 * MAX_STARTS])
def test_of_many_shapes_some_are_chosen_evenly_to_start_from(count: int) -> None:
    names = [name for index in range(count) for name in (f"{index}", f"{index}__v01")]
    rows = start_rows(names)
    assert len(rows) <= MAX_STARTS
    assert set(rows) <= set(own_rows(names))
    steps = {after - before for before, after in pairwise(rows)}
    assert len(steps) <= 1
    assert len(names) - rows[-1] <= max(steps, default=2)


def test_a_fit_starts_from_the_named_shapes_first() -> None:
    names = [f"{index}" for index in range(4 * MAX_STARTS)]
    own = {"7", "301"}
    rows = start_rows(names, first=own)
    assert rows[:2] == [7, 301]
    assert len(set(rows)) == len(rows) <= MAX_STARTS
    assert start_rows(names[:MAX_STARTS], first=set(names)) == list(range(MAX_STARTS))


def test_a_checkpoint_keeps_which_shapes_a_fit_starts_from(tmp_path: Path) -> None:
    decoder = Decoder(DecoderSpec(code_length=4, width=32, depth=4, skip_layer=2))
    codes, extents = torch.randn(3, 4), torch.randn(3, 2, 3)
    save_checkpoint(tmp_path, decoder, codes, extents, ["a", "a__v01", "b"], CARD, starts=[2, 0])
    loaded = load_checkpoint(tmp_path, "cpu")
    assert torch.equal(loaded.starts.codes, codes[[2, 0]])
    assert torch.equal(loaded.starts.extents, extents[[2, 0]])


def test_a_checkpoint_says_which_weights_made_a_result(tiny: Checkpoint, tiny_checkpoint: Path) -> None:
    weights = (tiny_checkpoint / DECODER_FILE).read_bytes()
    assert tiny.digest == hashlib.sha256(weights).hexdigest()


def test_what_a_card_does_not_say_is_taken_cautiously(tiny: Checkpoint) -> None:
    silent = replace(tiny, card={**tiny.card})
    silent.card.pop("lipschitz", None)
    silent.card.pop("bend", None)
    assert silent.lipschitz == silent.bend == UNKNOWN_LIPSCHITZ
    told = replace(
        tiny, card={**tiny.card, "lipschitz": 1.5, "bend": 1.2, "calibration": {"temperature": 7.0}}
    )
    assert (told.lipschitz, told.bend, told.calibration) == (1.5, 1.2, {"temperature": 7.0})
    field = told.field(told.codes[0])
    assert (field.lipschitz, field.bend) == (1.5, 1.2)


def test_a_card_is_written_whole_and_read_back(tmp_path: Path) -> None:
    card = {"name": "Stühle", "skin": 0.006}
    write_card(tmp_path, card)
    assert read_card(tmp_path) == card
    assert [path.name for path in tmp_path.iterdir()] == [CARD_FILE]


def test_the_codes_of_a_checkpoint_decode_to_its_shapes(tiny: Checkpoint) -> None:
    """Names, codes and extents are of one order: each code's inside spans its own extent."""
    axis = torch.linspace(-1, 1, 31)
    grid = torch.cartesian_prod(axis, axis, axis)
    distances = tiny.decoder(tiny.codes, grid.expand(len(tiny.codes), -1, -1))
    for name, extent, distance in zip(tiny.shapes, tiny.extents, distances, strict=True):
        inside = grid[distance < 0]
        found = torch.stack([inside.amin(dim=0), inside.amax(dim=0)])
        assert torch.allclose(found, extent, atol=0.1), name
