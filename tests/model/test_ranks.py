"""Several processes: together they do what one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from shapes import tiny_samples
from two_processes import recipe, trainer

from model.training.ranks import ALONE, Ranks
from model.training.trainer import Trainer, run


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The state that two real processes end with."""
    file = tmp_path_factory.mktemp("torchrun") / "state.pt"
    root = Path(__file__).resolve().parents[2]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*torchrun, str(Path(__file__).with_name("two_processes.py")), str(file)],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        check=True,
        timeout=120,
    )
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


def test_two_processes_train_what_one_trains(by_two: dict[str, Any]) -> None:
    """Up to the order of sums: the same shapes, samples and noise, the parts of unequal size."""
    alone = trainer(ALONE)
    losses = [line.loss for line in run(alone, log_every=4)]
    assert by_two["losses"] == pytest.approx(losses, rel=1e-4)
    for kind in ("model", "average"):
        for name, part in alone.state()[kind].items():
            assert torch.allclose(by_two[kind][name], part, atol=2e-5), (kind, name)


def test_shards_must_be_shared_evenly() -> None:
    with pytest.raises(ValueError, match="3 processes cannot share 2 shards"):
        Trainer(recipe(), tiny_samples(300), "cpu", Ranks(0, 3))


def test_one_process_goes_on_where_two_stopped(by_two: dict[str, Any]) -> None:
    alone, resumed = trainer(ALONE), trainer(ALONE)
    list(run(alone))
    resumed.restore(by_two)
    assert resumed.step_count == alone.step_count
    assert torch.allclose(alone.step(), resumed.step(), rtol=1e-3)
    assert torch.allclose(alone.codes, resumed.codes, atol=1e-4)
