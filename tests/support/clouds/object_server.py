"""Objects behind secret URLs, as a store's presigned ones look to a machine; it refuses, cuts and lies when told to.

with ObjectServer() as server:
    urls = server.urls(["step-000010"], ["model.safetensors", "MANIFEST.json"])
    server.objects["step-000010/model.safetensors"]
"""

from __future__ import annotations

import http.server
import re
import threading
import time
from collections.abc import Sequence
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

SIGNATURE = "canary-signature-77c1"
LOGS = ("metrics.jsonl", "events.jsonl", "train.log")


class ObjectServer(http.server.ThreadingHTTPServer):
    """`refuse`: (method, part of a name) to (code, S3 error code); `cut_puts`: so many uploads lose their connection;
    `lies`: names whose bytes come back changed; `pause_s`: per block of an upload."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.refuse: dict[tuple[str, str], tuple[int, str]] = {}
        self.cut_puts = 0
        self.lies: set[str] = set()
        self.pause_s = 0.0
        self.asked: list[tuple[str, str]] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def slot(self, name: str, part_bytes: int = 0) -> dict[str, Any]:
        """The URLs of one object; with part_bytes it is stored in parts of that size."""
        url = f"http://127.0.0.1:{self.server_port}/{name}?signature={SIGNATURE}"
        if not part_bytes:
            return {"put": url, "get": url, "delete": url}
        parts = [f"{url}&part={number}" for number in range(1, 20)]
        return {"parts": parts, "part_bytes": part_bytes, "complete": f"{url}&complete=1", "get": url, "delete": url}

    def urls(
        self, steps: Sequence[str], files: Sequence[str], *, spare: int = 1, lasts_s: float = 600
    ) -> dict[str, Any]:
        """The secrets of an offload."""
        named = {step: {name: self.slot(f"{step}/{name}") for name in files} for step in steps}
        spares = [f"spare-{number:02d}" for number in range(1, spare + 1)]
        return {
            "lasts_s": lasts_s,
            "probe": self.slot("probe"),
            "index": self.slot("CHECKPOINTS.json"),
            "files": {name: self.slot(name) for name in LOGS},
            "steps": named,
            "spare": {name: {file: self.slot(f"{name}/{file}") for file in files} for name in spares},
        }

    def count(self, method: str, name: str) -> int:
        return self.asked.count((method, name))


class Handler(http.server.BaseHTTPRequestHandler):
    server: ObjectServer

    def _serve(self) -> None:
        url = urlsplit(self.path)
        name, asked = url.path.lstrip("/"), parse_qs(url.query)
        assert asked["signature"] == [SIGNATURE]
        self.server.asked.append((self.command, name))
        for (method, part), (code, word) in self.server.refuse.items():
            if method == self.command and part in name:
                return self._answer(code, f"<Error><Code>{word}</Code><Message>No.</Message></Error>".encode())
        getattr(self, f"_{self.command.lower()}")(name, asked)

    do_GET = do_PUT = do_POST = do_DELETE = _serve

    def _put(self, name: str, asked: dict[str, list[str]]) -> None:
        size = int(self.headers["Content-Length"])
        content = b""
        while len(content) < size:
            block = self.rfile.read(min(65536, size - len(content)))
            if not block:
                return
            content += block
            time.sleep(self.server.pause_s)
            if self.server.cut_puts and len(content) > size // 2:
                self.server.cut_puts -= 1
                return self.connection.close()
        if "part" in asked:
            self.server.parts.setdefault(name, {})[int(asked["part"][0])] = content
        else:
            self.server.objects[name] = content
        self._answer(200, b"", ETag=f'"tag-{asked.get("part", ["0"])[0]}"')

    def _post(self, name: str, asked: dict[str, list[str]]) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        numbers = re.findall(r"<PartNumber>(\d+)</PartNumber><ETag>\"tag-(\d+)\"</ETag>", body)
        assert "complete" in asked and all(number == tag for number, tag in numbers)
        self.server.objects[name] = b"".join(self.server.parts[name][int(number)] for number, _ in numbers)
        self._answer(200, b"<CompleteMultipartUploadResult/>")

    def _get(self, name: str, _: dict[str, list[str]]) -> None:
        if name not in self.server.objects:
            return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        content = self.server.objects[name]
        self._answer(200, content[:-1] + b"?" if name in self.server.lies else content)

    def _delete(self, name: str, _: dict[str, list[str]]) -> None:
        self.server.objects.pop(name, None)
        self._answer(204, b"")

    def _answer(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""
