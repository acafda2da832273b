"""Who sent a request, and how much one client may ask for. Standard library only."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]  # ASGI's

MOST_CLIENTS = 10_000  # remembered; one more forgets the client not seen for longest


@dataclass(frozen=True)
class Limits:
    """What one client may do. Assets of the page are not counted.

    requests_per_second: lasting rate over the API's routes; ten seconds' worth may come at once. 0: no limit.
    pending: jobs that wait or run at a time; half of the queue, so that one client never fills it.
    logins_per_minute: tries at the password.
    upload_bytes: may come at once, then a 600th of it a second, as uploads are deleted after ten minutes.
    request_bytes: the largest upload request.
    message_bytes: the largest other request; a text of 12 million characters fits.
    """

    requests_per_second: float = 100.0
    pending: int = 32
    logins_per_minute: int = 10
    upload_bytes: int = 1_000_000_000
    request_bytes: int = 201_000_000
    message_bytes: int = 32_000_000


class Buckets:
    """Token buckets, one a client: `burst` may be taken at once, `rate` flows back a second."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst = rate, burst
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client: (tokens, when)

    def take(self, client: str, amount: float = 1.0) -> float:
        """Takes `amount` and returns 0; or takes nothing and returns the seconds until it can be had."""
        now = self._clock()
        tokens, since = self._levels.pop(client, (self.burst, now))
        tokens = min(self.burst, tokens + (now - since) * self.rate)
        wait = max(0.0, (min(amount, self.burst) - tokens) / self.rate)
        self._levels[client] = (tokens if wait else tokens - amount, now)
        if len(self._levels) > MOST_CLIENTS:
            self._levels.popitem(last=False)
        return wait


def client_of(scope: Scope, proxies: int) -> str:
    """The network address a request came from.

    Anybody can write an X-Forwarded-For header; each proxy appends the address it saw. So with `proxies` trusted
    ones in front, the entry so far from the right is true and everything left of it is not looked at. Without the
    entry the peer counts. An IPv6 client is its /64 network, of which one household has all addresses.
    """
    peer = (scope.get("client") or ("unknown",))[0]
    forwarded = [
        entry.strip()
        for name, value in scope["headers"]
        if name == b"x-forwarded-for"
        for entry in value.decode("latin-1").split(",")
    ]
    return _network(forwarded[-proxies] if 0 < proxies <= len(forwarded) else peer) or _network(peer) or "unknown"


def _network(text: str) -> str | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
