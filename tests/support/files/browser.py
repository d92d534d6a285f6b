"""Headless Chromium over its debugging pipe: opens a page, tells what its console said, takes pictures.

Two pipes and JSON between them need no driver; Playwright would bring one of its own, and a Node beside it.

    with Browser() as browser:
        shown = browser.open(Path("report.html"), width=390, dark=True)
        assert shown.complaints == []
        browser.picture(Path("report.png"))
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

ARGUMENTS = (
    "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
DEADLINE_S = 60.0
SETTLE_S = 0.25


@dataclass
class Shown:
    """What was seen of a page."""

    complaints: list[str] = field(default_factory=list)
    """Errors and warnings of the console, refused requests and violated policies among them."""
    requests: list[str] = field(default_factory=list)
    """Every URL that was asked for, the page itself first."""
    first_paint_ms: float | None = None


class Browser:
    """One Chromium with a profile of its own. Use as a context manager."""

    def __enter__(self) -> Browser:
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        pipe_in, self._out = os.pipe()
        self._in, pipe_out = os.pipe()
        # The browser reads descriptor 3 and writes 4: ours must be neither while they are put there.
        theirs_in, theirs_out = fcntl.fcntl(pipe_in, fcntl.F_DUPFD, 10), fcntl.fcntl(pipe_out, fcntl.F_DUPFD, 10)
        argv = ["bash", "-c", f'exec chromium "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", *ARGUMENTS]
        self._process = subprocess.Popen(
            [*argv, f"--user-data-dir={self._profile.name}", "about:blank"], pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for descriptor in (pipe_in, pipe_out, theirs_in, theirs_out):
            os.close(descriptor)
        self._number, self._pending, self._shown = 0, b"", Shown()
        targets = self._call("Target.getTargets", session=None)["targetInfos"]
        target = next(each["targetId"] for each in targets if each["type"] == "page")
        attached = self._call("Target.attachToTarget", session=None, targetId=target, flatten=True)
        self._session: str = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)
        self._profile.cleanup()

    def open(
        self, page: Path | str, *, width: int = 1280, height: int = 900, dark: bool = False, scripts: bool = True
    ) -> Shown:
        """Loads a file or a URL in a window of that size and waits until it has been drawn."""
        self._shown = Shown()
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=width < 600
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", features=scheme)
        self._call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self._call("Page.navigate", url=page if isinstance(page, str) else page.absolute().as_uri())
        self._until("Page.loadEventFired")
        time.sleep(SETTLE_S)
        self._shown.first_paint_ms = self.evaluate(
            "performance.getEntriesByName('first-contentful-paint').map(entry => entry.startTime)[0]"
        )
        return self._shown

    def before_each(self, script: str) -> None:
        """JavaScript that runs in every page opened from now on, before the page's own; its policy does not see it."""
        self._call("Page.addScriptToEvaluateOnNewDocument", source=script)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return self._call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """Writes the page, or what the window shows of it, as PNG."""
        answer = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        if whole:
            size = self._call("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
            answer = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _call(self, method: str, /, session: str | None = "", **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        answer = self._until(self._number)
        assert "error" not in answer, f"{method}: {answer}"
        return dict(answer["result"])

    def _until(self, wanted: int | str) -> dict[str, Any]:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            while b"\0" in self._pending:
                line, _, self._pending = self._pending.partition(b"\0")
                message = json.loads(line)
                self._note(message)
                if wanted in (message.get("id"), message.get("method")):
                    return dict(message)
            more = os.read(self._in, 1 << 16)
            assert more, "chromium went away; is it installed? (.ci/system-packages installs it)"
            self._pending += more
        raise AssertionError(f"chromium did not answer {wanted} within {DEADLINE_S:.0f} s")

    def _note(self, message: dict[str, Any]) -> None:
        method, told = message.get("method"), message.get("params", {})
        if method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self._shown.complaints.append(told["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self._shown.complaints.append(json.dumps(told["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self._shown.complaints.append(json.dumps(told["args"])[:500])
        elif method == "Network.requestWillBeSent":
            self._shown.requests.append(told["request"]["url"])
