"""Fixtures that the tests of the model share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from training_folders import make_training_folder

from model.checkpoint import Checkpoint, load_checkpoint
from model.training import lipschitz


@pytest.fixture(scope="session", autouse=True)
def few_points_for_steepness() -> Iterator[None]:
    """So many points as a shipped decoder deserves would take a minute for each of the tests' small ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lipschitz, "POINTS", 200)
        yield


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path) -> Checkpoint:
    """The tiny model of spheres and boxes, on the CPU."""
    return load_checkpoint(tiny_checkpoint, "cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint folder ready to train in; its samples are beside it, in `data`."""
    return make_training_folder(tmp_path)
