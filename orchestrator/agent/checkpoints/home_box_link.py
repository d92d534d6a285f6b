"""What a home box may run on this machine, and nothing else: its SSH channel is joined with the offload job's socket.

Example (an authorized key runs it, see admission.py)::

    python3 agent-HASH.pyz link RUN
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from typing import Sequence

from ..system.paths import Places
from . import home_box_store, store_index

OVER = 3
"""Exit code: all is stored, do not call again."""
BLOCK_BYTES = 1 << 18


def main(places: Places, arguments: Sequence[str]) -> int:
    """Returns when either side hung up. 1: the offload does not listen now; OVER: it never will again."""
    job = store_index.job_of(places, arguments[0])
    if job is None:
        sys.stderr.write("run %s has no store on this machine\n" % arguments[0])
        return 1
    if store_index.is_done(places, job.run):
        return OVER
    path, line = home_box_store.address(job.folder), socket.socket(socket.AF_UNIX)
    try:
        if os.stat(path).st_uid != os.getuid():
            raise PermissionError("%s belongs to another user" % path)
        line.connect(path)
    except OSError as error:
        sys.stderr.write("the offload of run %s does not listen: %s\n" % (job.run, error.strerror or error))
        return 1
    threading.Thread(target=_up, args=(line,), daemon=True).start()
    _down(line)
    return 0


def _up(line: socket.socket) -> None:
    """What the box says."""
    for block in iter(lambda: os.read(0, BLOCK_BYTES), b""):
        line.sendall(block)
    line.shutdown(socket.SHUT_RDWR)


def _down(line: socket.socket) -> None:
    """What it is asked."""
    for block in iter(lambda: line.recv(BLOCK_BYTES), b""):
        view = memoryview(block)
        while view:
            view = view[os.write(1, view) :]
