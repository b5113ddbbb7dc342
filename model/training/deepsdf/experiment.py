"""A DeepSDF experiment folder: its decoder and codes in, or a checkpoint's out.

Weights and codes are told by what a file holds, whichever version of torch or of DeepSDF wrote it. Files are
loaded with `weights_only`: to read them runs no code.
"""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from model.checkpoint import Checkpoint, choose_device, own_rows, save_checkpoint
from model.decoder import Decoder, DecoderSpec
from model.field import DecodedField
from model.frame import BALL_RADIUS
from model.surface import NoSurface, zero_level
from model.training.deepsdf.specs import ARCHITECTURE, SKIN, SPECS_FILE, BadExperiment, Specs, read_specs
from model.training.lipschitz import Steepness, steepness

PARAMETERS, CODES, SPLIT_FILE = "ModelParameters", "LatentCodes", "train_split.json"

EXTENT_RESOLUTION = 48
"""Of the meshes whose corners are the extents of training shapes: enough for a fit to start from."""


@dataclass(frozen=True)
class Experiment:
    """What an experiment folder holds at one epoch."""

    specs: Specs
    decoder: Decoder  # plain weights, in evaluation
    codes: Tensor  # (N, L)
    names: list[str]  # N
    epoch: int | str


def read_experiment(folder: Path, epoch: str = "latest", split: Path | None = None) -> Experiment:
    """Read specs.json, ModelParameters/<epoch>.pth and LatentCodes/<epoch>.pth. Raises BadExperiment.

    Shapes are named by the split file; where there is none, or one of another number, they are numbered.
    """
    specs = read_specs(folder / SPECS_FILE, split)
    stored = _load(folder / PARAMETERS / f"{epoch}.pth")
    decoder = _decoder(specs, stored.get("model_state_dict", stored))
    codes = _codes(_load(folder / CODES / f"{epoch}.pth"), specs.code_length)
    names = _names(specs.shapes or [])
    if len(names) != len(codes) or not own_rows(names):
        if split is not None:
            raise BadExperiment(f"{split} names {len(names)} shapes, but there are {len(codes)} codes")
        names = [f"shape_{number:04d}" for number in range(len(codes))]
    return Experiment(specs, decoder, codes, names, stored.get("epoch", epoch))


def import_experiment(
    experiment: Experiment, folder: Path, card: dict[str, Any], device: str = "auto"
) -> None:
    """Write an experiment as a checkpoint that is served; `card` has its name and what people want to know.

    How steep the decoder is, and the extents of its shapes, are measured: that is what takes the time.
    """
    device, own = choose_device(device), own_rows(experiment.names)
    decoder, codes = experiment.decoder.to(device), experiment.codes.to(device)
    steep = steepness(decoder, codes, own)
    card = {
        **card,
        "training_shapes": len(own),
        "variants": len(codes) - len(own),
        "skin": experiment.specs.skin,
        "clamping_distance": experiment.specs.clamping_distance,
        "code_length": codes.shape[1],
        "parameters": sum(part.numel() for part in decoder.parameters()),
        "trained": {"by": "DeepSDF", "epoch": experiment.epoch},
        **steep.card(),
    }
    save_checkpoint(folder, decoder, codes, extents_of(decoder, codes, steep), experiment.names, card)


def extents_of(decoder: Decoder, codes: Tensor, steep: Steepness) -> Tensor:
    """Lower and upper corner (N, 2, 3) of what (N, L) codes decode to; of the ball where that is nothing."""
    corners = []
    for code in track(codes, "extents of shapes", transient=True):
        field = DecodedField(decoder, code, steep.lipschitz, steep.bend)
        try:
            vertices = torch.from_numpy(zero_level(field, EXTENT_RESOLUTION).vertices)
            corners.append(torch.stack([vertices.amin(dim=0), vertices.amax(dim=0)]).float())
        except NoSurface:
            corners.append(torch.tensor([[-BALL_RADIUS] * 3, [BALL_RADIUS] * 3]))
    return torch.stack(corners)


def export_experiment(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint as an experiment that DeepSDF's own code reads, as epoch "latest".

    Raises BadExperiment where its decoder is none that the published code can build.
    """
    spec = checkpoint.decoder.spec
    if (folder / SPECS_FILE).exists():
        raise BadExperiment(f"{folder} holds an experiment already: remove it, or choose another folder")
    if spec.octaves:
        raise BadExperiment(
            f"{checkpoint.name} encodes points ({spec.octaves} octaves), which DeepSDF's decoder cannot: "
            "only a model trained with octaves = 0 can be exported"
        )
    if not spec.tanh:
        raise BadExperiment(
            f"{checkpoint.name} does not squash its output, which DeepSDF's decoder always does: only a "
            "model trained with tanh = 1 or 2 can be exported"
        )
    weights = {
        f"module.{_published_key(key, spec.depth)}": value.cpu()
        for key, value in checkpoint.decoder.state_dict().items()
    }
    for part in (PARAMETERS, CODES):
        (folder / part).mkdir(parents=True, exist_ok=True)
    epoch = _epoch(checkpoint.card)
    torch.save({"epoch": epoch, "model_state_dict": weights}, folder / PARAMETERS / "latest.pth")
    codes = {"epoch": epoch, "latent_codes": {"weight": checkpoint.codes.cpu()}}
    torch.save(codes, folder / CODES / "latest.pth")
    category = checkpoint.card.get("category", "unknown")
    _write_json(folder / SPLIT_FILE, {checkpoint.name: {category: checkpoint.shapes}})
    _write_json(folder / SPECS_FILE, _specs_of(checkpoint, folder))


def _specs_of(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    spec = checkpoint.decoder.spec
    return {
        "Description": checkpoint.card.get("description", checkpoint.name),
        "TrainSplit": (folder / SPLIT_FILE).as_posix(),
        "NetworkArch": ARCHITECTURE,
        "NetworkSpecs": {
            "dims": [spec.width] * spec.depth,
            "dropout": [],
            "dropout_prob": 0.0,
            "norm_layers": list(spec.layer_norm),
            "latent_in": list(spec.fed[1:]),
            "xyz_in_all": spec.points_in_all,
            "use_tanh": spec.tanh == 2,
            "latent_dropout": False,
            "weight_norm": False,
        },
        "CodeLength": spec.code_length,
        "ClampingDistance": checkpoint.clamping_distance,
        SKIN: checkpoint.skin,
    }


def _epoch(card: dict[str, Any]) -> int:
    """A number, as DeepSDF wants one: the epoch of an imported checkpoint, the steps of one trained here."""
    trained = card.get("trained", {})
    epoch = trained.get("epoch", trained.get("steps", 0))
    return epoch if isinstance(epoch, int) else 0


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _load(file: Path) -> dict[str, Any]:
    """A file of torch.save, of tensors and plain values; a bare tensor becomes {"latent_codes": it}."""
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        there = ", ".join(sorted(path.stem for path in file.parent.glob("*.pth"))) or "none"
        raise BadExperiment(f"{file} is missing; epochs that are there: {there}") from error
    except pickle.UnpicklingError as error:
        raise BadExperiment(
            f"{file} holds more than tensors and plain values, and to load that may run any code. Where it "
            f"comes from a place that you trust, load it there and save the state_dict alone ({error})"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise BadExperiment(f"{file} cannot be read: {error}") from error
    if isinstance(stored, Tensor):
        return {"latent_codes": stored}
    if not isinstance(stored, dict):
        raise BadExperiment(f"{file} holds a {type(stored).__name__}, not the weights or codes of DeepSDF")
    return stored


def _codes(stored: dict[str, Any], length: int) -> Tensor:
    """Codes (N, L), whether they were stored as an embedding, as (N, L), or as (N, 1, L)."""
    codes = stored.get("latent_codes", stored)
    codes = codes.get("weight") if isinstance(codes, dict) else codes
    if not isinstance(codes, Tensor) or codes.numel() == 0 or codes.shape[-1] != length:
        shape = tuple(codes.shape) if isinstance(codes, Tensor) else type(codes).__name__
        raise BadExperiment(f"{CODES}: there should be codes of length {length}, not {shape}")
    return codes.detach().reshape(-1, length).float()


def _names(shapes: list[str]) -> list[str]:
    """Instances without dataset and class where that tells them apart."""
    short = [shape.rpartition("/")[2] for shape in shapes]
    return short if len(set(short)) == len(short) else shapes


def _decoder(specs: Specs, stored: dict[str, Any]) -> Decoder:
    spec = DecoderSpec(**{**specs.decoder().model_dump(), "weight_norm": False, "dropout": 0.0})
    weights = _plain_weights({key.removeprefix("module."): value for key, value in stored.items()})
    first = weights.get("lin0.weight")
    if first is None:
        some = ", ".join(list(stored)[:4])
        raise BadExperiment(f"{PARAMETERS}: there is no layer lin0 as in DeepSDF's decoder, but {some} …")
    if first.shape[1] == specs.code_length + 2:
        raise BadExperiment(
            "the decoder is one of 2-D shapes (its first layer sees the code and 2 coordinates)"
        )
    # DeepSDF makes a layer norm for the last layer too where it is asked to, but never uses it.
    unused = f"bn{spec.depth}."
    ours = {_our_key(key, spec.depth): part for key, part in weights.items() if not key.startswith(unused)}
    decoder = Decoder(spec).eval().requires_grad_(False)
    try:
        decoder.load_state_dict(ours)
    except RuntimeError as error:
        raise BadExperiment(f"{PARAMETERS} does not fit NetworkSpecs and CodeLength: {error}") from error
    return decoder


def _plain_weights(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weight normalisation folded, w = g · v / ‖v‖ (rows), under its older names and its newer ones."""
    parts = {_older_key(key): part for key, part in stored.items()}
    plain = {}
    for key, part in parts.items():
        layer, _, name = key.rpartition(".")
        if name == "weight_v" and f"{layer}.weight_g" in parts:
            direction = torch.nn.functional.normalize(part, dim=1)
            plain[f"{layer}.weight"] = parts[f"{layer}.weight_g"] * direction
        elif name != "weight_g":
            plain[key] = part
    return plain


def _older_key(key: str) -> str:
    key = key.replace("parametrizations.weight.original0", "weight_g")
    return key.replace("parametrizations.weight.original1", "weight_v")


def _our_key(key: str, depth: int) -> str:
    """lin3.weight → hidden.3.weight, the last layer's → last.weight, bn3.weight → norms.3.weight."""
    key = re.sub(rf"^lin{depth}\.", "last.", key)
    return re.sub(r"^bn(\d+)\.", r"norms.\1.", re.sub(r"^lin(\d+)\.", r"hidden.\1.", key))


def _published_key(key: str, depth: int) -> str:
    """The way back."""
    key = re.sub(r"^last\.", f"lin{depth}.", key)
    return re.sub(r"^norms\.(\d+)\.", r"bn\1.", re.sub(r"^hidden\.(\d+)\.", r"lin\1.", key))
