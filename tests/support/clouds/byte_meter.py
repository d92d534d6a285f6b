"""A TCP port that passes everything on to another one and counts it: what a server really sent, whatever it says.

with Meter(s3.ports["proxy"]) as meter:
    ... use meter.port of the same host ...
    meter.down_bytes, meter.up_bytes        # from the server, and to it
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from typing import Self

CHUNK_BYTES = 1 << 16


class Meter(socketserver.ThreadingTCPServer):
    """In front of `port` of a local address; every connection has one behind it."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        super().__init__((host, 0), _Passage)
        self.behind = (host, port)
        self.up_bytes = self.down_bytes = 0
        self.lock = threading.Lock()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def count(self, up: bool, size_bytes: int) -> None:
        with self.lock:
            self.up_bytes += size_bytes * up
            self.down_bytes += size_bytes * (not up)


class _Passage(socketserver.BaseRequestHandler):
    server: Meter

    def handle(self) -> None:
        with socket.create_connection(self.server.behind) as behind:
            upward = threading.Thread(target=self._carry, args=(self.request, behind, True), daemon=True)
            upward.start()
            self._carry(behind, self.request, False)
            upward.join(5)

    def _carry(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError):  # either side may hang up
            while data := source.recv(CHUNK_BYTES):
                self.server.count(up, len(data))
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
