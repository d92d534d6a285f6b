"""The timer of the operating system that powers this machine off: guard `self` moves it, and fires in the end.

It goes through the program `gptctl-self`, which a launch with that guard put on the machine,
and through nothing else: on a computer without that program, or with that of another rental, nothing is powered off.

Example::

    read_timer()    # {'rental': '8xa100-1126-k3f9qa', 'by': 'systemd', 'left_s': 1799.0}; None: no timer here
    move("8xa100-1126-k3f9qa", 1800.0)
"""

from __future__ import annotations

import os
import shutil
from typing import Sequence, TypedDict

from ..system import processes
from .trouble import Trouble

PROGRAM = "gptctl-self"
WITHIN_S = 30.0
ALSO = ":/usr/local/sbin"
"""Its folder, which is not on every login's PATH."""


class Timer(TypedDict):
    """Whose timer it is, what keeps it, and the seconds until it fires; None: it does not run."""

    rental: str | None
    by: str
    left_s: float | None


def read_timer() -> Timer | None:
    """The timer as it stands: whose it is, what keeps it, and the seconds until it fires (None: it does not run)."""
    program = _program()
    if program is None:
        return None
    done = _run([program, "left"])
    words = done[1].split() if isinstance(done, tuple) and done[0] == 0 else []
    if len(words) != 3:
        return {"rental": None, "by": "none", "left_s": None}
    seconds = None if words[2] == "-" else float(words[2])
    return {"rental": words[0], "by": words[1], "left_s": seconds}


def move(rental: str, seconds: float) -> Trouble | None:
    """Sets the timer again. Whole seconds, rounded down: a deadline is never passed."""
    return _act("in", rental, "%d" % max(1, int(seconds)))


def power_off_now(rental: str) -> Trouble | None:
    """Powers the machine off, now."""
    return _act("now", rental)


def start_at_boot(rental: str, argv: Sequence[str]) -> Trouble | None:
    """What to start, as this user, when the machine boots the next times."""
    return _act("start", rental, processes.user_name(), *argv)


def _act(*words: str) -> Trouble | None:
    program = _program()
    if program is None:
        return Trouble("this machine has no %s: it was not launched to end itself" % PROGRAM, refused=True)
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    done = _run([*root, program, *words])
    if isinstance(done, Trouble):
        return done
    return Trouble(done[2].strip() or "%s %s ended with code %d" % (PROGRAM, words[0], done[0])) if done[0] else None


def _program() -> str | None:
    return shutil.which(PROGRAM, path=os.environ.get("PATH", os.defpath) + ALSO)


def _run(argv: Sequence[str]) -> tuple[int, str, str] | Trouble:
    import subprocess  # not for the status of a machine without the program

    try:
        done = subprocess.run(
            list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=WITHIN_S,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return Trouble("%s cannot be run: %s" % (argv[0], type(error).__name__))
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
