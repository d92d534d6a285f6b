"""`gptctl check HOST --driver`: whether a machine can drive your runs while this computer is off.

It puts gptctl there, which `--driver` would do anyway, and starts nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from orchestrator.cli.checks.finding import FAIL, OK, WARN, Finding
from orchestrator.cli.driver.on_the_driver import KEYS, Driver, driver_on
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import GptctlError
from orchestrator.core.formats import size

LEAST_BYTES = 5_000_000_000
"""Room for the checkpoints of a few runs."""
CLOCK_OFF_S = 30.0


def findings(home: Path, host: HostSpec, *, accept_new: bool) -> Iterator[Finding]:
    """One by one, as each is known."""
    try:
        with driver_on(home, host, accept_new=accept_new) as driver:
            asked = time.time()
            answer = driver.answer(["driver", "ready"], deadline_s=120)
            yield Finding("gptctl", OK, f"runs on {host.name}: {driver.python}, home {driver.folder}/home")
            yield _disk(host, float(str(answer["free_bytes"])))
            yield _clock(float(str(answer["time_s"])), asked, time.time())
            yield _sleep(driver)
    except GptctlError as error:
        yield Finding("gptctl", FAIL, error.message, error.hint)
        return
    yield from _keys(host)
    yield Finding(
        "reboot",
        WARN,
        "ends the driving, and its keys are in memory alone",
        f"after it: gptctl driver give RUN {host.name}",
    )


def _disk(host: HostSpec, free_bytes: float) -> Finding:
    fix = f"free some, or set `folder` of {host.name} to a larger disk"
    return Finding("disk", OK if free_bytes >= LEAST_BYTES else WARN, f"{size(free_bytes)} free for checkpoints", fix)


def _clock(there_s: float, asked_s: float, answered_s: float) -> Finding:
    off_s = max(asked_s - there_s, there_s - answered_s, 0.0)
    fix = "let it keep time: timedatectl set-ntp true"
    return Finding("clock", OK if off_s <= CLOCK_OFF_S else WARN, f"at most {off_s:.0f} s off", fix)


def _sleep(driver: Driver) -> Finding:
    done = driver.shell.run(["systemctl", "is-enabled", "sleep.target"], deadline_s=20)
    said = done.stdout.decode(errors="replace").strip() or done.stderr.decode(errors="replace").strip()
    fix = "sudo systemctl mask sleep.target suspend.target hibernate.target"
    return Finding(
        "sleep", OK if said == "masked" else WARN, f"sleep.target: {said.splitlines()[0] if said else '?'}", fix
    )


def _keys(host: HostSpec) -> Iterator[Finding]:
    """What it may hold is here to be sent; what it may not hold is named."""
    for kind, names in KEYS.items():
        here = [name for name in names if os.environ.get(name)]
        if kind in host.driver_may_hold and not here:
            yield Finding("keys", FAIL, f"{kind}: allowed, and none is set here", f"export {names[0]}=...")
        elif kind in host.driver_may_hold:
            yield Finding("keys", OK, f"{kind}: {', '.join(here)}, by stdin into memory")
        elif here:
            yield Finding("keys", OK, f"{kind}: not allowed, stays here (driver_may_hold)")
