"""A headless Chromium over the Chrome DevTools Protocol, for the tests of the page; no driver package is needed."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-extensions "
    "--disable-background-networking --disable-component-update --hide-scrollbars --remote-debugging-port=0"
).split()


def installed() -> str | None:
    """Return the path of a browser, None without one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """One page of the browser, whose process has the id `pid`."""

    def __init__(self, url: str, pid: int) -> None:
        self.pid = pid
        self._open = ExitStack()
        self._socket = self._open.enter_context(connect(url, max_size=None, compression=None))
        self._ids = itertools.count(1)
        self.errors: list[str] = []  # of the console and of scripts
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol; return its result."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def js(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = 90) -> Any:
        """Wait until an expression is true; return its value."""
        end = time.monotonic() + seconds
        while not (value := self.js(expression)):
            assert time.monotonic() < end, f"{expression} is not true after {seconds} s; errors: {self.errors}"
            time.sleep(0.05)
        return value

    def open(self, address: str) -> None:
        """Load a page."""
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def key(self, kind: str, code: str) -> None:
        """Press (`keyDown`) or let go (`keyUp`) a letter such as KeyW."""
        self.call("Input.dispatchKeyEvent", type=kind, code=code, key=code[-1].lower())

    def press(self, code: str) -> None:
        """Press a letter and let it go."""
        self.key("keyDown", code)
        self.key("keyUp", code)

    def screenshot(self, path: Path, width: int, height: int, dark: bool = False, scale: float = 1) -> None:
        """Write what a window of this size shows, as PNG."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """Close the connection."""
        self._open.close()

    def _note(self, message: dict[str, Any]) -> None:
        """Keep what the console shows as an error."""
        params = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"]["exception"].get("description", "exception"))
        elif message["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif message["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(str(params["args"]))


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """Start the browser with an empty profile in a folder; it ends with the context."""
    path = installed()
    assert path is not None
    process = subprocess.Popen(
        [path, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        tab = Tab(_page_of(profile / "DevToolsActivePort"), process.pid)
        try:
            yield tab
        finally:
            with suppress(Exception):
                tab.call("Browser.close")
            tab.close()
    finally:
        process.terminate()
        process.wait(30)


def _page_of(port_file: Path) -> str:
    """Return the address of the first page, once the browser has written its port."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with suppress(OSError, IndexError, StopIteration):
            port = port_file.read_text().splitlines()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
                return next(page["webSocketDebuggerUrl"] for page in json.load(answer) if page["type"] == "page")
        time.sleep(0.1)
    raise AssertionError("the browser did not start")
