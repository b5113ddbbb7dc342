"""Sends what has happened to the address that a client named: signed, and to public addresses alone.

The name is resolved here, every address behind it is checked, and the connection goes to the checked address:
a name that leads elsewhere a moment later (DNS rebinding) gains nothing. Redirects are not followed.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import httpcore2
from standardwebhooks import Webhook

from app.schemas import Completion, WebhookAttempt

PATIENCE_S = 15.0
"""Seconds that one attempt may take in all, however slowly the other side talks."""

Resolve = Callable[[str, int], Iterable[str]]


class AddressRefused(Exception):
    """The name leads to this machine, a private network, or nowhere."""


def addresses_of(host: str, port: int) -> list[str]:
    """Every address that a name has."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_public(address: str) -> bool:
    """Whether an address is of the internet, and not of a network, a machine or a purpose of its own."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    inside = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None) or ip
    teredo = getattr(ip, "teredo", None)
    in_nat64 = ip.version == 6 and ip in ipaddress.ip_network("64:ff9b::/96")
    return inside.is_global and ip.is_global and not inside.is_multicast and teredo is None and not in_nat64


class Sender:
    """Makes one attempt at a time."""

    def __init__(self, secret: str, private_addresses: bool = False, resolve: Resolve = addresses_of) -> None:
        self.signer = Webhook(secret)
        self.private_addresses, self.resolve = private_addresses, resolve

    def send(self, url: str, completion: Completion) -> WebhookAttempt:
        """Tell `url` how the completion ended. What went wrong stands in the attempt."""
        at = datetime.now(UTC)
        try:
            status = self._post(url, *self._message(completion, at))
        except AddressRefused as refused:
            return WebhookAttempt(at=at, error=str(refused))
        except (OSError, httpcore2.TimeoutException, httpcore2.NetworkError) as error:
            return WebhookAttempt(at=at, error=f"{type(error).__name__}: {error}"[:200])
        except Exception as error:  # whatever strange answers make of the HTTP client
            return WebhookAttempt(at=at, error=type(error).__name__)
        return WebhookAttempt(at=at, status=status)

    def _message(self, completion: Completion, at: datetime) -> tuple[bytes, dict[str, str]]:
        event = {
            "type": f"completion.{completion.status}",
            "timestamp": (completion.ended_at or at).isoformat(),
            "data": completion.model_dump(mode="json", exclude={"webhook"}),
        }
        body, name = json.dumps(event), f"completion_{completion.id}"
        return body.encode(), {
            "Content-Type": "application/json",
            "User-Agent": "deepsdf-service",
            "webhook-id": name,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": self.signer.sign(name, at, body),
        }

    def _post(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        named = [("Host", urlsplit(url).netloc), *headers.items()]
        waiting = dict.fromkeys(("connect", "read", "write", "pool"), PATIENCE_S)
        # The answer's body is not read.
        with (
            httpcore2.ConnectionPool(network_backend=_Checked(self)) as pool,
            pool.stream(
                "POST", url, headers=named, content=body, extensions={"timeout": waiting}
            ) as response,
        ):
            return int(response.status)

    def checked(self, host: str, port: int) -> str:
        """An address of the name, if all of them may be talked to. Raises AddressRefused."""
        found = list(self.resolve(host, port))
        if not found:
            raise AddressRefused(f"{host} has no address")
        if not self.private_addresses and not all(map(is_public, found)):
            raise AddressRefused(f"{host} does not lead to the public internet alone")
        return found[0]


class _Checked(httpcore2.NetworkBackend):
    """Connects to checked addresses, and lets a whole conversation last no longer than one attempt may."""

    def __init__(self, sender: Sender) -> None:
        self.sender, self.plain = sender, httpcore2.SyncBackend()
        self.deadline = time.monotonic() + PATIENCE_S

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore2.NetworkStream:
        address = self.sender.checked(host, port)
        stream = self.plain.connect_tcp(address, port, timeout, local_address, socket_options)
        return _Limited(stream, self.deadline)


class _Limited(httpcore2.NetworkStream):
    """A connection that ends at a deadline."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: float) -> None:
        self.stream, self.deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if (left := self.deadline - time.monotonic()) <= 0:
            raise httpcore2.ReadTimeout("the answer took too long")
        return self.stream.read(max_bytes, left)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.stream.write(buffer, max(0.01, self.deadline - time.monotonic()))

    def close(self) -> None:
        self.stream.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _Limited(self.stream.start_tls(ssl_context, server_hostname, timeout), self.deadline)

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)
