"""Who asks: the owner of a request, by its API key.

These are `async` though they wait for nothing: others would each be sent to a thread and back.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from app.errors import ProblemRaised
from app.keys import owner_of
from app.service import Service


async def service_of(request: Request) -> Service:
    """What the endpoints of this process share."""
    service: Service = request.app.state.service
    return service


async def owner(request: Request) -> str:
    """Name of the key that came along; "" where the service has no keys. Raises a 401 problem."""
    service: Service = request.app.state.service
    digests = service.settings.api_keys
    if not digests:
        return ""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise unauthorized("This service wants an API key: Authorization: Bearer <key>.")
    if (found := owner_of(key.strip(), digests)) is None:
        raise unauthorized("The API key is not known here.")
    return found


def unauthorized(detail: str) -> ProblemRaised:
    """The 401 of a request."""
    return ProblemRaised(401, "unauthorized", detail, {"WWW-Authenticate": "Bearer"})


async def asking(request: Request) -> tuple[Service, str]:
    """Both, for endpoints that are asked so often that each dependency of theirs counts (decision 25)."""
    return request.app.state.service, await owner(request)


TheService = Annotated[Service, Depends(service_of)]
Owner = Annotated[str, Depends(owner)]
