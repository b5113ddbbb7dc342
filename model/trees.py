"""Dataclasses made of tensors, and of other such dataclasses: all their parts at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


@cache
def _names(kind: Any) -> tuple[str, ...]:
    """Of the fields of a dataclass, by its type; of a tensor none. Every step asks."""
    return tuple(getattr(kind, "__dataclass_fields__", ()))


def leaves(tree: Any) -> Iterator[Tensor]:
    """All tensors, in the order of the fields."""
    for name in (names := _names(tree.__class__)):
        yield from leaves(getattr(tree, name))
    if not names:
        yield tree


def mapped(function: Callable[..., Tensor], tree: T, *others: T) -> T:
    """The same dataclass, of what the function makes of each tensor and of those in its place in others."""
    made: Any = tree
    if names := _names(made.__class__):
        parts = (mapped(function, *(getattr(one, name) for one in (tree, *others))) for name in names)
        made = made.__class__(*parts)
    else:
        made = function(tree, *others)
    same: T = made
    return same
