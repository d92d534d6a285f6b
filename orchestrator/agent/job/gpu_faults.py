"""What the kernel wrote of GPUs that failed while a job ran: NVIDIA's driver numbers its faults, Xid 48 and so on.

It looks only, and says nothing where the kernel's log may not be read.

Example::

    since(job_started_at)      # "; the kernel says: Xid 79 on 0000:3b:00 (fallen off the bus): reboot ..."
"""

from __future__ import annotations

import os
import re
import subprocess
import time

LINE = re.compile(r"^\[\s*([\d.]+)\].*NVRM: Xid \(PCI:([\da-fA-F:.]+)\): (\d+)", re.MULTILINE)
DEADLINE_S = 10.0
SLACK_S = 5.0
REPLACE = "take another machine; the card needs a reset or a replacement"
XIDS = {
    13: ("graphics engine exception", "a kernel's fault, or the card's if it comes again"),
    31: ("memory page fault", "a kernel's fault, or the card's if it comes again"),
    48: ("double-bit ECC error", REPLACE),
    63: ("memory row remapped", "reset the card before the next run"),
    64: ("memory row not remapped", REPLACE),
    74: ("NVLink error", REPLACE),
    79: ("fallen off the bus", "reboot, and look at heat and power; a second time, take another machine"),
    94: ("contained ECC error", "start again; a second time, take another machine"),
    95: ("uncontained ECC error", REPLACE),
    119: ("GSP timeout", "reboot the machine"),
    120: ("GSP error", "reboot the machine"),
    140: ("unrecovered ECC error", REPLACE),
}
"""Names and cures after NVIDIA's list of Xid errors."""


def since(started_at: float | None) -> str:
    """`; the kernel says: ...` for each fault after that time (UTC epoch seconds), or nothing."""
    if started_at is None:
        return ""
    began_s = _uptime_s() - (time.time() - started_at) - SLACK_S
    found = [(card, int(number)) for at, card, number in LINE.findall(_kernel_log()) if float(at) >= began_s]
    return "".join("; the kernel says: %s" % _words(card, number) for card, number in sorted(set(found)))


def _words(card: str, number: int) -> str:
    name, cure = XIDS.get(number, ("", "look it up in NVIDIA's list of Xid errors"))
    return "Xid %d on %s%s: %s" % (number, card, " (%s)" % name if name else "", cure)


def _uptime_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _kernel_log() -> str:
    """dmesg's lines; empty where this user may not read them."""
    for words in (["dmesg"], ["sudo", "-n", "dmesg"]):
        try:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE_S, check=False,
                env={**os.environ, "LC_ALL": "C"},
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return done.stdout.decode(errors="replace")
    return ""
