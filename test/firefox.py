"""A headless Firefox, driven over the WebDriver BiDi protocol that it speaks by itself."""

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from websockets.sync.client import connect

NAMES = ("firefox-esr", "firefox")
TIMEOUT_S = 60.0
KEYS = {
    "ArrowDown": "\ue015",
    "ArrowUp": "\ue013",
    "ArrowLeft": "\ue012",
    "ArrowRight": "\ue014",
    "End": "\ue010",
    "Home": "\ue011",
    "PageDown": "\ue00f",
    "PageUp": "\ue00e",
    "Tab": "\ue004",
    "Enter": "\ue007",
    "Escape": "\ue00c",
}
# No first-run pages, no requests of the browser's own.
PREFERENCES = {
    "app.normandy.enabled": False,
    "app.update.enabled": False,
    "browser.safebrowsing.malware.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.homepage_override.mstone": "ignore",
    "browser.startup.page": 0,
    "datareporting.policy.dataSubmissionEnabled": False,
    "extensions.update.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "network.dns.disabled": True,
    "services.settings.server": "data:,",
    "toolkit.telemetry.enabled": False,
}


def executable():
    """Where a Firefox is, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Firefox:
    """One browser with one page, without network.

    Attributes:
        problems: what the page's console and its scripts complained of.
        requests: addresses that the page asked for and that are no part of a file.
    """

    def __init__(self, width=1400, height=1000):
        self._folder = Path(tempfile.mkdtemp(prefix="firefox"))
        lines = [f"user_pref({json.dumps(k)}, {json.dumps(v)});" for k, v in PREFERENCES.items()]
        (self._folder / "user.js").write_text("\n".join(lines))
        self._process = subprocess.Popen(
            [
                executable(),
                "--headless",
                "--no-remote",
                "--profile",
                str(self._folder),
                "--remote-debugging-port=0",
                f"--window-size={width},{height}",
                "about:blank",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._numbers = itertools.count(1)
        self.problems, self.requests = [], []
        self._connection = contextlib.ExitStack()
        try:
            socket = connect(self._address(), max_size=None, compression=None)
            self._socket = self._connection.enter_context(socket)
            self.send("session.new", capabilities={})
            events = ["log.entryAdded", "network.beforeRequestSent"]
            self.send("session.subscribe", events=events)
            tree = self.send("browsingContext.getTree")
            self._context = tree["contexts"][0]["context"]
            self.size(width, height)
        except BaseException:
            self._end()
            raise

    def _address(self):
        """Where it listens, once it says so."""
        told, end = self._folder / "WebDriverBiDiServer.json", time.monotonic() + TIMEOUT_S
        while True:
            try:
                where = json.loads(told.read_text())
                return f"ws://{where['ws_host']}:{where['ws_port']}/session"
            except (OSError, ValueError):
                if time.monotonic() > end or self._process.poll() is not None:
                    raise TimeoutError("Firefox does not listen") from None
                time.sleep(0.05)

    def close(self):
        self.send("browser.close")
        self._end()

    def _end(self):
        self._connection.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def send(self, method, **parameters):
        """Call a method of the protocol and wait for its answer."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        end = time.monotonic() + TIMEOUT_S
        while True:
            answer = json.loads(self._socket.recv(timeout=max(0.0, end - time.monotonic())))
            if answer.get("id") != number:
                self._note(answer.get("method"), answer.get("params", {}))
            elif answer["type"] == "error":
                raise RuntimeError(f"{method}: {answer['error']}: {answer['message']}")
            else:
                return answer["result"]

    def _note(self, method, parameters):
        if method == "log.entryAdded" and parameters["level"] in ("error", "warn"):
            self.problems.append(parameters["text"])
        elif method == "network.beforeRequestSent":
            address = parameters["request"]["url"]
            if not address.startswith(("data:", "blob:", "about:", "file:")):
                self.requests.append(address)

    def open(self, path):
        """Open a file from disk and wait until it has been loaded."""
        self.send(
            "browsingContext.navigate",
            context=self._context,
            url=Path(path).resolve().as_uri(),
            wait="complete",
        )

    def run(self, script):
        """The value of an expression in the page; a promise is waited for."""
        answer = self.send(
            "script.evaluate",
            expression=f"Promise.resolve({script}).then((told) => JSON.stringify(told) ?? 'null')",
            target={"context": self._context},
            awaitPromise=True,
        )
        if answer["type"] == "exception":
            raise RuntimeError(answer["exceptionDetails"]["text"])
        return json.loads(answer["result"]["value"])

    def until(self, condition):
        """Wait until an expression is true in the page."""
        end = time.monotonic() + TIMEOUT_S
        while not self.run(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise TimeoutError(f"never true: {condition}; problems: {self.problems}")
            time.sleep(0.05)

    def key(self, key):
        """Press a key where the focus is."""
        value = KEYS.get(key, key)
        pressed = [{"type": kind, "value": value} for kind in ("keyDown", "keyUp")]
        self._act({"type": "key", "id": "keyboard", "actions": pressed})

    def click(self, x, y):
        """Click at a place of the window, pixels."""
        moves = [{"type": "pointerMove", "x": round(x), "y": round(y)}]
        moves += [{"type": kind, "button": 0} for kind in ("pointerDown", "pointerUp")]
        self._act({"type": "pointer", "id": "mouse", "actions": moves})

    def _act(self, source):
        self.send("input.performActions", context=self._context, actions=[source])

    def size(self, width, height, scale=1):
        """Make the window this large, pixels."""
        self.send(
            "browsingContext.setViewport",
            context=self._context,
            viewport={"width": width, "height": height},
            devicePixelRatio=scale,
        )

    def screenshot(self, path, whole=False):
        """Write a PNG of the window, or of the whole page."""
        answer = self.send(
            "browsingContext.captureScreenshot",
            context=self._context,
            origin="document" if whole else "viewport",
        )
        Path(path).write_bytes(base64.b64decode(answer["data"]))
