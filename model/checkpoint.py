"""A trained checkpoint: decoder, latent codes of its training shapes, and the card that tells its story."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.decoder import Decoder, DecoderSpec, without_weight_norm
from model.encoder import Encoder, StaleEncoder, load_encoder, told_of
from model.field import DecodedField
from model.fused.decoder import FusedDecoder
from model.problems import CodePrior
from model.starts import StartShapes, grids_of

DECODER_FILE, LATENTS_FILE, CARD_FILE = "decoder.safetensors", "latents.safetensors", "card.json"
ENCODER_FILE = "encoder.safetensors"  # a checkpoint may do without


UNKNOWN_LIPSCHITZ = 4.0
"""What is assumed of a decoder whose card says nothing: `python -m model.training.lipschitz` estimates it."""

MAX_STARTS = 96
"""Most training shapes that a fit may start from; of larger sets so many evenly chosen ones."""

VARIANT_MARK = "__v"
"""What parts a deformed variant's name from its shape's: `<id>__v03`."""


class BadCheckpoint(Exception):
    """The folder holds no checkpoint that can be served."""


@dataclass(frozen=True)
class Checkpoint:
    """What `load_checkpoint` gives: frozen, on its device, ready to fit codes."""

    name: str
    decoder: Decoder
    codes: Tensor  # (N, L) of the training shapes and their variants
    extents: Tensor  # (N, 2, 3) lower and upper corner of each training shape, canonical frame
    shapes: list[str]  # N names; a variant's has the mark "__v"
    card: dict[str, Any]
    prior: CodePrior
    starts: StartShapes  # training shapes that a fit may start from
    encoder: Encoder | None = None  # what a scan suggests at first sight
    digest: str = ""  # SHA-256 of the decoder's weights: which checkpoint made a result

    @property
    def skin(self) -> float:
        """τ: the field is ±d − τ."""
        return float(self.card["skin"])

    @property
    def clamping_distance(self) -> float:
        """δ: beyond it the field says only that it is farther."""
        return float(self.card["clamping_distance"])

    @property
    def lipschitz(self) -> float:
        """L: how steep the fields of likely codes are, as `model.training.lipschitz` estimated.

        A card that says none was made before it was estimated: it gets a cautious value.
        """
        return float(self.card.get("lipschitz", UNKNOWN_LIPSCHITZ))

    @property
    def bend(self) -> float:
        """B: how sharply the fields of likely codes bend; L if the card does not say."""
        return float(self.card.get("bend", self.lipschitz))

    def field(self, code: Tensor) -> DecodedField:
        """The field of an (L,) code."""
        return DecodedField(self.decoder, code, self.lipschitz, self.bend)

    @property
    def calibration(self) -> dict[str, float]:
        """What was chosen on validation shapes so that deviations come true: `uncertainty.Calibration`."""
        return dict(self.card.get("calibration", {}))

    @property
    def own_shapes(self) -> list[int]:
        """Rows of the training shapes themselves, their variants left out."""
        return own_rows(self.shapes)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.codes.device


def own_rows(shapes: list[str]) -> list[int]:
    """Rows of the names that are no variant's."""
    return [row for row, name in enumerate(shapes) if VARIANT_MARK not in name]


def start_rows(shapes: list[str], first: Collection[str] = ()) -> list[int]:
    """Rows of the shapes that a fit may start from: those named in `first` before all others."""
    own = own_rows(shapes)
    chosen = _evenly([row for row in own if shapes[row] in first], MAX_STARTS)
    return chosen + _evenly([row for row in own if shapes[row] not in first], MAX_STARTS - len(chosen))


def _evenly(rows: list[int], most: int) -> list[int]:
    """At most so many of the rows, at equal steps."""
    return rows[:: max(1, -(-len(rows) // most))] if most else []


def choose_device(device: str = "auto") -> str:
    """`auto` means the GPU if there is one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def save_checkpoint(
    folder: Path,
    decoder: Decoder,
    codes: Tensor,
    extents: Tensor,
    shapes: list[str],
    card: dict[str, Any],
    starts: list[int] | None = None,
) -> None:
    """Write the files of a checkpoint; the decoder's weight norm is folded into plain weights.

    Codes are kept in the precision that they come in. `starts` are the rows that a fit may start from, as
    `start_rows` chooses them.
    """
    without_weight_norm(decoder)
    weights = {key: value.detach().cpu().contiguous() for key, value in decoder.state_dict().items()}
    save_file(weights, folder / DECODER_FILE)
    starts = start_rows(shapes) if starts is None else starts
    grids = grids_of(decoder.eval(), codes.detach()[starts].float(), card["clamping_distance"])
    latents = {"codes": codes.detach(), "extents": extents, "grids": grids, "starts": torch.tensor(starts)}
    latents = {key: value.cpu().contiguous() for key, value in latents.items()}
    save_file(latents, folder / LATENTS_FILE, metadata={"shapes": json.dumps(shapes)})
    encoder = folder / ENCODER_FILE
    if encoder.exists() and told_of(encoder)["decoder"] != digest_of(folder):
        encoder.unlink()  # of the weights that were here before
    decoder_spec = {**decoder.spec.to_dict(), "weight_norm": False, "dropout": 0.0}
    write_card(folder, {**card, "decoder": decoder_spec})


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write card.json, by rename."""
    part = folder / f"{CARD_FILE}.part"
    part.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    part.rename(folder / CARD_FILE)


def read_card(folder: Path) -> dict[str, Any]:
    """Read card.json; raises BadCheckpoint if there is none that can be read."""
    file = folder / CARD_FILE
    if not file.exists():
        raise BadCheckpoint(f"{folder} is no checkpoint: it has no {CARD_FILE}")
    try:
        card: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise BadCheckpoint(f"{file} is not JSON: {error}") from error
    return card


def load_checkpoint(folder: Path, device: str = "auto", encoder: bool = True) -> Checkpoint:
    """Load a checkpoint, frozen, on `device` ("auto", "cpu", "cuda"): the one place that chooses it.

    With its encoder, if there is one and it is asked for.

    Raises BadCheckpoint if a file is missing or does not fit the card.
    """
    card = read_card(folder)
    try:
        return _loaded(folder, card, choose_device(device), encoder)
    except (OSError, RuntimeError, SafetensorError, KeyError, TypeError) as error:
        raise BadCheckpoint(f"{folder} cannot be loaded: {error}") from error
    except StaleEncoder as error:
        raise BadCheckpoint(str(error)) from error


def _loaded(folder: Path, card: dict[str, Any], device: str, with_encoder: bool) -> Checkpoint:
    decoder = FusedDecoder(DecoderSpec(**card["decoder"]))
    decoder.load_state_dict(load_file(folder / DECODER_FILE))
    latents = load_file(folder / LATENTS_FILE, device=device)
    decoder.to(device).eval().requires_grad_(False)
    codes, extents = latents["codes"].float(), latents["extents"]
    shapes = _shape_names(folder / LATENTS_FILE)
    # Older files do not say which rows their grids are of.
    rows = latents["starts"].tolist() if "starts" in latents else start_rows(shapes)
    digest, file = digest_of(folder), folder / ENCODER_FILE
    encoder = load_encoder(file, device, digest) if with_encoder and file.exists() else None
    return Checkpoint(
        name=card["name"],
        decoder=decoder,
        codes=codes,
        extents=extents,
        shapes=shapes,
        card=card,
        prior=CodePrior.from_codes(codes),
        starts=StartShapes(codes[rows], extents[rows], latents["grids"]),
        encoder=encoder,
        digest=digest,
    )


def digest_of(folder: Path) -> str:
    """SHA-256 of a checkpoint's decoder."""
    return hashlib.sha256((folder / DECODER_FILE).read_bytes()).hexdigest()


def _shape_names(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        names: list[str] = json.loads(opened.metadata()["shapes"])
    return names
