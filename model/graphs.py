"""Functions of tensors, recorded once on a GPU and replayed: launching many small kernels takes long.

A function is recorded, as a CUDA graph, for arguments of one shape. It must be pure and launch the same
kernels whatever the values are, at which it cannot look. Argument and result are dataclasses of tensors (see
`model.trees`). What a function computes is not known here.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

from model.trees import leaves, mapped

logger = logging.getLogger(__name__)

A = TypeVar("A")
R = TypeVar("R")


class Recording:
    """One function, recorded on the current device for arguments shaped like an example."""

    def __init__(self, function: Callable[[A], R], example: A, pool: Any, stream: torch.cuda.Stream) -> None:
        self._argument = mapped(torch.clone, example)
        self._given: list[Tensor | None] = [None for _ in leaves(example)]
        self._graph = torch.cuda.CUDAGraph()
        here = torch.cuda.current_stream()
        stream.wait_stream(here)
        with torch.cuda.stream(stream):  # libraries must not meet it for the first time while it records
            function(self._argument)
        here.wait_stream(stream)
        # Other threads may go on with what cannot be recorded: only this one must not do it.
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._result = function(self._argument)

    def replay(self, argument: Any) -> Any:
        """What the function makes of an argument."""
        given = list(leaves(argument))
        both = zip(leaves(self._argument), given, self._given, strict=True)
        _copy([(own, new) for own, new, before in both if new is not before])
        self._given = [*given]
        self._graph.replay()
        copies = mapped(torch.empty_like, self._result)  # the next replay, of any recording, writes over it
        _copy(list(zip(leaves(copies), leaves(self._result), strict=True)))
        return copies


def _copy(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Write the second of each pair into the first: one launch for all of a kind."""
    for kind in {into.dtype for into, _ in pairs}:
        into, parts = zip(*(pair for pair in pairs if pair[0].dtype == kind), strict=True)
        torch._foreach_copy_(into, parts)


class Recorder:
    """Calls functions, and records each when it is called the second time with arguments of one shape.

    Off a GPU there is nothing to record: there they are called plainly.
    The `most` recordings that were used last are kept. They share their memory: one replays at a time.
    Tensors that were handed in must not be changed in place.
    """

    def __init__(self, most: int = 64) -> None:
        self.most = most
        self._recordings: OrderedDict[Hashable, Recording | None] = OrderedDict()
        self._places: dict[torch.device, tuple[Any, torch.cuda.Stream]] = {}
        self._broken = False
        self._lock = Lock()

    def __call__(self, function: Callable[[A], R], argument: A, *key: object) -> R:
        """The function's result. `key` is all else that it depends on, kept alive with the recording."""
        if _device_of(argument).type != "cuda":
            return function(argument)
        shapes = tuple((part.shape, part.dtype, part.device) for part in leaves(argument))
        with self._lock:
            recording = self._recording((key, shapes), function, argument)
            if recording is not None:
                with torch.cuda.device(_device_of(argument)):
                    result: R = recording.replay(argument)
                    return result
        return function(argument)

    def _recording(self, key: Hashable, function: Callable[[A], R], argument: A) -> Recording | None:
        """The recording of a key; None the first time, and where nothing can be recorded."""
        if self._broken:
            return None
        known, recording = key in self._recordings, self._recordings.pop(key, None)
        if known and recording is None:
            recording = self._recorded(function, argument)
        self._recordings[key] = recording  # last in line
        while len(self._recordings) > self.most:
            torch.cuda.synchronize()  # no recording is let go while it is being replayed
            self._recordings.popitem(last=False)
        return recording

    def _recorded(self, function: Callable[[A], R], argument: A) -> Recording | None:
        """A new recording. Once that has failed, all functions are called plainly."""
        device = _device_of(argument)
        current = torch.cuda.current_stream(device)
        try:
            with torch.cuda.device(device):
                # Torch deals out 32 streams of each priority in turn: one of the usual priority would, sooner
                # or later, be some thread's own too, whose copies are then caught by the recording.
                place = torch.cuda.graph_pool_handle(), torch.cuda.Stream(priority=-1)
                return Recording(function, argument, *self._places.setdefault(device, place))
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # a recording that fails leaves its own behind
            self._broken = True
            logger.warning("no CUDA graph can be recorded, so steps take longer: %s", error, exc_info=True)
            return None


def _device_of(argument: object) -> torch.device:
    return next(leaves(argument)).device


recorder = Recorder()
"""The one whose recordings share their memory, whoever calls functions with it."""
