"""A headless Chromium, driven through chromedriver (https://www.w3.org/TR/webdriver/)."""

import contextlib
import json
import re
import shutil
import subprocess
import urllib.request

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

MISSING = None if CHROMIUM and DRIVER else "chromium and chromedriver aren't installed"
"""Why there can't be a browser, if there can't."""

ESCAPE = "\ue00c"

_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=900,600",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no internet
)

RENDERERS = {
    "swiftshader": ("--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    "mesa": ("--use-angle=gl-egl", "--ignore-gpu-blocklist"),
}
"""What draws without a GPU: what comes with Chromium, or what comes with Linux (llvmpipe)."""


class Browser:
    """A context manager with one page. Raises RuntimeError if chromedriver ends early."""

    def __init__(self, profile, renderer="swiftshader"):
        self._arguments = (*_ARGUMENTS, *RENDERERS[renderer], f"--user-data-dir={profile}")

    def __enter__(self):
        options = {"binary": CHROMIUM, "args": self._arguments}
        capabilities = {"alwaysMatch": {"goog:chromeOptions": options}}
        with contextlib.ExitStack() as stack:
            port = stack.enter_context(_driver())
            self._base = f"http://127.0.0.1:{port}/session"
            self._base += f"/{self._send('', capabilities=capabilities)['sessionId']}"
            self._driver = stack.pop_all()
        return self

    def __exit__(self, *exception):
        with self._driver:
            self._request("DELETE", "", None)

    def open(self, url):
        self._send("/url", url=url)

    def run(self, script):
        """What a script returns."""
        return self._send("/execute/sync", script=script, args=[])

    def click(self, x, y):
        """Clicks at a place of the window, pixels."""
        steps = [
            {"type": "pointerMove", "x": x, "y": y, "duration": 100},
            {"type": "pause", "duration": 300},
            {"type": "pointerDown", "button": 0},
            {"type": "pause", "duration": 100},
            {"type": "pointerUp", "button": 0},
        ]
        self._send("/actions", actions=[{"type": "pointer", "id": "mouse", "actions": steps}])

    def press(self, key):
        steps = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self._send("/actions", actions=[{"type": "key", "id": "keys", "actions": steps}])

    def _send(self, path, **body):
        return self._request("POST", path, json.dumps(body).encode())

    def _request(self, method, path, body):
        request = urllib.request.Request(self._base + path, body, method=method)
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)["value"]


@contextlib.contextmanager
def _driver():
    """The port of a chromedriver, which ends with the context."""
    with subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True) as driver:
        try:
            lines = (re.search(r"started successfully on port (\d+)", x) for x in driver.stdout)
            if (found := next(filter(None, lines), None)) is None:
                raise RuntimeError(f"{DRIVER} ended with {driver.wait(30)} before it listened")
            yield found[1]
        finally:
            driver.terminate()
