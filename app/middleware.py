"""What is done to every request, whatever its endpoint: a name, a log line, headers, and some refusals."""

from __future__ import annotations

import ipaddress
import logging
import re
import time
from functools import lru_cache
from secrets import token_hex

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import problem_response, unexpected
from app.logs import request_id

log = logging.getLogger("app.access")

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; connect-src 'self' blob:; "
    "worker-src 'self' blob:; style-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
SECURITY = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
GIVEN_ID = re.compile(r"[\w.:-]{1,100}", re.ASCII)
QUIET = ("/healthz", "/readyz", "/metrics")
"""Asked for again and again by machines: not worth a line."""


class Named:
    """Gives each request an id, a log line and the security headers; and to our mistakes an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = first_of(scope, b"x-request-id")
        name = given if GIVEN_ID.fullmatch(given) else token_hex(16)
        request_id.set(name)
        start, status = time.perf_counter(), 0

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode()), *SECURITY]
            await send(message)

        try:
            await self.app(scope, receive, named)
        except ClientDisconnect:
            log.info("the client went away before it had sent everything")
        except Exception:
            log.exception("a mistake of ours")
            if status:
                raise  # too late for another answer: the connection breaks, which tells the client
            await unexpected(scope["path"])(scope, receive, named)
        finally:
            if scope["path"] not in QUIET:
                _tell(scope, status, time.perf_counter() - start)


def first_of(scope: Scope, header: bytes) -> str:
    """The header of this name in lower case; "" without one."""
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == header), "")


def _tell(scope: Scope, status: int, seconds: float) -> None:
    # Clients look again and again: what went well and changed nothing is for who searches.
    level = logging.DEBUG if scope["method"] in ("GET", "HEAD") and status < 400 else logging.INFO
    if not log.isEnabledFor(level):
        return
    client = (scope.get("client") or ("",))[0]
    facts = {"status": status, "milliseconds": round(1000 * seconds, 1), "client": client}
    log.log(level, "%s %s", scope["method"], scope["path"], extra=facts)


class Sheltered:
    """Refuses requests that others could make a browser or the network send, where no key protects us."""

    def __init__(self, app: ASGIApp, open_to_all: bool) -> None:
        self.app, self.open_to_all = app, open_to_all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http" and (why := self._refusal(scope)):
            return await problem_response(scope["path"], 403, "forbidden", why)(scope, receive, send)
        return await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> str | None:
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and is_cross_site(scope):
            return "Another web site made the browser send this. Ask from the service's own page."
        host = first_of(scope, b"host")
        asked = host.rpartition(":")[0] or host
        listening = (scope.get("server") or ("",))[0]
        # A name of someone else that leads here is how a web page gets at local services (DNS rebinding).
        if self.open_to_all or (is_local(listening) and is_local(asked)):
            return None
        return (
            "This service has no API keys and answers to this machine alone, as localhost. "
            "Set DEEPSDF_API_KEYS, or DEEPSDF_ALLOW_WITHOUT_KEYS=true."
        )


def is_cross_site(scope: Scope) -> bool:
    """Whether a browser says that a page of another site sends this."""
    return first_of(scope, b"sec-fetch-site") in ("cross-site", "same-site")


@lru_cache(maxsize=256)
def is_local(address: str) -> bool:
    """Whether an address or a name is this machine's alone; a path is, being that of a Unix socket."""
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return address in ("", "localhost") or address.startswith("/")
