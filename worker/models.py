"""Trained models in memory: loaded when they are asked for, as many as the memory for them holds."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import torch

from model import kernels
from model.checkpoint import Checkpoint, load_checkpoint
from model.completion import Completer, CompletionError
from model.latent import LevenbergMarquardt
from model.observation import View
from model.problems import Problems, rows_of_samples

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
        warm_up(completer)
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


def warm_up(completer: Completer) -> None:
    """What a device loads for a completion, or compiles, it does now, not during the first one.

    On a GPU by a completion of half a ball, without kernels if one of them fails; on a CPU by one step of the
    solver, which is all that it takes.
    """
    checkpoint = completer.checkpoint
    if checkpoint.device.type == "cuda":
        _complete_something(completer)
        return
    points = torch.linspace(-0.5, 0.5, 300).reshape(1, 100, 3)
    rows = rows_of_samples(points, points.norm(dim=-1) - 0.5, checkpoint.clamping_distance)
    problems = Problems.start(rows, checkpoint.codes[:2], checkpoint.prior)
    LevenbergMarquardt(checkpoint.decoder, problems).step()


def _complete_something(completer: Completer) -> None:
    try:
        completer.complete([half_a_ball()], resolution=32)
    except CompletionError as error:  # a model need not make something of it
        log.info("warming up: %s", error)
    except Exception as error:
        kernels.give_up(error)


def half_a_ball(count: int = 2000) -> View:
    """What a sensor sees of a ball."""
    points = np.random.default_rng(0).normal(size=(count, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    points[:, 2] = np.abs(points[:, 2])
    return View(points, viewpoint=np.array([0.0, 0.0, 4.0]))
