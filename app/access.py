"""Who asks: the owner of a request, by its API key.

These are `async` though they wait for nothing: others would each be sent to a thread and back.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.errors import ProblemRaised
from app.keys import owner_of
from app.service import Service

bearer = HTTPBearer(auto_error=False, description="Only where the service has keys.")


async def service_of(request: Request) -> Service:
    """What the endpoints of this process share."""
    service: Service = request.app.state.service
    return service


async def owner(
    service: Annotated[Service, Depends(service_of)],
    given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> str:
    """Name of the key that came along; "" where the service has no keys. Raises a 401 problem."""
    digests = service.settings.api_keys
    if not digests:
        return ""
    if given is None:
        raise unauthorized("This service wants an API key: Authorization: Bearer <key>.")
    if (found := owner_of(given.credentials, digests)) is None:
        raise unauthorized("The API key is not known here.")
    return found


def unauthorized(detail: str) -> ProblemRaised:
    """The 401 of a request."""
    return ProblemRaised(401, "unauthorized", detail, {"WWW-Authenticate": "Bearer"})


TheService = Annotated[Service, Depends(service_of)]
Owner = Annotated[str, Depends(owner)]
