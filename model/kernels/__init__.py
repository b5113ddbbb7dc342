"""Kernels for a GPU, in Triton, and whether they can be had: only where they can, callers import them."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch

logger = logging.getLogger(__name__)

LEAST_CAPABILITY = (8, 0)
"""Of NVIDIA's GPUs those from Ampere on: older ones have not the shared memory that the kernels take."""


_given_up: list[BaseException] = []


def usable(device: torch.device) -> bool:
    """Whether kernels run on a device: Triton is there, with a C compiler, and none has failed."""
    return device.type == "cuda" and not _given_up and _compiles(device)


def launch(kernel: Any, blocks: tuple[int, ...], *arguments: Any, **sizes: Any) -> None:
    """Run a kernel in so many blocks on the device of its first argument, whichever is the current one."""
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[blocks](*arguments, **sizes)


def power_of_two(size: int, least: int) -> int:
    """The least one that is below neither: so many numbers a program can hold."""
    return max(least, 1 << (size - 1).bit_length())


def give_up(error: BaseException) -> None:
    """Use no kernel any more: one could not be compiled, or could not run."""
    logger.warning("no kernels are used, so completions take longer: %s", error)
    _given_up.append(error)


@cache
def _compiles(device: torch.device) -> bool:
    """Whether the smallest kernel does."""
    if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return False
    try:
        from model.kernels.step import place

        one = torch.zeros(9, device=device)
        launch(place, (1, 1), one, one, one, one, one, torch.empty_like(one), 1, ROWS=16)
        torch.cuda.synchronize(device)
    except Exception as error:
        logger.warning("no kernel can be compiled, so completions take longer: %s", error)
        return False
    return True
