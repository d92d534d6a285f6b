"""The guard of a rented machine: it ends the machine it runs on, by the provider's API or by power-off, when it is
not needed; needed.py decides that.

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

import sys
import time
from typing import Mapping

from ..contract.answers import GuardStatus
from ..contract.names import Code, FileName, GuardKind
from ..contract.requests import EndCall
from ..job import fields
from ..system import detach, files, lease, processes
from ..system.paths import Places
from ..system.refusal import Refusal
from . import api_key, power_off, ways_to_end
from .needed import lease_left_s, left_s
from .observation import held, observe
from .records import Order, path_of, read_notes, read_order, read_valid_order

READY_WITHIN_S = 10.0
ANSWER_WITHIN_S = 3.0


def arm(places: Places, request: Mapping[str, object]) -> GuardStatus:
    """Takes the order, the lease and the deadline, and sees to it that a guard runs. Again: renews all of them."""
    lease_s, deadline_s = _positive(request, "lease_s"), _positive(request, "deadline_s")
    by_power = request.get("kind") == GuardKind.SELF
    order = _power_order(request) if by_power else _key_order(request)
    order["instance_id"], order["lease_s"] = str(request.get("instance_id")), lease_s
    order["boot_id"] = processes.boot_id()
    files.make_folder(places.guard)
    lease.renew(places.guard, lease_s, deadline_s)
    if by_power:
        seconds = left_s(observe(places, {})) + ways_to_end.slack(lease_s)
        _take_timer(places, order["rental"], min(seconds, deadline_s))
    else:
        api_key.put(places.root, _key(request))
    files.write_json(path_of(places, FileName.ORDER), order)
    _start(places)
    _await_first_answer(places)
    return status(places)


def _key(request: Mapping[str, object]) -> str:
    key = fields.mapping(request, "secrets").get("api_key")
    if not isinstance(key, str) or not key:
        raise Refusal(Code.NEEDS_INPUT, "the guard needs the key of the provider's API")
    return key


def _key_order(request: Mapping[str, object]) -> Order:
    from . import api_call  # not for a status, which makes no call

    _key(request)
    asked = fields.mapping(request, "end")
    end = EndCall(url=api_call.checked_url(asked.get("url")), body=dict(fields.mapping(asked, "body")))
    return {"kind": GuardKind.KEY_ON_BOX, "end": end, "look_url": api_call.checked_url(request.get("look_url"))}


def _power_order(request: Mapping[str, object]) -> Order:
    """Only for the machine whose launch put a timer of this very rental on it: no other computer is powered off."""
    rental, timer = request.get("rental"), power_off.read_timer()
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
    while (
        time.monotonic() < deadline
        and read_notes(places).get("accepted") is None
        and not read_notes(places).get("problem")
    ):
        time.sleep(0.02)


def _positive(request: Mapping[str, object], key: str) -> float:
    value = request.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise Refusal(Code.BAD_REQUEST, "the guard needs %s as a number of seconds, got %r" % (key, value))
    return float(value)


def is_alive(places: Places) -> bool:
    """Whether a guard's process runs."""
    return processes.is_alive(read_notes(places).get("guard"))


def revive(places: Places) -> None:
    """Starts a guard that was killed. Nothing where none was armed, or where its key went with a reboot."""
    order = read_valid_order(places)
    if order and not is_alive(places) and (order["kind"] == GuardKind.SELF or api_key.read(places.root)):
        _start(places)


def _start(places: Places) -> None:
    """One guard per machine: a second process finds the lock taken and goes."""
    deadline = time.monotonic() + READY_WITHIN_S
    if not is_alive(places):
        detach.spawn([sys.executable, "-I", "-S", places.code, "guard"], path_of(places, FileName.LOG), [])
    while not is_alive(places):
        if time.monotonic() > deadline:
            said = files.tail(path_of(places, FileName.LOG), 500).decode(errors="replace").strip()
            raise Refusal(Code.NO_GUARD, "the guard did not start: %s" % (said or "no word"))
        time.sleep(0.02)


def renew(places: Places, duration_s: float) -> None:
    """Keeps the machine for so long from now, never past the deadline. Nothing where no guard is armed."""
    if read_valid_order(places):
        lease.renew(places.guard, duration_s, None)


def finish(places: Places, within_s: float) -> GuardStatus:
    """The caller ends the machine now; should that fail, the guard does it within_s from now.

    The key's file goes at once: from here on it is in the guard's memory only.
    """
    if read_valid_order(places):
        lease.renew(places.guard, within_s, within_s)
        api_key.forget(places.root)
    return status(places)


def status(places: Places) -> GuardStatus:
    """What protects this machine now; changes nothing. Armed: a guard runs, and its key was accepted when last tried.

    `left_s`: until it acts as things stand; `lease_left_s`: before that it certainly does not; `deadline_left_s`: until
    it acts whatever happens; `holding`: how many checkpoints of ended trainings are only here.
    """
    order = read_order(places)
    if order is None:
        return _status_of_timer(power_off.read_timer())
    kind = order.get("kind", GuardKind.KEY_ON_BOX)
    known, own = read_notes(places), lease.read(places.guard)
    facts = observe(places, dict(known.get("ended") or {}))
    alive = is_alive(places)
    found: GuardStatus = {
        "kind": kind,
        "armed": alive and bool(known.get("accepted")),
        "ends_at": None,  # durations travel: this machine's clock may be wrong
        "left_s": left_s(facts) if own else None,
        "lease_left_s": lease_left_s(facts) if own else None,
        "deadline_left_s": own["deadline_left_s"] if own else None,
        "holding": held(places),
        "ending": alive and bool(known.get("ending")),
        "problem": known.get("problem") if alive else _why_not(places),
    }
    return _with_timer(found, power_off.read_timer(), alive) if kind == GuardKind.SELF else found


def _with_timer(found: GuardStatus, timer: power_off.Timer | None, alive: bool) -> GuardStatus:
    """Guard `self` is armed as long as its timer runs, whatever became of the process; which then only acts sooner."""
    timer_s = timer["left_s"] if timer else None
    found["armed"], found["timer_left_s"] = timer_s is not None, timer_s
    found["by"] = timer["by"] if timer else "none"
    if not alive and timer_s is not None:
        found["left_s"], found["lease_left_s"] = timer_s, min(timer_s, found["lease_left_s"] or 0.0)
    return found


def _status_of_timer(timer: power_off.Timer | None) -> GuardStatus:
    """Of a machine that no agent was armed on yet: its own timer, or nothing."""
    if timer is None:
        return {"kind": GuardKind.NONE, "armed": False, "ends_at": None}
    left = timer["left_s"]
    return {
        "kind": GuardKind.SELF, "armed": left is not None, "ends_at": None, "left_s": left, "lease_left_s": left,
        "deadline_left_s": left, "timer_left_s": left, "by": timer["by"], "holding": 0, "ending": False,
        "problem": None if left is not None else "the timer that powers this machine off does not run",
    }  # fmt: skip


def _why_not(places: Places) -> str:
    return (
        "the guard's process was killed" if read_valid_order(places) else "the machine was restarted: its key is gone"
    )
