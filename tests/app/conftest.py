"""The API in this process, on a real Valkey, with no worker: what is submitted stays queued."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from asking import client_of
from fastapi.testclient import TestClient

from app.settings import Settings


@pytest.fixture
def api(settings: Settings) -> Iterator[TestClient]:
    """An HTTP client."""
    with client_of(settings) as client:
        yield client


@pytest.fixture
def api_for(settings: Settings) -> Iterator[Callable[..., TestClient]]:
    """HTTP clients of services with other settings."""
    with ExitStack() as stack:
        yield lambda **other: stack.enter_context(client_of(settings.model_copy(update=other)))
