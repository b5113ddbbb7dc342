"""A Python client of the service: `Client`, and `AsyncClient` for asyncio.

    with Client("http://127.0.0.1:8000") as client:
        done = client.complete("scan.ply", viewpoint=[2.1, 1.0, 0.4]).wait()
        done.mesh().export("whole.ply")

Knows the contract (`app.schemas`) and HTTP, nothing of the service's insides.
"""

from __future__ import annotations

from app.client.answers import ProblemError
from app.client.asynchronous import AsyncClient, AsyncCompletion
from app.client.scans import Files, Scan
from app.client.sync import Client, RemoteCompletion

__all__ = [
    "AsyncClient",
    "AsyncCompletion",
    "Client",
    "Files",
    "ProblemError",
    "RemoteCompletion",
    "Scan",
]
