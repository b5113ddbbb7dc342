"""How a step is computed: in which precision, and compiled or not."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable

import torch
from torch import Tensor

from model.decoder import Decoder

logger = logging.getLogger(__name__)

Evaluate = Callable[..., Tensor]


def has_bfloat16(device: str) -> bool:
    """Whether a device multiplies bfloat16 in hardware; a CPU that does not is many times slower with it."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if platform.machine() in ("arm64", "aarch64"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


CPU_PART = 1024
"""Samples whose features, 512 a layer, a CPU's caches hold: a step of more is faster in parts."""


def parts_of(samples: int, device: str) -> int:
    """In how many parts a step of so many samples is fastest."""
    return 1 if device == "cuda" else max(1, samples // CPU_PART)


def autocast(precision: str, device: str) -> torch.autocast:
    """The context of a forward pass in `bfloat16`, `tf32` or `float32`."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    fast = precision == "bfloat16" and has_bfloat16(device)
    return torch.autocast(device, dtype=torch.bfloat16, enabled=fast)


def compiled(decoder: Decoder) -> Evaluate:
    """The decoder, compiled at its first call; where that fails, a warning and the decoder as it is."""
    made = torch.compile(decoder)
    works = True

    def evaluate(*arguments: Tensor | float | None) -> Tensor:
        nonlocal works
        if works:
            try:
                return made(*arguments)  # type: ignore[no-any-return]
            except Exception as error:  # the compiler's own errors have no common base
                works = False
                why = str(error).strip().splitlines()[:1]
                logger.warning("torch.compile failed, training goes on without it: %s", *why)
        return decoder(*arguments)  # type: ignore[no-any-return]

    return evaluate
