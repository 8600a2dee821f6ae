"""A headless Chromium, spoken to by its DevTools protocol over a WebSocket: pages, what they show, and pictures."""

import asyncio
import base64
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp

NAMES: Final = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
MISSING: Final = f"needs a Chromium browser (none of {', '.join(NAMES)} is on the path; Debian's package is chromium)"


def find_chromium() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name)) is not None), None)


@contextmanager
def running_chromium(profile: Path) -> Iterator[str]:
    """The address of its DevTools."""
    command = [
        str(find_chromium()),
        "--headless=new",
        "--no-sandbox",  # tests run as root in containers, where Chromium has no sandbox
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--hide-scrollbars",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        "about:blank",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if (said := re.search(r"DevTools listening on (ws://\S+)", line)) is not None:
                    yield said[1]
                    break
            else:
                raise AssertionError("Chromium ended before it listened")
        finally:
            process.terminate()


class Page:
    """One tab. `complaints` are its errors: exceptions, refused resources, violations of its policy."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self._session: str | None = None
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.complaints: list[str] = []

    async def open_tab(self) -> None:
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        message = {"id": self._number, "method": method, "params": parameters}
        await self._socket.send_json(message if self._session is None else message | {"sessionId": self._session})
        async with asyncio.timeout(20):
            return await answer

    async def listen(self) -> None:
        async for message in self._socket:
            said = message.json()
            if (number := said.get("id")) is not None:
                answer = self._answers.pop(number)
                if "error" in said:
                    answer.set_exception(RuntimeError(str(said["error"])))
                else:
                    answer.set_result(said["result"])
            elif said["method"] == "Runtime.exceptionThrown":
                self.complaints.append(str(said["params"]["exceptionDetails"]))
            elif said["method"] == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                self.complaints.append(str(said["params"]["entry"]))

    async def evaluate(self, expression: str) -> Any:
        done = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    async def until(self, expression: str, timeout_s: float = 15.0) -> None:
        """Until `expression` is true in the page."""
        try:
            async with asyncio.timeout(timeout_s):
                while not await self.evaluate(f"Boolean({expression})"):  # noqa: ASYNC110 - it is in another process
                    await asyncio.sleep(0.05)
        except TimeoutError:
            shown = await self.evaluate("document.body.innerText")
            raise AssertionError(f"{expression} never came true; {self.complaints}; the page shows:\n{shown}") from None

    async def go(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, text="\r" if key == "Enter" else "")

    async def look(self, width: int, *, dark: bool = False) -> None:
        """Be so wide, in this scheme of colours."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def picture(self) -> bytes:
        """The whole page as a PNG."""
        shot = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])


@asynccontextmanager
async def open_page(devtools: str) -> AsyncIterator[Page]:
    async with aiohttp.ClientSession() as session, session.ws_connect(devtools, max_msg_size=1 << 26) as socket:
        page = Page(socket)
        listening = asyncio.ensure_future(page.listen())
        try:
            await page.open_tab()
            yield page
            await page.call("Page.close")
        finally:
            listening.cancel()
            await asyncio.wait([listening])
