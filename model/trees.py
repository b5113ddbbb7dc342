"""Dataclasses made of tensors, and of other such dataclasses: all their parts at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


@cache
def _names(kind: type) -> tuple[str, ...]:
    """Of the fields of a dataclass; of a tensor none. Every step asks."""
    return tuple(part.name for part in fields(kind)) if is_dataclass(kind) else ()


def leaves(tree: Any) -> Iterator[Tensor]:
    """All tensors, in the order of the fields."""
    for name in (names := _names(type(tree))):
        yield from leaves(getattr(tree, name))
    if not names:
        yield tree


def mapped(function: Callable[..., Tensor], tree: T, *others: T) -> T:
    """The same dataclass, of what the function makes of each tensor and of those in its place in others."""
    made: Any = tree
    if names := _names(type(tree)):
        made = type(tree)(*(mapped(function, *(getattr(t, name) for t in (tree, *others))) for name in names))
    else:
        made = function(tree, *others)
    same: T = made
    return same
