"""The recipe of a checkpoint: the one file that a person writes, as typed settings."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.decoder import DecoderSpec


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SamplesRecipe(_Section):
    """How signed distances are sampled from meshes."""

    skin: float = Field(
        0.006, ge=0, description="τ: the trained field is ±d − τ, so that sheets have an inside"
    )
    points: int = Field(100_000, gt=0, description="signed distances a shape or variant")
    near_sigma: tuple[float, float] = Field(
        (0.0707, 0.0224), description="noise around surface points, half each"
    )
    uniform_share: float = Field(0.06, ge=0, le=1, description="share of points uniform in the unit ball")
    variants: int = Field(7, ge=0, description="deformed variants beside each training shape")
    stretch: float = Field(0.28, ge=0, description="bound of the log stretch of each axis")
    bend: float = Field(0.09, ge=0, description="standard deviation of the lattice displacements, unit ball")
    recombined: float = Field(
        0.0, ge=0, le=1, description="share of the variants that stand on the legs of another training shape"
    )
    seed: int = 0
    source: Path | None = Field(None, description="DeepSDF's data folder to train on: with SdfSamples in it")
    train_split: Path | None = Field(
        None, description="DeepSDF's split file: which of its shapes to train on"
    )

    @model_validator(mode="after")
    def _source_is_whole(self) -> SamplesRecipe:
        if (self.source is None) != (self.train_split is None):
            raise ValueError("source and train_split belong together: give both or neither")
        if self.source is not None and "skin" not in self.model_fields_set:
            raise ValueError(
                "with a source, give the skin of its samples: 0 for those of DeepSDF's own tools"
            )
        return self


class DecoderRecipe(_Section):
    """The network: see `model.decoder.DecoderSpec`."""

    code_length: int = Field(64, gt=0)
    width: int = Field(256, gt=0)
    depth: int = Field(8, ge=2)
    skip_layer: int | tuple[int, ...] = 4
    octaves: int = Field(5, ge=0)
    weight_norm: bool = False
    dropout: float = Field(0.0, ge=0, lt=1)
    tanh: int = Field(0, ge=0, le=2, description="how often the output is squashed")
    layer_norm: tuple[int, ...] = ()
    points_in_all: bool = False

    @model_validator(mode="after")
    def _layers_exist_and_are_wide_enough(self) -> DecoderRecipe:
        spec = self.spec()
        if not all(1 <= layer <= self.depth for layer in spec.fed[1:]):
            raise ValueError(f"skip_layer {self.skip_layer} must be within 1 and depth {self.depth}")
        if not all(0 <= layer < self.depth for layer in self.layer_norm):
            raise ValueError(f"layer_norm {self.layer_norm} names layers beyond the {self.depth} hidden ones")
        given = max(spec.given(layer) for layer in range(1, self.depth + 1))
        if given >= self.width:
            raise ValueError(f"width {self.width} must exceed the {given} inputs that a layer is given again")
        return self

    def spec(self) -> DecoderSpec:
        """The same as the network wants it."""
        return DecoderSpec(**self.model_dump())


class TrainingRecipe(_Section):
    """The optimisation of decoder and codes together (paper, section 4)."""

    steps: int = Field(20_000, gt=0)
    shapes_per_step: int = Field(16, gt=0)
    points_per_shape: int = Field(2048, gt=0, multiple_of=2)
    clamping_distance: float = Field(0.1, gt=0)
    decoder_rate: float = Field(1.5e-3, gt=0, description="peak learning rate of the decoder")
    code_rate: float = Field(3e-3, gt=0, description="peak learning rate of the codes")
    warmup_share: float = Field(0.02, ge=0, lt=1, description="share of the steps in which the rates rise")
    code_std: float = Field(0.1, gt=0, description="codes start as N(0, code_std²/L) draws")
    code_penalty: float = Field(1e-4, ge=0, description="weight of the mean squared code norm")
    code_noise: float = Field(0.0, ge=0, description="noise added to codes in training, per dimension")
    weight_decay: float = Field(0.0, ge=0)
    float32_share: float = Field(
        0.2, ge=0, le=1, description="share of the steps, the last, without bfloat16"
    )
    save_every: int = Field(500, gt=0, description="steps between resumable states, a multiple of 50")
    seed: int = 0


class Recipe(_Section):
    """Everything that makes a checkpoint."""

    name: str
    description: str
    category: str
    samples: SamplesRecipe = SamplesRecipe()
    decoder: DecoderRecipe = DecoderRecipe()
    training: TrainingRecipe = TrainingRecipe()


def load_recipe(folder: Path) -> Recipe:
    """Read a folder's `recipe.toml`; raises pydantic's ValidationError, which names the setting."""
    with (folder / "recipe.toml").open("rb") as file:
        return Recipe.model_validate(tomllib.load(file))
