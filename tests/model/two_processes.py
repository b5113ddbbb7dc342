"""What `torchrun` runs in a test: trains on exact solids and stores the state; see test_ranks.py."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shapes import TINY_RECIPE, tiny_samples

from model.training.dataset import SampleSet
from model.training.ranks import Ranks, joined
from model.training.recipe import Recipe
from model.training.trainer import Trainer, run


def recipe() -> Recipe:
    """All that processes must share is switched on."""
    settings = {
        "steps": 12,
        "shapes_per_step": 4,
        "points_per_shape": 64,
        "shards": 2,
        "batch_split": 2,
        "code_noise": 0.02,
        "code_prior": "gaussian",
        "code_penalty": 0.1,
        "code_bound": 0.3,
        "gradient_clip": 0.5,
        "average_decay": 0.9,
        "eikonal_weight": 0.1,
        "eikonal_points": 16,
        "precision": "float32",
        "curriculum": [{"until": 0.3, "depth": 3}, {"until": 1.0, "depth": 4}],
    }
    return Recipe.model_validate({**TINY_RECIPE.model_dump(), "training": settings})


def trainer(ranks: Ranks) -> Trainer:
    """Of nine shapes, so that the parts are not equal."""
    data = tiny_samples(300)
    names, samples = data.names[:9], data.samples[:9]
    own = SampleSet(list(ranks.own(names)), ranks.own_rows(samples))
    return Trainer(recipe(), own, "cpu", ranks)


if __name__ == "__main__":
    with joined("cpu") as ranks:
        made = trainer(ranks)
        losses = [line.loss for line in run(made, log_every=4)]
        state = {**made.state(), "losses": losses}
        if ranks.first:
            torch.save(state, sys.argv[1])
    # A group that lives on aborts the process at exit, now and then.
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    if left := [name for name in threads if "gloo" in name]:
        sys.exit(f"threads of the group are left: {left}")
