"""Fixtures that the tests of the model share."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.checkpoint import Checkpoint, load_checkpoint


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path) -> Checkpoint:
    """The tiny model of spheres and boxes, on the CPU."""
    return load_checkpoint(tiny_checkpoint, "cpu")
