"""The job `meet`: this node and every other one exchange bytes at the addresses where their ranks will meet.

Each listens at its own address and calls all others until MEET_WITHIN_S have passed. The bytes are zeros: what is
measured is the link.

Example result: {"pairs": [{"node": 1, "ms": 0.2, "mb_per_s": 1180.0, "clock_s": 0.1}], "missing": []}
"""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Mapping

from ..contract.answers import NoPair, Pair
from ..contract.names import Code, JobName
from ..contract.requests import Cluster
from ..job.jobs import Job
from ..system.refusal import Refusal

MEET_WITHIN_S = 30.0
CALL_S = 5.0
AGAIN_S = 0.3
SENT_BYTES, LEAST_BYTES = 64 << 20, 8 << 20
MOST_SENDING_S = 2.0
"""Of a node, to all others together: each gets its share, so that eight nodes meet about as soon as two."""
BLOCK_BYTES = 1 << 20


def meet(job: Job) -> Mapping[str, object]:
    """Serves the others and calls them. Raises Refusal where this node's address or port cannot be used."""
    cluster = job.spec.get("cluster")
    if not isinstance(cluster, dict):
        raise Refusal(Code.BAD_REQUEST, "%s: the spec needs 'cluster' as dict" % JobName.MEET)
    own = cluster["addresses"][cluster["node"]]
    _check_free(own, cluster["port"])
    ends = time.monotonic() + MEET_WITHIN_S
    with _listening(own, cluster["port"] + 1) as server:
        heard: set[int] = set()
        threading.Thread(target=_serve, args=(server, cluster, heard), daemon=True).start()
        pairs: list[Pair] = []
        missing: list[NoPair] = []
        others = [node for node in range(len(cluster["addresses"])) if node != cluster["node"]]
        for node in others:
            try:
                pairs.append(_call(cluster, node, ends))
            except (OSError, ValueError) as error:
                missing.append({"node": node, "error": str(error)})
        while not missing and heard < set(others) and time.monotonic() < ends:
            time.sleep(0.05)  # the others still measure with this one
    return {"pairs": pairs, "missing": missing}


def _listening(address: str, port: int) -> socket.socket:
    try:
        return socket.create_server((address, port), backlog=64)
    except OSError as error:
        raise Refusal(
            Code.BAD_REQUEST,
            "cannot listen at %s:%d: %s" % (address, port, error.strerror),
            "set private_address of the host to an address that one of its interfaces has",
        ) from error


def _check_free(address: str, port: int) -> None:
    _listening(address, port).close()


def _serve(server: socket.socket, cluster: Cluster, heard: set[int]) -> None:
    while True:
        try:
            link, _ = server.accept()
        except OSError:
            return  # it was closed: the meeting is over
        threading.Thread(target=_answer, args=(link, cluster, heard), daemon=True).start()


def _answer(link: socket.socket, cluster: Cluster, heard: set[int]) -> None:
    try:
        with link:
            link.settimeout(MEET_WITHIN_S)
            said = json.loads(_line(link))
            if said.get("id") != cluster["id"]:
                return
            link.sendall(json.dumps({"node": cluster["node"], "time": time.time()}).encode() + b"\n")
            count = 0
            while piece := link.recv(BLOCK_BYTES):
                count += len(piece)
            link.sendall(b"%d\n" % count)
            heard.add(int(said["node"]))
    except (OSError, ValueError, KeyError, AttributeError):
        return  # a stranger, or a node that tries again


def _call(cluster: Cluster, node: int, ends: float) -> Pair:
    """Raises OSError or ValueError: why it was not reached."""
    address = (cluster["addresses"][node], cluster["port"] + 1)
    while True:
        try:
            link = socket.create_connection(address, timeout=min(CALL_S, max(0.1, ends - time.monotonic())))
            break
        except OSError:
            if time.monotonic() > ends:
                raise
            time.sleep(AGAIN_S)
    with link:
        link.settimeout(CALL_S + MOST_SENDING_S)
        began = time.time()
        link.sendall(json.dumps({"id": cluster["id"], "node": cluster["node"]}).encode() + b"\n")
        said = json.loads(_line(link) or "null")
        took = time.time() - began
        if not isinstance(said, dict) or said.get("node") != node:
            raise ValueError("something else answers there")
        return {
            "node": node, "ms": round(took * 1000, 2), "mb_per_s": round(_rate(link, len(cluster["addresses"]) - 1), 1),
            "clock_s": round(said["time"] - (began + took / 2), 3),
        }  # fmt: skip


def _rate(link: socket.socket, others: int) -> float:
    """MB per second of what arrives at the other end."""
    block, sent, began = bytes(BLOCK_BYTES), 0, time.monotonic()
    share, most_s = max(LEAST_BYTES, SENT_BYTES // others), MOST_SENDING_S / others
    while sent < share and time.monotonic() - began < most_s:
        link.sendall(block)
        sent += len(block)
    link.shutdown(socket.SHUT_WR)
    arrived = int(_line(link) or 0)
    return arrived / max(1e-6, time.monotonic() - began) / 1e6


def _line(link: socket.socket) -> bytes:
    """Bytes up to a newline."""
    line = b""
    while not line.endswith(b"\n") and len(line) < 4096:
        piece = link.recv(1)
        if not piece:
            break
        line += piece
    return line
