"""API keys: only their SHA-256 is ever kept. `python -m app.keys NAME` makes a new one."""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def digest(key: str) -> str:
    """SHA-256 of a key, in hexadecimal. A key has 256 random bits, so that no salt is needed."""
    return hashlib.sha256(key.encode()).hexdigest()


def owner_of(key: str, digests: Mapping[str, str]) -> str | None:
    """Whose key this is. Takes equally long for every wrong key and looks at every digest."""
    presented, found = digest(key), None
    for owner, known in digests.items():
        if hmac.compare_digest(presented, known):
            found = owner
    return found


def checked_digests(digests: Mapping[str, str]) -> dict[str, str]:
    """The same, if each is a name and a SHA-256. Raises ValueError."""
    for name, known in digests.items():
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a key: letters, digits, '.', '_' and '-', at most 64")
        if not re.fullmatch("[0-9a-f]{64}", known):
            raise ValueError(f"the key {name!r} must be given as its SHA-256; `python -m app.keys` prints it")
    return dict(digests)


def main() -> None:
    """Print a new key, which is kept nowhere, and its digest."""
    parser = argparse.ArgumentParser(prog="python -m app.keys", description=__doc__)
    parser.add_argument("name", help="whose key it is: the owner of what is submitted with it")
    name = parser.parse_args().name
    if not NAME.fullmatch(name):
        parser.error("a name has letters, digits, '.', '_' and '-', at most 64")
    key = f"dsdf_{secrets.token_urlsafe(32)}"
    print(f"key, for the client, shown only now:  {key}")
    print(f"setting, for the service:             DEEPSDF_API_KEYS='{json.dumps({name: digest(key)})}'")


if __name__ == "__main__":
    main()
