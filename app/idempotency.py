"""Idempotency-Keys: the same key and request give the same completion, however often they are sent."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import cast

from redis import Redis

CLAIM_S, IDEMPOTENCY_S = 300, 24 * 3600
"""How long a key holds before its completion is enqueued, and after that: the queue makes it last."""


class OtherRequest(Exception):
    """The key came with another request than before."""


@dataclass(frozen=True)
class Claim:
    """A key that a request has, in Redis by this name."""

    name: str
    first: str | None
    """The completion that has the key already, if any."""


def take(connection: Redis, owner: str, key: str, completion_id: str, request: str) -> Claim:
    """Take an owner's key for a completion, unless it is taken. `request` is a digest of the whole request.

    Raises OtherRequest when it is taken by another request.
    """
    name = f"deepsdf:idempotency:{sha256(f'{owner} {key}'.encode()).hexdigest()}"
    if connection.set(name, f"{completion_id} {request}", nx=True, ex=CLAIM_S):
        return Claim(name, None)
    taken = cast(bytes | None, connection.get(name))
    if taken is None:  # it ended between the two
        return take(connection, owner, key, completion_id, request)
    first, _, before = taken.decode().partition(" ")
    if before != request:
        raise OtherRequest
    return Claim(name, first)


def release(connection: Redis, claim: Claim) -> None:
    """Give a key back whose request came to nothing."""
    connection.delete(claim.name)
