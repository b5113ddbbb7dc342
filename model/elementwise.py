"""Functions of single numbers: torch's way on a CPU, one compiled kernel on a GPU.

As many operations go as many times over a GPU's memory, which is all that they take time for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.cuda.jiterator import _create_jit_fn  # so named, but documented

logger = logging.getLogger(__name__)


class Elementwise:
    """A function of each number of a tensor, said twice: in torch, and as the body of a CUDA one of x."""

    def __init__(self, plain: Callable[[Tensor], Tensor], name: str, body: str) -> None:
        self.plain, self.name, self.body = plain, name, body
        self._broken = False

    def __call__(self, x: Tensor) -> Tensor:
        """The function of (…) numbers."""
        if x.device.type != "cuda" or self._broken:
            return self.plain(x)
        try:
            found: Tensor = self._compiled(x)
        except RuntimeError as error:
            self._broken = True
            logger.warning("%s cannot be compiled, so it takes longer: %s", self.name, error)
            return self.plain(x)
        return found

    @cached_property
    def _compiled(self) -> Any:
        return _create_jit_fn(f"template <typename T> T {self.name}(T x) {{ {self.body} }}")
