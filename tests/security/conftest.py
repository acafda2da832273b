"""Visitors of the shared app, and a second app with a password and tight limits behind a proxy."""

import sys
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.calls import Caller

ATTEMPTS = 20  # requests a second that the strict app lets through


@pytest.fixture
def visitor(app_server) -> Caller:
    """A visitor with a session of their own."""
    return Caller(app_server.url, "a-session-of-a-test")


@pytest.fixture(scope="package")  # no longer than needed: it is left with a search that nobody waits for
def strict_server(start_server: Callable[..., object]) -> Iterator[object]:
    options = ["--demos", "longrope", "--auth", "guest:secret", "--rate-limit", str(ATTEMPTS), "--proxies", "1"]
    with start_server([sys.executable, "app.py", *options]) as server:
        yield server


@pytest.fixture
def sign_in(strict_server) -> Callable[[str], Caller]:
    """`sign_in(address)`: a visitor who comes from that address and has given the password."""

    def enter(address: str) -> Caller:
        caller = Caller(strict_server.url, f"session-{address}", {"x-forwarded-for": address})
        answer = caller.http.post("/login", data={"username": "guest", "password": "secret"})
        assert answer.json() == {"success": True}
        # The cookie is for https and http alike; httpx would keep the secure one back on http.
        caller.http.headers["cookie"] = "; ".join(
            value.split(";")[0] for value in answer.headers.get_list("set-cookie")
        )
        return caller

    return enter


@pytest.fixture
def strange(strict_server) -> Iterator[httpx.Client]:
    """A client that has not signed in."""
    with httpx.Client(base_url=strict_server.url, headers={"x-forwarded-for": "192.0.2.99"}, trust_env=False) as client:
        yield client
