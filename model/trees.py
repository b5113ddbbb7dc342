"""Dataclasses made of tensors, and of other such dataclasses: all their parts at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


def leaves(tree: Any) -> Iterator[Tensor]:
    """All tensors, in the order of the fields."""
    if is_dataclass(tree):
        for part in fields(tree):
            yield from leaves(getattr(tree, part.name))
    else:
        yield tree


def mapped(function: Callable[..., Tensor], tree: T, *others: T) -> T:
    """The same dataclass, of what the function makes of each tensor and of those in its place in others."""
    made: Any = tree
    if not is_dataclass(tree):
        made = function(tree, *others)
    else:
        parts = {
            part.name: mapped(function, *(getattr(one, part.name) for one in (tree, *others)))
            for part in fields(tree)
        }
        made = replace(made, **parts)
    same: T = made
    return same
