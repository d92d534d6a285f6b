"""HTTP around the account: keys, rate limits, a log of requests, and lies about whole answers.

It listens on 127.0.0.1 only. `requests.jsonl` has one line per request, without the key, so that tests can count
purchases and check the pace. The control paths also need the key and are not part of the API:

    POST /rehearsal/inject {"faults": "500@list*2"} or {"clear": "NAME"} ("" clears all)
    GET  /rehearsal/faults, GET /rehearsal/books

/metadata/INSTANCE answers what a machine asks about itself, without a key.

Example: `Server(cloud, key, port=0).serve_forever()`
"""

from __future__ import annotations

import base64
import hmac
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from orchestrator.rehearsal import aging, metadata
from orchestrator.rehearsal.answer_faults import Answer, Dropped, spoil, stop_before
from orchestrator.rehearsal.api import routes
from orchestrator.rehearsal.books.books import Journal, read_books
from orchestrator.rehearsal.books.rates import RateLimit
from orchestrator.rehearsal.cloud import Cloud
from orchestrator.rehearsal.faults import Faults
from orchestrator.rehearsal.refusal import Refusal, invalid, unauthorized

REQUESTS = "requests.jsonl"
MAX_BODY_BYTES = 4_000_000
WATCH_EVERY_S = 0.1
CHUNK_BYTES = 1 << 20
PAGED = ("audit", "list")
"""Operations whose acts return the whole body, a page token included."""


class Server(ThreadingHTTPServer):
    """The listening socket, the account behind it, and the thread that watches the machines."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, cloud: Cloud, key: str, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.cloud = cloud
        self.key = key
        self.log = Journal(cloud.state / REQUESTS)
        self.rate = RateLimit(cloud.settings.strict_rate)
        self._closing = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def _watch(self) -> None:
        """Runs until the server closes; a deleted state folder stops the server."""
        while not self._closing.wait(WATCH_EVERY_S):
            if not self.cloud.state.exists():
                return self.shutdown()
            aging.fire_due_faults(self.cloud)

    def server_close(self) -> None:
        self._closing.set()
        super().server_close()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: Any) -> None:
        """Requests go to requests.jsonl."""

    def _serve(self) -> None:
        """Answers one request and logs it."""
        self.effect = "none"
        started = time.time()
        try:
            answer = self._answer()
        except Refusal as refusal:
            answer = Answer(refusal.status, refusal.body)
        except Dropped:
            answer = None
        status = answer.status if answer else 0
        path = urlsplit(self.path).path
        self.server.log.append("request", method=self.command, path=path, status=status, started=started)
        if answer is None:
            time.sleep(self.server.cloud.settings.hang_s)
            self.close_connection = True
        else:
            self._send(answer)

    def _answer(self) -> Answer:
        body = self._body()
        parts = urlsplit(self.path)
        if parts.path.startswith("/rehearsal/"):
            self._check_key()
            return Answer(200, self._control(parts.path, body))
        if parts.path.startswith(metadata.PREFIX):
            return metadata.answer(self.server.cloud, self.command, parts.path, self.headers)
        operation, act, argument = routes.route(self.command, parts.path)
        faults = self.server.cloud.faults
        self._stay_silent(faults)
        spoiled = stop_before(faults, operation)
        if spoiled:
            return spoiled
        self._check_key()
        if faults.take("key-revoked", operation):
            raise unauthorized()
        self.server.rate.check(operation)
        request = routes.Request(self.command, parts.path, dict(parse_qsl(parts.query)), body, argument)
        data = act(self.server.cloud, request)
        return spoil(faults, operation, data if operation in PAGED else {"data": data})

    def _stay_silent(self, faults: Faults) -> None:
        """Keeps the client waiting. Raises Dropped once the silence is over: the request gets no answer."""
        if faults.during("silent"):
            while faults.during("silent"):
                time.sleep(WATCH_EVERY_S)
            raise Dropped

    def _body(self) -> Any:
        length = int(self.headers.get("Content-Length") or 0)
        if length > MAX_BODY_BYTES:
            self.close_connection = True
            raise invalid("The request is too large.")
        text = self.rfile.read(length)
        try:
            return json.loads(text) if text else None
        except ValueError:
            raise invalid("The body is not JSON.") from None

    def _check_key(self) -> None:
        """Bearer, or basic with the key as user, encoded or not. Raises Refusal."""
        scheme, _, given = (self.headers.get("Authorization") or "").partition(" ")
        offered = {given.strip()} if scheme.lower() in ("bearer", "basic") else set()
        if scheme.lower() == "basic":
            offered.add(_decoded(given).partition(":")[0])
        if not any(hmac.compare_digest(one.encode(), self.server.key.encode()) for one in offered):
            raise unauthorized()

    def _control(self, path: str, body: Any) -> Any:
        cloud = self.server.cloud
        if (self.command, path) == ("POST", "/rehearsal/inject") and isinstance(body, dict):
            if "clear" in body:
                cloud.faults.clear(str(body["clear"]))
            try:
                cloud.inject(str(body.get("faults", "")))
            except ValueError as error:
                raise invalid(str(error)) from None
            return cloud.faults.as_json()
        if (self.command, path) == ("GET", "/rehearsal/faults"):
            return cloud.faults.as_json()
        if (self.command, path) == ("GET", "/rehearsal/books"):
            return read_books(cloud.state)
        raise Refusal(404, "global/not-found", "The requested resource was not found.")

    def _send(self, answer: Answer) -> None:
        body = answer.raw if answer.raw is not None else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(answer.padding_bytes + len(body)))
        for name, value in answer.headers:
            self.send_header(name, value)
        self.end_headers()
        try:
            for _ in range(answer.padding_bytes // CHUNK_BYTES):
                self.wfile.write(b" " * CHUNK_BYTES)
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client stopped reading


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text.strip(), validate=True).decode()
    except ValueError:
        return ""
