"""The guard of a rented machine: it ends the machine it runs on, by the provider's API or by power-off, when nobody
needs it; needed.py decides that.

It depends on no laptop, supervisor or training. With a key it does not come back after a reboot, because the key in
memory is gone; then `armed` is false. Guard `self` needs no key: its timer is armed from the boot on (power_off.py),
and this process comes back with the machine.

Example (through the agent's verbs)::

    arm(places, {"instance_id": "i-1", "end": {"url", "body"}, "look_url", "lease_s", "deadline_s", "secrets": {...}})
    arm(places, {"kind": "self", "instance_id": "i-1", "rental": "8xa100-1126-k3f9qa", "lease_s", "deadline_s"})
    status(places)       # {'kind': 'key-on-box', 'armed': True, 'left_s': 1799.0, ...}
    finish(places, 60)   # the key's file goes, the machine a minute later
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from ..contract.names import Code, FileName, GuardKind
from ..system import detach, files, lease, processes
from ..system.paths import Places
from ..system.refusal import Refusal
from . import api_key, power_off, ways_to_end
from .needed import held, lease_left_s, left_s, runs

READY_WITHIN_S = 10.0
ANSWER_WITHIN_S = 3.0
NONE = {"kind": GuardKind.NONE, "armed": False, "ends_at": None}


def arm(places: Places, request: dict[str, Any]) -> dict[str, Any]:
    """Takes the order, the lease and the deadline, and sees to it that a guard runs. Again: renews all of them."""
    lease_s, deadline_s = _positive(request, "lease_s"), _positive(request, "deadline_s")
    by_power = request.get("kind") == GuardKind.SELF
    order = _power_order(request) if by_power else _key_order(request)
    order.update(instance_id=str(request.get("instance_id")), lease_s=lease_s, boot_id=processes.boot_id())
    files.make_folder(places.guard)
    lease.renew(places.guard, lease_s, deadline_s)
    if by_power:
        _take_timer(places, order["rental"], min(left_s(places, {}) + ways_to_end.slack(lease_s), deadline_s))
    else:
        api_key.put(places.root, request["secrets"]["api_key"])
    files.write_json(_file(places, FileName.ORDER), order)
    _start(places)
    _await_first_answer(places)
    return status(places)


def _key_order(request: dict[str, Any]) -> dict[str, Any]:
    from . import api_call  # not for a status, which makes no call

    key = (request.get("secrets") or {}).get("api_key")
    if not isinstance(key, str) or not key:
        raise Refusal(Code.NEEDS_INPUT, "the guard needs the key of the provider's API")
    end = {"url": api_call.checked_url((request.get("end") or {}).get("url")), "body": request["end"]["body"]}
    return {"kind": GuardKind.KEY_ON_BOX, "end": end, "look_url": api_call.checked_url(request.get("look_url"))}


def _power_order(request: dict[str, Any]) -> dict[str, Any]:
    """Only for the machine whose launch put a timer of this very rental on it: no other computer is powered off."""
    rental, timer = request.get("rental"), power_off.look()
    if not isinstance(rental, str) or not rental:
        raise Refusal(Code.BAD_REQUEST, "the guard needs the rental whose machine this is")
    if timer is None or timer["rental"] != rental:
        raise Refusal(
            Code.NO_TIMER,
            "this machine has no timer of rental %s that powers it off: its launch did not put one here" % rental,
            "cloud-init's log on the machine says why: /var/log/cloud-init-output.log",
        )
    return {"kind": GuardKind.SELF, "rental": rental}


def _take_timer(places: Places, rental: str, seconds: float) -> None:
    """The timer now goes by this lease. The guard's process moves it on, and comes back after a reboot."""
    program = [sys.executable, "-I", "-S", places.program, "guard"]
    trouble = power_off.move(rental, seconds) or power_off.start_at_boot(rental, program)
    if trouble:
        raise Refusal(Code.NO_TIMER, "the timer that powers this machine off: %s" % trouble.text)


def _await_first_answer(places: Places) -> None:
    """For a moment: so that the answer can say whether the key works. An API that is slow is waited for elsewhere."""
    deadline = time.monotonic() + ANSWER_WITHIN_S
    while time.monotonic() < deadline and notes(places).get("accepted") is None and not notes(places).get("problem"):
        time.sleep(0.02)


def _positive(request: dict[str, Any], key: str) -> float:
    value = request.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise Refusal(Code.BAD_REQUEST, "the guard needs %s as a number of seconds, got %r" % (key, value))
    return float(value)


def _file(places: Places, name: str) -> str:
    return os.path.join(places.guard, name)


def order_of(places: Places) -> dict[str, Any] | None:
    """What arm was told, if that still holds: an earlier boot's key is gone, a timer needs none."""
    found = files.read_json(_file(places, FileName.ORDER))
    if found is None or found.get("kind") == GuardKind.SELF:
        return found
    return found if found.get("boot_id") == processes.boot_id() else None


def notes(places: Places) -> dict[str, Any]:
    """What the guard's process wrote down of itself: who it is, when it asked the API, and what was wrong."""
    return files.read_json(_file(places, FileName.STATE)) or {}


def is_alive(places: Places) -> bool:
    """Whether a guard's process runs."""
    return processes.is_alive(notes(places).get("guard"))


def revive(places: Places) -> None:
    """Starts a guard that was killed. Nothing where none was armed, or where its key went with a reboot."""
    order = order_of(places)
    if order and not is_alive(places) and (order["kind"] == GuardKind.SELF or api_key.read(places.root)):
        _start(places)


def _start(places: Places) -> None:
    """One guard per machine: a second process finds the lock taken and goes."""
    deadline = time.monotonic() + READY_WITHIN_S
    if not is_alive(places):
        detach.spawn([sys.executable, "-I", "-S", places.code, "guard"], _file(places, FileName.LOG), [])
    while not is_alive(places):
        if time.monotonic() > deadline:
            said = files.tail(_file(places, FileName.LOG), 500).decode(errors="replace").strip()
            raise Refusal(Code.NO_GUARD, "the guard did not start: %s" % (said or "no word"))
        time.sleep(0.02)


def renew(places: Places, duration_s: float) -> None:
    """Keeps the machine for so long from now, never past the deadline. Nothing where no guard is armed."""
    if order_of(places):
        lease.renew(places.guard, duration_s, None)


def finish(places: Places, within_s: float) -> dict[str, Any]:
    """The machine is to be ended now by whoever asks; should that fail, the guard does it within_s from now.

    The key's file goes at once: from here on it is in the guard's memory only.
    """
    if order_of(places):
        lease.renew(places.guard, within_s, within_s)
        api_key.forget(places.root)
    return status(places)


def status(places: Places) -> dict[str, Any]:
    """What protects this machine now; changes nothing. Armed: a guard runs, and its key was accepted when last tried.

    `left_s`: until it acts as things stand; `lease_left_s`: before that it certainly does not; `deadline_left_s`: until
    it acts whatever happens; `holding`: how many checkpoints of ended trainings lie here that nobody fetched.
    """
    order = files.read_json(_file(places, FileName.ORDER))
    if order is None:
        return _status_of_timer(power_off.look())
    kind = order.get("kind", GuardKind.KEY_ON_BOX)
    known, own = notes(places), lease.read(places.guard) or {}
    alive = is_alive(places)
    found = {
        "kind": kind,
        "armed": alive and bool(known.get("accepted")),
        "ends_at": None,  # durations travel: this machine's clock may be wrong
        "left_s": left_s(places, dict(known.get("ended") or {})) if own else None,
        "lease_left_s": lease_left_s(places, own) if own else None,
        "deadline_left_s": own.get("deadline_left_s"),
        "holding": sum(len(held(places, run)) for run in runs(places)),
        "ending": alive and bool(known.get("ending")),
        "problem": known.get("problem") if alive else _why_not(places),
    }
    return _with_timer(found, power_off.look(), alive) if kind == GuardKind.SELF else found


def _with_timer(found: dict[str, Any], timer: dict[str, Any] | None, alive: bool) -> dict[str, Any]:
    """Guard `self` is armed as long as its timer runs, whatever became of the process; which then only acts sooner."""
    timer_s = timer["left_s"] if timer else None
    found.update(armed=timer_s is not None, timer_left_s=timer_s, by=timer["by"] if timer else "none")
    if not alive and timer_s is not None:
        found.update(left_s=timer_s, lease_left_s=min(timer_s, found["lease_left_s"] or 0.0))
    return found


def _status_of_timer(timer: dict[str, Any] | None) -> dict[str, Any]:
    """Of a machine that no agent was armed on yet: its own timer, or nothing."""
    if timer is None:
        return dict(NONE)
    left = timer["left_s"]
    return {
        **NONE, "kind": GuardKind.SELF, "armed": left is not None, "left_s": left, "lease_left_s": left,
        "deadline_left_s": left, "timer_left_s": left, "by": timer["by"], "holding": 0, "ending": False,
        "problem": None if left is not None else "the timer that powers this machine off does not run",
    }  # fmt: skip


def _why_not(places: Places) -> str:
    return "the guard's process was killed" if order_of(places) else "the machine was restarted: its key is gone"
