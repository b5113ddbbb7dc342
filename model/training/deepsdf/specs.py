"""specs.json of a DeepSDF experiment: read, and turned into the settings of a recipe.

`SETTINGS` is the whole translation: a new setting of the recipe that DeepSDF has too is one line there.
"""

from __future__ import annotations

import functools
import json
import math
import operator
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from model.training.dataset import MissingSamples, read_split
from model.training.recipe import DecoderRecipe, Recipe

ARCHITECTURE = "deep_sdf_decoder"
SPECS_FILE = "specs.json"

SKIN = "Skin"
"""τ of an exported checkpoint. DeepSDF's own files have no such entry, and its code looks past it."""


class BadExperiment(Exception):
    """The experiment cannot be read, or the checkpoint cannot be written as one; the message says why."""


class Network(BaseModel):
    """`NetworkSpecs`: the arguments of the published decoder, with its defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dims: list[int]
    dropout: list[int] | None = None
    dropout_prob: float = 0.0
    norm_layers: list[int] | None = None
    latent_in: list[int] = []
    weight_norm: bool = False
    xyz_in_all: bool | None = None
    use_tanh: bool = False
    latent_dropout: bool = False  # in training alone


@dataclass(frozen=True)
class Specs:
    """specs.json as it is, its network, and the shapes that it trains on."""

    values: dict[str, Any]
    network: Network
    code_length: int
    shapes: list[str] | None  # "dataset/class/instance" in the order of the codes; None: no split file found

    @property
    def clamping_distance(self) -> float:
        """δ."""
        return float(self.values.get("ClampingDistance", 0.1))

    @property
    def skin(self) -> float:
        """τ: the field is ±d − τ."""
        return float(self.values.get(SKIN, 0.0))

    @property
    def description(self) -> str:
        """One line."""
        given = self.values.get("Description", "")
        return " ".join([given] if isinstance(given, str) else given)

    @property
    def category(self) -> str:
        """The class of the shapes, where it is one and known."""
        categories = {shape.split("/")[1] for shape in self.shapes or []}
        return categories.pop() if len(categories) == 1 else "unknown"

    def decoder(self) -> DecoderRecipe:
        """The network as a recipe has it. Raises BadExperiment."""
        try:
            return DecoderRecipe(**_network(self))
        except ValidationError as error:
            raise BadExperiment(f"NetworkSpecs: {error}") from error


def read_specs(file: Path, split: Path | None = None) -> Specs:
    """Read specs.json; `split` is used in place of its TrainSplit. Raises BadExperiment.

    A path in it is relative to the folder in which DeepSDF was run, which is often one above the
    experiment's: it is looked for here, beside the file and in each folder above it.
    """
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
        values = {name: value for name, value in given.items() if value is not None}
        network, length = Network(**values["NetworkSpecs"]), int(values["CodeLength"])
        for name, inside in (("DataSource", "SdfSamples"), ("TrainSplit", "")):
            if name in values:
                values[name] = str(_found(Path(values[name]), file.parent, inside))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadExperiment(f"{file} cannot be read as DeepSDF's {SPECS_FILE}: {error!r}") from error
    if values.get("NetworkArch", ARCHITECTURE) != ARCHITECTURE:
        raise BadExperiment(
            f"{file}: the network {values['NetworkArch']!r} is not known; only {ARCHITECTURE} can be read"
        )
    if split is not None:
        values["TrainSplit"] = str(split)
    return Specs(values, network, length, _shapes(values, required=split is not None))


def recipe_text(specs: Specs, name: str, description: str, category: str) -> str:
    """recipe.toml for a specs.json; what it cannot say stands in it as comments. Raises BadExperiment."""
    head = {"name": name, "description": description, "category": category}
    values = {**DEFAULTS, **specs.values}
    try:
        settings = [SETTINGS[spec][0](values[spec], specs) for spec in SETTINGS if spec in values]
        text = "\n".join([*_notes(values), *_toml(functools.reduce(operator.or_, settings, head | ALWAYS))])
        Recipe.model_validate(tomllib.loads(text))
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        raise BadExperiment(f"{SPECS_FILE} has a setting that a recipe cannot have: {error}") from error
    return text + "\n"


Settings = dict[str, Any]
"""By section and name, as "training.steps"."""

Translate = Callable[[Any, Specs], Settings]
"""What follows from the value of an entry, and from the rest of specs.json."""


def _as(setting: str) -> Translate:
    return lambda value, specs: {setting: value}


def _elsewhere(value: Any, specs: Specs) -> Settings:
    """Spoken for by another entry, or of no consequence."""
    return {}


def _source(value: Any, specs: Specs) -> Settings:
    if "TrainSplit" not in specs.values:
        return {}
    return {"samples.source": value, "samples.train_split": specs.values["TrainSplit"]}


def _network(specs: Specs) -> Settings:
    network, depth = specs.network, len(specs.network.dims)
    if len(set(network.dims)) != 1:
        raise BadExperiment(f"hidden layers of different widths ({network.dims}) cannot be read")
    if 0 in network.latent_in:
        raise BadExperiment("latent_in names layer 0, which sees the code anyway: leave it out")
    skips = tuple(sorted({layer for layer in network.latent_in if layer <= depth}))
    normalised = network.norm_layers or []
    return {
        "code_length": specs.code_length,
        "width": network.dims[0],
        "depth": depth,
        "skip_layer": skips[0] if len(skips) == 1 else skips,
        "octaves": 0,
        "weight_norm": network.weight_norm,
        "dropout": network.dropout_prob if network.dropout else 0.0,
        "tanh": 2 if network.use_tanh else 1,  # the published decoder always ends with one of its own
        "layer_norm": () if network.weight_norm else tuple(layer for layer in normalised if layer < depth),
        "points_in_all": bool(network.xyz_in_all),
    }


def _decoder(value: Any, specs: Specs) -> Settings:
    return {f"decoder.{name}": setting for name, setting in specs.decoder().model_dump().items()}


def _steps(epochs: int, specs: Specs) -> Settings:
    steps = _steps_of(epochs, specs)
    return {} if steps is None else {"training.steps": math.ceil(steps)}


def _steps_of(epochs: float, specs: Specs) -> float | None:
    """An epoch shows every shape once; None where it is not known how many there are."""
    if specs.shapes is None:
        return None
    return epochs * len(specs.shapes) / float(specs.values.get("ScenesPerBatch", 1))


def _rates(schedules: list[dict[str, Any]], specs: Specs) -> Settings:
    names = {"Step": "Initial", "Warmup": "Final", "Constant": "Value"}
    highest = [schedule[names[schedule["Type"]]] for schedule in schedules]
    rates = dict(zip(("training.decoder_rate", "training.code_rate"), highest, strict=True))
    if not _fall_alike(schedules) or "NumEpochs" not in specs.values:
        return rates
    share = min(1.0, schedules[0]["Interval"] / specs.values["NumEpochs"])
    factor = schedules[0]["Factor"]
    falls = {"schedule": "step", "step_share": share, "step_factor": factor, "warmup_share": 0.0}
    return rates | {f"training.{name}": value for name, value in falls.items()}


def _fall_alike(schedules: list[dict[str, Any]]) -> bool:
    """Whether both rates fall by the same factor at the same epochs, which is how a recipe has it."""
    falls = {(one["Type"], one.get("Interval"), one.get("Factor")) for one in schedules}
    return len(falls) == 1 and schedules[0]["Type"] == "Step"


def _about_rates(schedules: list[dict[str, Any]]) -> str:
    return (
        "" if _fall_alike(schedules) else "the highest rates are taken; they rise, then fall along a cosine"
    )


def _penalty(weight: float, specs: Specs) -> Settings:
    """The published code penalises the norm, and rises to its full weight in the first 100 epochs."""
    if not specs.values.get("CodeRegularization", True):
        return {"training.code_penalty": 0.0}
    share = min(1.0, PENALTY_EPOCHS / specs.values["NumEpochs"]) if "NumEpochs" in specs.values else 0.0
    settings = {"code_penalty": weight, "code_prior": "norm", "penalty_share": share}
    return {f"training.{name}": value for name, value in settings.items()}


def _snapshots(epochs: int, specs: Specs) -> Settings:
    steps = _steps_of(epochs, specs)
    return {} if steps is None else {"training.snapshot_every": _in_fifties(steps)}


def _more_snapshots(epochs: list[int], specs: Specs) -> Settings:
    steps = [_steps_of(one, specs) for one in epochs]
    return {"training.extra_snapshots": sorted({_in_fifties(one) for one in steps if one is not None})}


def _in_fifties(steps: float) -> int:
    return max(50, 50 * round(steps / 50))


def _points(count: int, specs: Specs) -> Settings:
    return {"training.points_per_shape": count // 2 * 2}


PENALTY_EPOCHS = 100

IN_FIFTIES = "epochs as steps, in whole fifties, where the split file is found"

SETTINGS: dict[str, tuple[Translate, str | Callable[[Any], str]]] = {
    "Description": (_elsewhere, ""),
    "DataSource": (_source, ""),
    "TrainSplit": (_elsewhere, ""),
    "NetworkArch": (_elsewhere, ""),
    "NetworkSpecs": (_decoder, "dropout is on all hidden layers or on none, and never on the code"),
    "CodeLength": (_elsewhere, ""),
    "NumEpochs": (_steps, "steps are epochs · shapes / ScenesPerBatch, where the split file is found"),
    "LearningRateSchedule": (_rates, _about_rates),
    "SamplesPerScene": (_points, ""),
    "ScenesPerBatch": (_as("training.shapes_per_step"), ""),
    "ClampingDistance": (_as("training.clamping_distance"), ""),
    "CodeRegularization": (_elsewhere, ""),
    "CodeRegularizationLambda": (_penalty, ""),
    "CodeBound": (_as("training.code_bound"), ""),
    "GradientClipNorm": (_as("training.gradient_clip"), ""),
    "SnapshotFrequency": (_snapshots, IN_FIFTIES),
    "AdditionalSnapshots": (_more_snapshots, IN_FIFTIES),
    "CodeInitStdDev": (_as("training.code_std"), ""),
    SKIN: (_as("samples.skin"), ""),
}
"""Which settings follow from an entry of specs.json, and what is different about them."""

DEFAULTS: dict[str, Any] = {"CodeRegularizationLambda": 1e-4, "CodeInitStdDev": 1.0, SKIN: 0.0}
"""What the published code takes where specs.json is silent, and a recipe would take something else."""

ALWAYS: Settings = {"samples.variants": 0, "training.float32_share": 1.0}
"""What holds of every DeepSDF experiment: no variants, float32 throughout."""


def _notes(values: dict[str, Any]) -> Iterator[str]:
    """Comments: what is different, and what has no counterpart."""
    for spec in sorted(values):
        note = SETTINGS[spec][1] if spec in SETTINGS else "not taken over"
        note = note if isinstance(note, str) else note(values[spec])
        if note:
            yield f"# {spec} = {json.dumps(values[spec], ensure_ascii=False)}: {note}"


def _toml(settings: Settings) -> Iterator[str]:
    """Lines of TOML, the settings without a section first. JSON's scalars and lists are TOML's too."""
    for section in ("", "samples", "decoder", "training"):
        if section:
            yield f"\n[{section}]"
        for key, value in settings.items():
            before, _, name = key.rpartition(".")
            if before == section:
                yield f"{name} = {json.dumps(value, ensure_ascii=False)}"


def _shapes(values: dict[str, Any], required: bool) -> list[str] | None:
    try:
        return read_split(Path(values["TrainSplit"]))
    except (KeyError, MissingSamples) as error:
        if required:
            raise BadExperiment(str(error)) from error
        return None


def _found(path: Path, beside: Path, inside: str) -> Path:
    """The path where it exists with `inside` in it, absolute; as it is where that is nowhere."""
    bases = [Path(), beside, *beside.resolve().parents]
    return next(((base / path).resolve() for base in bases if (base / path / inside).exists()), path)
