"""A real Chromium, driven over its own protocol: what a person would see, type and click."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from tornado.websocket import WebSocketClientConnection, websocket_connect

from worker.demo.embedded import Child

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = """--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update
--disable-sync --disable-dev-shm-usage --disable-extensions --hide-scrollbars --remote-debugging-port=0""".split()
_KEYS = {"Tab": 9, "Enter": 13, "Escape": 27}


class Chromium(Child):
    """One headless browser. `page` opens a tab with a profile of its own."""

    def __init__(self, folder: Path) -> None:
        self._port_file = folder / "profile" / "DevToolsActivePort"
        self.downloads = folder / "downloads"
        super().__init__("chromium", [str(CHROMIUM), *_FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"], folder)

    def ready(self) -> bool:
        return self._port_file.exists() and len(self._port_file.read_text().split()) == 2

    def page(self) -> Page:
        port, path = self._port_file.read_text().split()
        return Page(f"ws://127.0.0.1:{port}{path}", self.downloads)


class Page:
    """One tab. `complaints`: what its console said, violations of the content security policy among it."""

    def __init__(self, browser_url: str, downloads: Path) -> None:
        self.complaints: list[str] = []
        self.downloads = downloads
        self._runner = asyncio.Runner()
        self._number = 0
        self._session: str | None = None

        async def connect() -> WebSocketClientConnection:
            return await websocket_connect(browser_url, max_message_size=64 * 1024 * 1024)

        self._socket = self._runner.run(connect())
        self._context = self.send("Target.createBrowserContext")["browserContextId"]
        self.send("Browser.setDownloadBehavior", behavior="allow", browserContextId=self._context, downloadPath=str(downloads))
        target = self.send("Target.createTarget", url="about:blank", browserContextId=self._context)["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            self.send(f"{domain}.enable")
        self.size(1200, 900)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None
        self.send("Target.disposeBrowserContext", browserContextId=self._context)
        self._runner.run(self._leave())
        self._runner.close()

    async def _leave(self) -> None:
        self._socket.close()
        while await self._socket.read_message() is not None:  # None: the browser has closed its end as well
            pass

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Give one command's answer; events that come before it are noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        return self._runner.run(self._answer(method, message))

    async def _answer(self, method: str, message: dict[str, Any]) -> dict[str, Any]:
        await self._socket.write_message(json.dumps(message))
        while text := await self._socket.read_message():
            answer = json.loads(text)
            if answer.get("id") == message["id"]:
                assert "error" not in answer, f"{method}: {answer.get('error')}"
                return dict(answer["result"])
            self._note(answer.get("method"), answer.get("params", {}))
        raise AssertionError("the browser ended")

    def _note(self, event: str | None, params: dict[str, Any]) -> None:
        if event == "Runtime.consoleAPICalled":
            self.complaints.append(" ".join(str(part.get("value")) for part in params["args"]))
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif event == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        elif event == "Page.javascriptDialogOpening":
            self.complaints.append(f"dialog: {params['message']}")

    # --- what a person does ------------------------------------------------------------------------------------------

    def size(self, width: int, height: int, scale: float = 1) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=width < 500)

    def prefer(self, **features: str) -> None:
        """``prefer(prefers_color_scheme="dark")``."""
        wanted = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.send("Emulation.setEmulatedMedia", features=wanted)

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def press(self, key: str) -> None:
        code = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
        self.send("Input.dispatchKeyEvent", type="keyDown", **code, **({"text": "\r"} if key == "Enter" else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **code)

    def click(self, selector: str) -> None:
        """Click into the middle of it, as a mouse does."""
        found = self.see(
            f"(node => {{ node.scrollIntoView({{block: 'center'}}); const r = node.getBoundingClientRect();"
            f" return [r.x + r.width / 2, r.y + r.height / 2]; }})(document.querySelector({json.dumps(selector)}))"
        )
        at = {"x": found[0], "y": found[1], "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, **at)

    # --- what a person sees ------------------------------------------------------------------------------------------

    def see(self, expression: str) -> Any:
        """Give the value of a JavaScript expression."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def text(self, selector: str = "body") -> str:
        """Give what can be read there, as it is laid out."""
        return str(self.see(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def until(self, expression: str, within_seconds: float = 15) -> None:
        """Return as soon as a JavaScript expression is true."""
        self.until_true(lambda: bool(self.see(expression)), expression, within_seconds)

    def until_text(self, words: str, selector: str = "body", within_seconds: float = 15) -> None:
        """Return as soon as these words can be read."""
        self.until_true(lambda: words in self.text(selector), words, within_seconds)

    def until_true(self, condition: Callable[[], bool], what: str, within_seconds: float = 15) -> None:
        limit = time.monotonic() + within_seconds
        while not condition():
            assert time.monotonic() < limit, f"never came: {what}\n{self.text()}\n{self.complaints}"
            time.sleep(0.05)

    def spoken(self) -> list[tuple[str, str]]:
        """Give (role, name) of all that a screen reader meets."""
        nodes = self.send("Accessibility.getFullAXTree")["nodes"]
        return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]

    def picture(self, path: Path, *, whole: bool = False) -> None:
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(b64decode(data))
