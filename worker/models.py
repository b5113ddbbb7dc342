"""Trained models in memory: loaded when they are asked for, as many as the memory for them holds."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch

from model.checkpoint import Checkpoint, load_checkpoint
from model.completion import Completer
from model.latent import LevenbergMarquardt, Problems, rows_of_samples

log = logging.getLogger(__name__)


class Models:
    """The models of one folder on one device. Beyond `budget` bytes the least recently used is let go."""

    def __init__(self, folder: Path, device: str, budget: int) -> None:
        self.folder, self.device, self.budget = folder, device, budget
        self._loaded: dict[str, Completer] = {}  # the most recently used one last

    def get(self, name: str) -> Completer:
        """The model of that name, loaded unless it is there. Raises BadCheckpoint."""
        completer = self._loaded.pop(name, None) or self._load(name)
        self._loaded[name] = completer
        while len(self._loaded) > 1 and self.bytes > self.budget:
            # One that a completion still uses stays in memory until that has ended.
            gone = next(iter(self._loaded))
            del self._loaded[gone]
            log.info("model %s makes room for %s", gone, name)
        return completer

    def load_all(self) -> list[str]:
        """Load the models of the folder while there is room; the names of those that are ready."""
        for name in self.names():
            if self.bytes < self.budget:
                self.get(name)
        return list(self._loaded)

    def names(self) -> list[str]:
        """All models of the folder."""
        return sorted(card.parent.name for card in self.folder.glob("*/card.json"))

    @property
    def bytes(self) -> int:
        """Memory of the models that are loaded."""
        return sum(size_of(one.checkpoint) for one in self._loaded.values())

    def _load(self, name: str) -> Completer:
        start = time.perf_counter()
        completer = Completer(load_checkpoint(self.folder / Path(name).name, self.device))
        warm_up(completer.checkpoint)
        log.info(
            "model %s loaded on %s in %.1f s", name, completer.checkpoint.device, time.perf_counter() - start
        )
        return completer


def size_of(checkpoint: Checkpoint) -> int:
    """Bytes of a model's tensors."""
    starts = checkpoint.starts
    encoder = () if checkpoint.encoder is None else checkpoint.encoder.parameters()
    tensors = [*checkpoint.decoder.parameters(), *encoder, checkpoint.codes, starts.codes, starts.grids]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def warm_up(checkpoint: Checkpoint) -> None:
    """One step of the solver: a device loads its kernels now, not during the first completion."""
    points = torch.linspace(-0.5, 0.5, 300, device=checkpoint.device).reshape(1, 100, 3)
    rows = rows_of_samples(points, points.norm(dim=-1) - 0.5, checkpoint.clamping_distance)
    problems = Problems.start(rows, checkpoint.codes[:2], checkpoint.prior)
    LevenbergMarquardt(checkpoint.decoder, problems).step()
