"""A real browser, driven through its pipe: what a page says on its console, what it asks for, and how it looks."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
SWITCHES = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --remote-debugging-pipe"


class Browser:
    """One page in one tab. `said`: errors and warnings; `asked`: the addresses that were requested."""

    def __init__(self, folder: Path) -> None:
        pipes = [folder / "to", folder / "from"]
        for pipe in pipes:
            os.mkfifo(pipe)
        # the shell gives the browser the pipes as 3 and 4, where it looks for them
        script = f'exec "$0" {SWITCHES} --user-data-dir="$1" about:blank 3<"$2" 4>"$3" 2>/dev/null'
        command = ["sh", "-c", script, str(CHROMIUM), str(folder / "profile"), *map(str, pipes)]
        self.process = subprocess.Popen(command)
        self.to, self.back = pipes[0].open("wb", buffering=0), pipes[1].open("rb")
        self.count, self.session = 0, ""
        self.said: list[str] = []
        self.asked: list[str] = []
        self.loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        self.to.write(json.dumps(message).encode() + b"\0")
        while (answer := self.read()).get("id") != self.count:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def read(self) -> dict[str, Any]:
        """The next message, with what it tells noted."""
        data = bytearray()
        while (c := self.back.read(1)) != b"\0":
            if not c:
                raise RuntimeError("the browser ended")
            data += c
        message = json.loads(data)
        params, event = message.get("params", {}), message.get("method")
        if event == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        if event == "Runtime.exceptionThrown":
            self.said.append(json.dumps(params["exceptionDetails"]))
        if event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.said.append(json.dumps(params["args"]))
        if event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.said.append(params["entry"]["text"])
        self.loaded = self.loaded or event == "Page.loadEventFired"
        return message

    def open(self, file: Path, width: int = 1200, height: int = 900) -> None:
        """Go to a page, and wait until its figures stand."""
        self.said, self.asked, self.loaded = [], [], False
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=file.resolve().as_uri())
        while not self.loaded:
            self.read()
        self.wait()

    def wait(self, seconds: float = 0.3) -> None:
        """Read on for so long."""
        time.sleep(seconds)
        self.call("Page.getFrameTree")

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript is worth; promises are waited for."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"]))
        return found["result"].get("value")

    def dark(self, on: bool) -> None:
        features = [{"name": "prefers-color-scheme", "value": "dark" if on else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def scripts(self, on: bool) -> None:
        self.call("Emulation.setScriptExecutionDisabled", value=not on)

    def pdf(self) -> bytes:
        return base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=False)["data"])

    def screenshot(self) -> bytes:
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    found = Browser(folder)
    try:
        yield found
    finally:
        found.process.terminate()
        found.process.wait(30)
        found.to.close()
        found.back.close()
