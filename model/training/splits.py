"""Which shapes are trained on, chosen by and measured with: whole designs go to one side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping


def split_groups(
    groups: Iterable[str], shares: Mapping[str, float], rest: str = "train", seed: int = 0
) -> dict[str, str]:
    """Split of each group: `shares` of the groups to the named splits, at least one each, others to `rest`.

    A group's luck is the hash of its name: it does not hang on the order of the files, and hardly on which
    others there are. Too few groups to leave one for `rest` all go there.
    """
    left = sorted(set(groups), key=lambda group: hashlib.sha256(f"{seed}/{group}".encode()).hexdigest())
    total, chosen = len(left), dict.fromkeys(left, rest)
    if total <= len(shares):
        return chosen
    for name, share in shares.items():
        count = min(max(1, round(share * total)), len(left) - 1)
        chosen.update(dict.fromkeys(left[:count], name))
        left = left[count:]
    return chosen
