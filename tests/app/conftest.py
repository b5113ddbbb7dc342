"""The API in this process, on a real Valkey, with no worker: what is submitted stays queued."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings


@pytest.fixture
def api(settings: Settings) -> Iterator[TestClient]:
    """An HTTP client."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client
