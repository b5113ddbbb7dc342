"""A GPU's work of several threads side by side: in one stream the steps of some would queue behind others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class _Own(threading.local):
    """The streams of one thread, by device: what a stream has freed is kept for it alone."""

    def __init__(self) -> None:
        self.streams: dict[torch.device, torch.cuda.Stream] = {}


_own = _Own()


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """What this thread does on a GPU from here on, after what was asked for before; all done at the end."""
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
