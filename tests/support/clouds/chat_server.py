"""A real HTTP server on loopback that speaks OpenAI's chat completions, and says what a test puts into its mouth.

with ChatServer() as server:
    server.will(Said(status=429), Said("85"))
    complete(RemoteModel(server.endpoint, "judge"), "...")
    server.requests[1].body
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from tests.support.clouds.receiver import Received

UNSET = object()


@dataclass(frozen=True)
class Said:
    """One answer: `content` in the API's shape, or any `body`; `drop` closes the connection without one."""

    content: str = ""
    status: int = 200
    body: Any = UNSET
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    drop: bool = False


class ChatServer:
    """Answers in the order of `will`; with 500 where a test has put in nothing."""

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self._answers: deque[Said] = deque()
        self._ended = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                server.requests.append(Received("POST", self.path, body, dict(self.headers)))
                said = server._answers.popleft() if server._answers else Said(status=500)
                server._ended.wait(said.delay_s)
                if said.drop:
                    self.close_connection = True
                    return
                self._answer(said)

            def _answer(self, said: Said) -> None:
                whole = {"object": "chat.completion", "choices": [{"index": 0, "message": _message(said.content)}]}
                raw = json.dumps(whole if said.body is UNSET else said.body).encode()
                self.send_response(said.status)
                for name, value in {**said.headers, "Content-Length": str(len(raw))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}/v1"

    def will(self, *answers: Said) -> None:
        """Puts these answers in its mouth, in this order."""
        self._answers.extend(answers)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()


def _message(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}
