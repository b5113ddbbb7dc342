"""What changes in the course of training, as functions of the step: rates, curriculum, precision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from model.training.recipe import Stage, TrainingRecipe


def rate_share(step: int, recipe: TrainingRecipe) -> float:
    """Share of the peak learning rate at a step: a linear rise, then as `schedule` says.

    `cosine` falls along half a cosine to zero; `step` is multiplied by `step_factor` after each `step_share`
    of the steps; `constant` stays.
    """
    rise = max(1, round(recipe.steps * recipe.warmup_share))
    if step < rise:
        return (step + 1) / rise
    if recipe.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, recipe.steps - rise)))
    if recipe.schedule == "step":
        return float(recipe.step_factor ** (step // max(1, round(recipe.steps * recipe.step_share))))
    return 1.0


def rates_at(step: int, recipe: TrainingRecipe) -> tuple[float, float]:
    """Learning rates of the decoder and of the codes at a step."""
    share = rate_share(step, recipe)
    return recipe.decoder_rate * share, recipe.code_rate * share


def penalty_at(step: int, recipe: TrainingRecipe) -> float:
    """Weight of the code penalty at a step: it rises in a line over `penalty_share` of the steps."""
    return recipe.code_penalty * min(1.0, (step + 1) / max(1.0, recipe.steps * recipe.penalty_share))


def stage_at(step: int, recipe: TrainingRecipe) -> Stage:
    """The stage of the curriculum at a step; a plain one where there is no curriculum."""
    done = step / recipe.steps
    return next((stage for stage in recipe.curriculum if done < stage.until), Stage(until=1))


def depth_at(step: int, recipe: TrainingRecipe, full: int) -> float:
    """Hidden layers in use at a step, of `full` ones; not whole while new ones are blended in.

    They come one after the other, in the first `growth_share` of the steps of their stage.
    """
    depth = float(recipe.curriculum[0].depth or full) if recipe.curriculum else float(full)
    for before, stage in pairwise(recipe.curriculum):
        since = step / recipe.steps - before.until
        if since < 0:
            break
        grown = min(1.0, since / recipe.growth_share) if recipe.growth_share else 1.0
        depth += grown * ((stage.depth or full) - depth)
    return depth


def precision_at(step: int, recipe: TrainingRecipe) -> str:
    """`bfloat16`, `tf32` or `float32`."""
    last = step >= recipe.steps * (1 - recipe.float32_share)
    return recipe.final_precision if last else recipe.precision


@dataclass(frozen=True)
class Phase:
    """What the schedules say of how a step is computed. Steps of one phase do the same with other numbers."""

    precision: str  # `bfloat16`, `tf32` or `float32`
    tolerance: float  # ε of the curriculum
    hardness: float  # λ
    depth: float  # hidden layers in use; not whole while new ones are blended in


def phase_at(step: int, recipe: TrainingRecipe, full: int) -> Phase:
    """The phase of a step, of a network of `full` hidden layers."""
    stage = stage_at(step, recipe)
    return Phase(precision_at(step, recipe), stage.tolerance, stage.hardness, depth_at(step, recipe, full))
