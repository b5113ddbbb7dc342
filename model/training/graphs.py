"""A step recorded as a CUDA graph: the same kernels on the same memory, launched all at once.

The step of a small network is hundreds of kernels of a few microseconds. Launching them one after the other
takes longer than they do, so a GPU waits for the processor most of the time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from model.training.draws import Batch
from model.training.schedules import Phase
from model.trees import leaves, mapped

logger = logging.getLogger(__name__)

Update = Callable[[Phase, Batch], Tensor]
"""A step on a batch, computed as the phase says; returns its loss, a single number."""

WARM_UP = 3
"""Steps of each phase before the one that is recorded: optimiser and libraries set up what they need."""


class Recorder:
    """Does the steps of one `Update` on a GPU: recorded once a phase, and then replayed.

    Of all that the update reads and writes only the batch may lie elsewhere at the next call, and nothing of
    it may be decided by the values of tensors. Where it cannot be recorded, a warning says why, and the steps
    are done as they are. (`model.graphs` is for functions that change nothing.)
    """

    def __init__(self) -> None:
        self.works, self.stream = True, torch.cuda.Stream()
        self.phase: Phase | None = None
        self.steps = 0  # of the phase
        self.recording: Recording | None = None

    def __call__(self, update: Update, phase: Phase, batch: Batch) -> Tensor:
        """Do a step. The update is always the same; kept here, it would keep its trainer's memory too."""
        if phase != self.phase:
            if self.recording:
                torch.cuda.synchronize()  # none is let go while it is being replayed
            self.phase, self.steps, self.recording = phase, 0, None
        self.steps += 1
        if self.works and self.steps > WARM_UP and self.recording is None:
            self.recording = self._recorded(update, phase, batch)
        return self.recording.replay(batch) if self.recording else self._plainly(update, phase, batch)

    def _plainly(self, update: Update, phase: Phase, batch: Batch) -> Tensor:
        """The step as it is, on the stream that will record: its gradients must not belong to another."""
        here = torch.cuda.current_stream()
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            loss = update(phase, batch)
        here.wait_stream(self.stream)
        return loss

    def _recorded(self, update: Update, phase: Phase, batch: Batch) -> Recording | None:
        here = torch.cuda.current_stream()
        try:
            return Recording(update, phase, batch, self.stream)
        except Exception as error:  # out of memory, or whatever a kernel that cannot be recorded says
            self.works = False
            torch.cuda.set_stream(here)  # the recording did not get so far
            logger.warning("no CUDA graph of the training step, it goes on without: %s", error)
            return None


class Recording:
    """One graph, with the memory that it reads batches from and writes the loss to."""

    def __init__(self, update: Update, phase: Phase, batch: Batch, stream: torch.cuda.Stream) -> None:
        self.batch = mapped(torch.clone, batch)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream):
            self.loss = update(phase, self.batch)

    def replay(self, batch: Batch) -> Tensor:
        """Do the step with another batch of the same size."""
        for own, new in zip(leaves(self.batch), leaves(batch), strict=True):
            own.copy_(new)
        self.graph.replay()
        return self.loss.clone()  # the next replay writes over it
