"""Fixtures that the tests of the model share."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_folders import make_training_folder

from model.checkpoint import Checkpoint, load_checkpoint


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path) -> Checkpoint:
    """The tiny model of spheres and boxes, on the CPU."""
    return load_checkpoint(tiny_checkpoint, "cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint folder ready to train in; its samples are beside it, in `data`."""
    return make_training_folder(tmp_path)
