"""What a folder is good for, tried out: a file is written, locked and run there, and removed again.

Disks lie about being usable: full of files or over a quota while there is space, on NFS without locks, mounted noexec.

Example::

    tried("/root/.gptctl")      # {'write': '', 'lock': 'No locks available', 'run': ''}
"""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import tempfile

from ..contract.facts import Folder

SCRIPT = b"#!/bin/sh\nexit 0\n"
DEADLINE_S = 10.0


def tried(root: str) -> Folder:
    """The system's words to each of the three, empty where it works; what was not tried is empty, too."""
    found = Folder(write="", lock="", run="")
    path = ""
    try:
        descriptor, path = tempfile.mkstemp(dir=root, prefix=".trial-")
        try:
            os.write(descriptor, SCRIPT)
            os.fsync(descriptor)
            found["lock"] = _lock(descriptor)
            os.fchmod(descriptor, 0o700)
        finally:
            os.close(descriptor)
        found["run"] = _run(path)
    except OSError as error:
        found["write"] = error.strerror or str(error)
    finally:
        if path and os.path.exists(path):
            os.unlink(path)
    return found


def _lock(descriptor: int) -> str:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _run(path: str) -> str:
    try:
        subprocess.run([path], stdin=subprocess.DEVNULL, timeout=DEADLINE_S, check=False)
    except subprocess.TimeoutExpired:
        return "no answer within %d s" % DEADLINE_S
    except OSError as error:
        # ETXTBSY: another thread forked while the file was open; that says nothing of the file system.
        return "" if error.errno == errno.ETXTBSY else error.strerror or str(error)
    return ""
