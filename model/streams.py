"""Where a thread works, and a GPU's work of several threads side by side: in one stream some would queue."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

CPU = torch.device("cpu")


class _Own(threading.local):
    """Of one thread: where it works, and its streams: what a stream has freed is kept for it alone."""

    def __init__(self) -> None:
        self.device = CPU
        self.streams: dict[torch.device, torch.cuda.Stream] = {}


_own = _Own()


def device_here() -> torch.device:
    """Where this thread works: what it computes without a device of its own choice is computed there."""
    return _own.device


def brought(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array on the device, which is not waited for: what it still has to do goes on meanwhile."""
    there = torch.from_numpy(array)
    return there.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else there.to(device)


def here(numbers: ArrayLike | Tensor) -> Tensor:
    """The same numbers where this thread works, in double precision; a tensor already is there."""
    if isinstance(numbers, Tensor):
        return numbers
    return brought(np.array(numbers, dtype=float), _own.device)


def fetched(*parts: Tensor) -> list[NDArray[Any]]:
    """Tensors of one device as arrays, which are waited for together."""
    arrays = [part.to(CPU, non_blocking=True) for part in parts]
    if parts[0].device.type == "cuda":
        torch.cuda.current_stream(parts[0].device).synchronize()
    return [array.numpy() for array in arrays]


@contextmanager
def working_on(device: torch.device) -> Iterator[None]:
    """This thread works on a device: on a GPU after what was asked of it before; at the end all is done."""
    before, _own.device = _own.device, device
    try:
        with _stream(device):
            yield
    finally:
        _own.device = before


@contextmanager
def _stream(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    if device not in _own.streams:
        _own.streams[device] = torch.cuda.Stream(device)
    stream = _own.streams[device]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        try:
            yield
        finally:
            stream.synchronize()
