"""A headless Chromium or Chrome, driven by its DevTools protocol: opens a page, types, waits, takes a picture."""

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager

from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT_SECONDS = 60
MAX_MESSAGE_BYTES = 50_000_000  # a picture comes in one


class NavigatedError(Exception):
    """The page was changed for another amid a call."""


class Page:
    """One page of a browser."""

    def __init__(self, socket):
        self._socket = socket
        self._number = 0

    def call(self, method, **parameters):
        """Call a method of the protocol; return its result. Events are passed over: conditions are asked for."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=WAIT_SECONDS))
            if answer.get("id") == self._number:
                if "navigated" in answer.get("error", {}).get("message", ""):
                    raise NavigatedError
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def open(self, address):
        assert "errorText" not in self.call("Page.navigate", url=address), address

    def ask(self, expression):
        """Return the value of an expression in the page; nothing while the page is being changed for another."""
        try:
            answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        except NavigatedError:
            return None
        return answer["result"].get("value")

    def wait_for(self, expression, what):
        deadline = time.monotonic() + WAIT_SECONDS
        while not self.ask(f"Boolean({expression})"):
            shown = self.ask("document.body && document.body.innerText")
            assert time.monotonic() < deadline, f"waited {WAIT_SECONDS} s for {what}; the page shows: {shown}"
            time.sleep(0.1)

    def type(self, selector, text):
        """Type into a field as a person does: pages that keep their own state see it."""
        self.wait_for(f"document.querySelector({json.dumps(selector)})", selector)
        self.ask(f"document.querySelector({json.dumps(selector)}).focus()")
        self.call("Input.insertText", text=text)

    def press_enter(self):
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        self.call("Input.dispatchKeyEvent", type="keyDown", **key)
        self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    def picture(self):
        """Return what is to be seen, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


def find_browser():
    """Return the program, or nothing where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


@contextmanager
def open_page(program, folder, size=(1280, 720)):
    """Yield a page of a browser of its own, and end the browser afterwards."""
    process = subprocess.Popen(
        [
            program,
            "--headless=new",
            *(["--no-sandbox"] if os.getuid() == 0 else []),
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--hide-scrollbars",
            "--remote-debugging-port=0",
            f"--user-data-dir={folder}",
            f"--window-size={size[0]},{size[1]}",
            "about:blank",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with connect(_find_page(process, folder), max_size=MAX_MESSAGE_BYTES) as socket:
            page = Page(socket)
            page.call(
                "Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False
            )
            yield page
            page.call("Browser.close")
        process.wait(WAIT_SECONDS)
    finally:
        process.kill()
        process.wait()


def _find_page(process, folder):
    """Return the address of the page that the browser has opened, once it has."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            port = (folder / "DevToolsActivePort").read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
                pages = [one for one in json.loads(answer.read()) if one["type"] == "page"]
            return pages[0]["webSocketDebuggerUrl"]
        except (OSError, IndexError):
            time.sleep(0.1)
    raise AssertionError(f"the browser has not started; its exit code: {process.poll()}")
