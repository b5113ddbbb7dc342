"""States of a training run on disk: the latest one to resume from, and snapshots that are kept.

Each is written beside its place and renamed: a process that is killed in between leaves the one before.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]
"""What `model.training.trainer.Trainer.state` gives."""


@dataclass(frozen=True)
class States:
    """The states in a folder `training/` of a checkpoint."""

    folder: Path

    def save(self, state: State, snapshot: bool) -> None:
        """Keep a state as the latest one, and for good as a `snapshot`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if snapshot:
            _write(state, self.folder / f"step-{state['step']}.pt")
        _write(state, self.folder / "state.pt")

    def load(self, step: int | None, device: str) -> State | None:
        """The snapshot of a step, or the latest state, None if there is none.

        Raises ValueError, which names the snapshots that there are, for a step without one.
        """
        file = self.folder / ("state.pt" if step is None else f"step-{step}.pt")
        if file.exists():
            state: State = torch.load(file, map_location=device, weights_only=True)
            return state
        if step is None:
            return None
        raise ValueError(f"there is no snapshot of step {step}, only of {self.snapshots() or 'none'}")

    def snapshots(self) -> list[int]:
        """The steps of which there are snapshots."""
        return sorted(int(file.stem.removeprefix("step-")) for file in self.folder.glob("step-*.pt"))


def _write(state: State, file: Path) -> None:
    part = file.with_suffix(".part")
    with part.open("wb") as opened:
        torch.save(state, opened)
        opened.flush()
        os.fsync(opened.fileno())
    part.replace(file)


def with_codes(state: State, change: Callable[[Tensor], Tensor]) -> State:
    """A trainer's state with every table of codes changed: the codes, their averages, and Adam's moments."""

    def changed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: change(one) if name.endswith("codes") else one for name, one in tensors.items()}

    optimizer = state["optimizer"]
    (codes,) = optimizer["param_groups"][-1]["params"]
    moments = optimizer["state"].get(codes, {})
    entries = {**optimizer["state"]}
    if moments:
        entries[codes] = {name: change(one) if one.ndim else one for name, one in moments.items()}
    return {
        **state,
        "model": changed(state["model"]),
        "average": state["average"] and changed(state["average"]),
        "optimizer": {**optimizer, "state": entries},
    }
