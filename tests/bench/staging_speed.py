"""How fast a machine pulls a dataset and verifies it, beside curl and sha256sum from the same server, in one call.

    python -m tests.bench.staging_speed              # the lines of `make bench --only staging`

Loopback HTTP from a server process of its own that gives byte ranges (tests.file_server). Ours is the whole pull: the
agent's start, parallel ranges, digests of 16 MiB blocks and of the file, the last fsync. "Theirs" is `curl` and, after
it, `sha256sum`. Rounds alternate and the best of each side counts. Never a timed test.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from orchestrator.core.ports import Part
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.agent_client.pull_job import pull
from orchestrator.remote.shell.local_shell import LocalShell
from tests.bench.figure import Figure, at_least

BLOCK_BYTES = 16 << 20
SERVE = """
import pathlib, sys, time
from tests.file_server import FileServer
with FileServer({"/tokens.bin": pathlib.Path(sys.argv[1])}) as server:
    print(server.url("/tokens.bin"), flush=True)
    sys.stdin.read()
"""


def figures(*, quick: bool) -> Iterator[Figure]:
    """Staging 2 GB; 0.2 GB when quick."""
    size = (200_000_000 if quick else 2_000_000_000) // BLOCK_BYTES * BLOCK_BYTES
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "tokens.bin")
        blocks = written(source, size)
        with subprocess.Popen(
            [sys.executable, "-c", SERVE, str(source)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdin and server.stdout
            url = server.stdout.readline().strip()
            try:
                rounds = [(ours(url, blocks, Path(folder)), theirs(url, Path(folder))) for _ in range(2)]
            finally:
                server.stdin.close()
    megabytes = size / 1e6
    best, curl = (megabytes / min(side) for side in zip(*rounds, strict=True))
    yield at_least(f"stage {size / 1e9:.2g} GB, verified", best, curl, "MB/s", "curl, then sha256sum", 0.8)


def written(path: Path, size_bytes: int) -> list[str]:
    """Random bytes; returns the sha256 of each block."""
    digests = []
    with path.open("wb") as file:
        for _ in range(size_bytes // BLOCK_BYTES):
            block = os.urandom(BLOCK_BYTES)
            file.write(block)
            digests.append(hashlib.sha256(block).hexdigest())
    return digests


def ours(url: str, blocks: list[str], folder: Path) -> float:
    """Seconds of one pull onto an empty machine."""
    with tempfile.TemporaryDirectory(dir=folder) as machine:
        parts = [
            Part(url, number * BLOCK_BYTES, BLOCK_BYTES, "data/tokens.bin", sha256=sha256)
            for number, sha256 in enumerate(blocks)
        ]
        began = time.perf_counter()
        pull(Agent(LocalShell(), machine, sys.executable), "bench-1", lambda: parts, lambda moved: None)
        return time.perf_counter() - began


def theirs(url: str, folder: Path) -> float:
    """Seconds of curl and sha256sum."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        there = Path(place, "tokens.bin")
        began = time.perf_counter()
        subprocess.run(["curl", "-sf", "-o", str(there), url], check=True)
        subprocess.run(["sha256sum", str(there)], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began


if __name__ == "__main__":
    for each in figures(quick="--quick" in sys.argv):
        print(each.line(), flush=True)
