"""Leaving the session that started us: setsid between two forks, so that no terminal, sshd or laptop can end the job.

The same on every machine, with systemd and without. The grandchild becomes a new program at once: nothing of the
request, least of all its secrets, stays in an environment or an argv.

Example::

    pid = spawn([sys.executable, "-I", "-S", pyz, "supervise", run, name], log, keep=[3, 4])
"""

from __future__ import annotations

import os
import signal
from typing import Sequence


def spawn(argv: Sequence[str], log: str, keep: Sequence[int]) -> None:
    """Starts argv as a daemon with the descriptors `keep` open, stdin from nowhere and output to the file `log`."""
    first = os.fork()
    if first == 0:
        try:
            _become(argv, log, keep)
        finally:
            # Only reached when something above failed: this copy must never return into the caller's code.
            os._exit(70)
    os.waitpid(first, 0)


def _become(argv: Sequence[str], log: str, keep: Sequence[int]) -> None:
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    os.umask(0o077)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for target, source in ((0, nowhere), (1, output), (2, output)):
        os.dup2(source, target)
    for descriptor in keep:
        os.set_inheritable(descriptor, True)
    os.execv(argv[0], list(argv))
