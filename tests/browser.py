"""Debian's chromium without a window, driven over its DevTools protocol. Pages are found and used as a person would.

Nothing runs in the page: elements are found by what a screen reader says of them, and clicked with the mouse.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

PROGRAM = "chromium"
WAIT_SECONDS = 30.0
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # which root cannot use
    "--remote-debugging-pipe",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--hide-scrollbars",
    "--no-proxy-server",
)


class BrowserError(Exception):
    """The browser cannot do what it was told just now, as while it goes from one page to the next."""


class Browser:
    """One browser with one tab. JavaScript is off unless it is asked for.

    After a click the next page takes its time, so what is expected of it is waited for.
    """

    def __init__(self, profile: Path, *, javascript: bool = False, width: int = 1000, dark: bool = False) -> None:
        """`profile`: a folder for what the browser keeps."""
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # The pipe's ends must be its descriptors 3 and 4.
        command = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", command, str(shutil.which(PROGRAM)), *OPTIONS, f"--user-data-dir={profile}"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self._last_id = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Accessibility", "DOM", "Runtime"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setScriptExecutionDisabled", value=not javascript)
        self.look(width=width, dark=dark)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the browser."""
        for pipe in (self._write, self._read):
            os.close(pipe)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    # The protocol: https://chromedevtools.github.io/devtools-protocol/

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command, and return its result. Events that come meanwhile are kept.

        :raises BrowserError: the browser cannot do that
        """
        self._last_id += 1
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == message["id"]:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            received = os.read(self._read, 65536)
            assert received, "the browser has ended"
            self._buffer += received
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    # What a person does.

    def look(self, *, width: int, height: int = 800, dark: bool = False) -> None:
        """Be a window of that size, or a phone if it is narrow, of a person who likes it light or dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        """Type a URL into the address bar."""
        error = self.call("Page.navigate", url=url).get("errorText")
        assert not error, error

    def url(self) -> str:
        """What the address bar shows."""
        history = self.call("Page.getNavigationHistory")
        return str(history["entries"][history["currentIndex"]]["url"])

    def text(self) -> str:
        """All that a screen reader says, as one line."""
        names = [node.get("name", {}).get("value", "") for node in self._nodes() if _role(node) == "StaticText"]
        return " ".join(" ".join(names).split())

    def names(self, role: str) -> list[str]:
        """The names of all elements of a role, such as button, link or heading."""
        return [str(node["name"]["value"]) for node in self._nodes() if _role(node) == role]

    def click(self, role: str, name: str, number: int = 0) -> None:
        """Click the element of that role and name with the mouse; of several, the one of that number."""
        self.wait_for(lambda: bool(self._found(role, name, number)))
        x, y = self._middle(role, name, number)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, role: str, name: str, text: str) -> None:
        """Type a text into a field, and press Enter."""
        self.wait_for(lambda: bool(self._found(role, name, 0)))
        node = self._found(role, name, 0)[0]
        self.call("DOM.focus", backendNodeId=node["backendDOMNodeId"])
        self.call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13
            )

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until that is so."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            with suppress(BrowserError):
                if condition():
                    return
            time.sleep(0.05)
        raise AssertionError(f"waited in vain at {self.url()}: {self.text()}")

    def wait_for_text(self, *texts: str) -> None:
        """Wait until the page says all of that."""
        self.wait_for(lambda: all(text in self.text() for text in texts))

    def screenshot(self, path: Path) -> None:
        """Take a picture of the whole page."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        picture = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))

    def run(self, script: str) -> Any:
        """Run JavaScript in the page, in spite of its Content-Security-Policy, and return what it resolves to."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def _nodes(self) -> list[dict[str, Any]]:
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [dict(node) for node in nodes if not node.get("ignored")]

    def _found(self, role: str, name: str, number: int) -> list[dict[str, Any]]:
        """The elements of that role and name, from that number on."""
        return [node for node in self._nodes() if _role(node) == role and node["name"]["value"] == name][number:]

    def _middle(self, role: str, name: str, number: int) -> tuple[float, float]:
        node = self._found(role, name, number)[0]
        self.call("DOM.scrollIntoViewIfNeeded", backendNodeId=node["backendDOMNodeId"])
        quad = self.call("DOM.getContentQuads", backendNodeId=node["backendDOMNodeId"])["quads"][0]
        return sum(quad[0::2]) / 4, sum(quad[1::2]) / 4


def _role(node: dict[str, Any]) -> str:
    return str(node.get("role", {}).get("value", ""))


def version() -> str:
    """The browser's version."""
    output = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"[\d.]+", output)
    return found[0] if found else output
