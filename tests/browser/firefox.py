"""Firefox over its own Marionette protocol: Playwright drives only its own builds, and Debian has no geckodriver."""

import itertools
import json
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.conftest import free_port

PREFERENCES = {
    "app.normandy.enabled": False,
    "app.update.enabled": False,
    "browser.aboutwelcome.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "toolkit.telemetry.enabled": False,
}


class Firefox:
    """A headless Firefox with a new profile in `folder`; a context manager."""

    def __init__(self, program: str, folder: Path) -> None:
        port = free_port()
        settings = PREFERENCES | {"marionette.port": port}
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in settings.items()]
        (folder / "user.js").write_text("\n".join(lines))
        command = [program, "--headless", "--marionette", "--no-remote", "--profile", str(folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._numbers = itertools.count(1)
        self._socket = self._connected(port)
        self._receive()  # its greeting
        self._call("WebDriver:NewSession")

    def __enter__(self) -> "Firefox":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(30)

    def open(self, url: str) -> None:
        self._call("WebDriver:Navigate", url=url)

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a function's body returns in the page."""
        return self._call("WebDriver:ExecuteScript", script=script, args=list(arguments), sandbox=None)["value"]

    def wait(self, script: str, *arguments: Any, seconds: float = 120.0) -> Any:
        """The same, again and again until it is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(script, *arguments)):
            assert time.monotonic() < deadline, f"after {seconds:.0f} s still not true in Firefox: {script} {arguments}"
            time.sleep(0.1)
        return value

    def _connected(self, port: int) -> socket.socket:
        deadline = time.monotonic() + 120
        while True:
            try:
                return socket.create_connection(("127.0.0.1", port), timeout=120)
            except ConnectionRefusedError:
                assert self._process.poll() is None and time.monotonic() < deadline, "Firefox did not start"
                time.sleep(0.1)

    def _call(self, command: str, **parameters: Any) -> dict[str, Any]:
        data = json.dumps([0, next(self._numbers), command, parameters])
        self._socket.sendall(f"{len(data.encode())}:{data}".encode())
        _, _, error, result = self._receive()
        assert error is None, error
        return result

    def _receive(self) -> Any:
        """A message: its length in bytes, a colon, JSON."""
        length = b""
        while not length.endswith(b":"):
            length += self._take(1)
        return json.loads(self._take(int(length[:-1])))

    def _take(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            assert part, "Firefox closed the connection"
            data += part
        return data
