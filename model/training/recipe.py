"""The recipe of a checkpoint: the one file that a person writes, as typed settings."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

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
    drawn_variants: int = Field(
        3, ge=0, description="the same beside each shape that `model.training.drawn` drew: there are many"
    )
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


class Stage(_Section):
    """One stage of a curriculum (Curriculum DeepSDF, ECCV 2020, section 3), from easy to exact."""

    until: float = Field(gt=0, le=1, description="share of all steps at which the stage ends")
    tolerance: float = Field(0.0, ge=0, description="ε: errors up to it cost nothing")
    hardness: float = Field(0.0, ge=0, le=1, description="λ: hard samples weigh 1 + λ, easy ones 1 − λ")
    depth: int | None = Field(None, ge=1, description="hidden layers in use; all if not given")


class TrainingRecipe(_Section):
    """The optimisation of decoder and codes together (paper, section 4)."""

    steps: int = Field(20_000, gt=0)
    shapes_per_step: int = Field(16, gt=0)
    points_per_shape: int = Field(2048, gt=0, multiple_of=2)
    batch_split: int | None = Field(
        None, gt=0, description="parts of a step, computed one after the other; not given: as is fastest"
    )
    shards: int | None = Field(
        None, gt=0, description="parts that the shapes are dealt into; not given: one a process"
    )

    clamping_distance: float = Field(0.1, gt=0)
    curriculum: list[Stage] = Field([], description="stages of tolerance, hardness and depth, in order")
    growth_share: float = Field(
        0.05, ge=0, lt=1, description="share of the steps in which new layers of a stage are blended in"
    )
    eikonal_weight: float = Field(0.0, ge=0, description="weight of the mean (|∇f| − 1)²")
    eikonal_points: int = Field(256, gt=0, description="points of each shape that the Eikonal term looks at")
    eikonal_at: Literal["samples", "uniform"] = Field(
        "samples", description="where they are: among the samples, or uniform in the cube around the ball"
    )

    schedule: Literal["cosine", "step", "constant"] = Field(
        "cosine", description="how the learning rates go on after they have risen"
    )
    decoder_rate: float = Field(1.5e-3, gt=0, description="peak learning rate of the decoder")
    code_rate: float = Field(3e-3, gt=0, description="peak learning rate of the codes")
    warmup_share: float = Field(0.02, ge=0, lt=1, description="share of the steps in which the rates rise")
    step_share: float = Field(0.25, gt=0, le=1, description="schedule step: share of the steps between falls")
    step_factor: float = Field(0.5, gt=0, le=1, description="schedule step: what a fall multiplies rates by")

    code_std: float = Field(0.1, gt=0, description="codes start as N(0, code_std²/L) draws")
    code_penalty: float = Field(1e-4, ge=0, description="weight of the code prior")
    code_prior: Literal["squared_norm", "norm", "gaussian"] = Field(
        "squared_norm", description="what is penalised: ‖z‖², ‖z‖, or the distance from the codes' Gaussian"
    )
    penalty_share: float = Field(0.0, ge=0, le=1, description="share of the steps in which the penalty rises")
    code_bound: float = Field(0.0, ge=0, description="longest code; 0: no bound")
    code_noise: float = Field(0.0, ge=0, description="noise added to codes in training, per dimension")

    weight_decay: float = Field(0.0, ge=0)
    gradient_clip: float = Field(0.0, ge=0, description="longest gradient of the decoder; 0: no bound")
    average_decay: float = Field(
        0.0, ge=0, lt=1, description="decay of the moving average of weights and codes; 0: no average"
    )

    precision: Literal["bfloat16", "tf32", "float32"] = Field(
        "bfloat16", description="of the steps before the last ones, where the processor has it"
    )
    float32_share: float = Field(
        0.2, ge=0, le=1, description="share of the steps, the last, in final_precision"
    )
    final_precision: Literal["tf32", "float32"] = Field("float32", description="of the last steps")
    compile: bool = Field(False, description="compile the network with torch.compile")
    cuda_graph: bool = Field(True, description="on a GPU, record the step and replay it as one launch")

    save_every: int = Field(500, gt=0, multiple_of=50, description="steps between resumable states")
    snapshot_every: int = Field(
        0, ge=0, multiple_of=50, description="steps between states that are kept for good; 0: none"
    )
    extra_snapshots: list[Annotated[int, Field(gt=0, multiple_of=50)]] = Field(
        [], description="further steps after which the state is kept"
    )
    seed: int = 0

    @model_validator(mode="after")
    def _curriculum_goes_to_the_end(self) -> TrainingRecipe:
        ends = [stage.until for stage in self.curriculum]
        if ends and (ends != sorted(set(ends)) or ends[-1] != 1):
            raise ValueError(f"curriculum: `until` must rise from stage to stage and end with 1, not {ends}")
        return self


class Recipe(_Section):
    """Everything that makes a checkpoint."""

    name: str
    description: str
    category: str
    samples: SamplesRecipe = SamplesRecipe()
    decoder: DecoderRecipe = DecoderRecipe()
    training: TrainingRecipe = TrainingRecipe()

    @model_validator(mode="after")
    def _network_can_grow(self) -> Recipe:
        depths = [stage.depth or self.decoder.depth for stage in self.training.curriculum]
        if depths and (depths != sorted(depths) or depths[-1] != self.decoder.depth):
            raise ValueError(f"curriculum: `depth` must not fall and end with {self.decoder.depth}: {depths}")
        if len(set(depths)) > 1 and self.decoder.points_in_all:
            raise ValueError("curriculum: `depth` cannot grow in a network with points_in_all")
        if depths and depths[0] <= max(self.decoder.spec().fed):
            raise ValueError(
                f"curriculum: `depth` {depths[0]} must exceed skip_layer {self.decoder.skip_layer}"
            )
        return self


class NoRecipe(ValueError):
    """A folder is not one of a checkpoint."""


def load_recipe(folder: Path) -> Recipe:
    """Read a folder's `recipe.toml`.

    Raises NoRecipe where there is none, and pydantic's ValidationError, which names the setting.
    """
    try:
        text = (folder / "recipe.toml").read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise NoRecipe(f"{folder} has no recipe.toml: name the folder of a checkpoint") from None
    return Recipe.model_validate(tomllib.loads(text))
