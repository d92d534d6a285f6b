"""The watcher: lists every machine with our tag in every cloud account, and ends those past their deadline.

It needs no ledger: an account and the machines' own names are enough. A second computer, or this one after its state
folder was lost, sees the same. It never touches a machine without our tag, and without a typed id it ends only what two
lists show past its deadline.

Example::

    accounts = accounts_of(inventory)
    seen = look(accounts, known)
    outcome = reap(seen, due(seen, look(accounts, known)))
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.core.config.settings import load_settings, revealed
from orchestrator.core.errors import NoAnswer, ProviderError, UserError
from orchestrator.core.fleet.end_proof import EndProof, Round
from orchestrator.core.fleet.orphans import (
    UNHEARD,
    UNLISTED,
    KnownRental,
    Orphan,
    deadline,
    past_in_both,
    survey,
    unlisted,
)
from orchestrator.core.fleet.watcher_mark import mark_path
from orchestrator.core.ports import Instance
from orchestrator.fleet.accounts import Account
from orchestrator.notify.send import ping
from orchestrator.remote.whole_files import landing

GONE_WITHIN_S = 120.0
"""How long a machine that was ordered to end may stay in the lists before this pass gives up."""
LOOK_EVERY_S = 2.0
GONE = ("terminated", "preempted")


@dataclass(frozen=True)
class Sight:
    """What one round of lists showed. `problems`: one line per account that did not answer; `warnings`: one per row
    that could not be read."""

    at: float
    rows: list[Orphan]
    instances: Mapping[tuple[str, str], Instance]
    accounts: Mapping[str, Account]
    problems: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    def account_of(self, row: Orphan) -> Account:
        """Where this row's machine was seen."""
        return next(
            self.accounts[name]
            for (name, _), each in self.instances.items()
            if (each.provider, each.instance_id) == (row.provider, row.instance_id)
        )


def look(accounts: Iterable[Account], known: Mapping[str, KnownRental], now: Callable[[], float] = time.time) -> Sight:
    """One list call per account, and one by id for each machine that the ledger holds and the list does not show. An
    account that does not answer is a problem, and no reason to skip the others; its machines are those of the ledger.

    known: the rentals of this ledger, by id.
    """
    instances: dict[tuple[str, str], Instance] = {}
    owners: dict[str, Account] = {}
    problems: dict[str, str] = {}
    warnings: list[str] = []
    for account in accounts:
        owners[account.name] = account
        try:
            listed = [each for each in account.provider.machines() if each.rental_id]
            hidden = _alive_unlisted(account, known, listed, now())
        except (ProviderError, UserError) as error:
            problems[account.name] = error.message
            held = unlisted(known, (), account.provider.name)
            listed, hidden = [], [replace(each, status=UNHEARD) for each in held]
        finally:
            warnings += account.provider.take_warnings()
        instances |= {(account.name, each.instance_id): each for each in (*listed, *hidden)}
    at = now()
    return Sight(at, survey(instances.values(), known, at), instances, owners, problems, warnings)


def _alive_unlisted(
    account: Account, known: Mapping[str, KnownRental], listed: Iterable[Instance], now: float
) -> list[Instance]:
    missing = unlisted(known, listed, account.provider.name)
    return [replace(each, status=UNLISTED) for each in missing if _may_live(account, each, now)]


def _may_live(account: Account, instance: Instance, now: float) -> bool:
    """By its id. No answer proves nothing, nor does it that a machine bought moments ago is not known yet: it may."""
    try:
        word = account.provider.find(instance.instance_id, instance.region)
    except NoAnswer:
        return True
    is_young = now - (instance.launched_at or 0.0) < account.provider.settle_s
    return word == "alive" or (word == "unknown" and is_young)


def due(first: Sight, second: Sight) -> list[Orphan]:
    """What may be ended without asking by id."""
    return past_in_both(first.rows, second.rows)


@dataclass(frozen=True)
class Reaped:
    """What became of a machine that was ordered to end: `gone` once its provider proved it (core/fleet/end_proof)."""

    row: Orphan
    gone: bool
    problem: str = ""


@dataclass
class _Target:
    """A machine that is being ended."""

    row: Orphan
    instance: Instance
    account: Account
    proof: EndProof = field(default=EndProof())
    problem: str = ""


def reap(
    seen: Sight,
    rows: Sequence[Orphan],
    *,
    by_id: bool = False,
    within_s: float = GONE_WITHIN_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Reaped]:
    """Ends these machines and asks until each is proven gone; one that is not within within_s is reported as there.

    Ending is repeatable, so a machine that stays is ordered to end again, unless its deadline was moved meanwhile; one
    that was named by_id has no deadline to respect.
    """
    chosen = {(row.provider, row.instance_id): row for row in rows}
    targets = [
        _Target(chosen[each.provider, each.instance_id], each, seen.accounts[key[0]])
        for key, each in seen.instances.items()
        if (each.provider, each.instance_id) in chosen
    ]
    until = clock() + within_s
    while True:
        for account in {target.account.name: target.account for target in targets}.values():
            _one_round(account, [each for each in targets if each.account is account], clock(), by_id=by_id)
        if all(target.proof.complete for target in targets) or clock() >= until:
            break
        sleep(LOOK_EVERY_S)
    for target in targets:
        if target.proof.complete and target.instance.rental_id:
            target.problem = _tidied(target.account, target.instance.rental_id)
    return [Reaped(target.row, target.proof.complete, target.problem) for target in targets]


def _one_round(account: Account, targets: Sequence[_Target], at: float, *, by_id: bool) -> None:
    """Lists the account once, and orders and asks for each target that is not proven gone."""
    try:
        listed: dict[str, Instance] | None = {each.instance_id: each for each in account.provider.machines()}
    except (ProviderError, UserError) as error:
        listed = None
        for target in targets:
            target.problem = error.message
    for target in targets:
        if not target.proof.complete:
            _end(target, listed, at, by_id=by_id)


def _end(target: _Target, listed: Mapping[str, Instance] | None, at: float, *, by_id: bool) -> None:
    shown = None if listed is None else listed.get(target.instance.instance_id)
    alive = shown is not None and shown.status not in GONE
    if shown is not None and alive and not by_id and deadline(shown) != deadline(target.instance):
        target.problem = "its deadline was moved meanwhile: left alone"
        return
    provider, trouble, ordered, word = target.account.provider, "", False, None
    try:
        ordered = target.proof.needs_order and provider.release(shown or target.instance)
    except (ProviderError, UserError) as error:  # it may have ended by itself
        trouble = error.message
    try:
        word = provider.find(target.instance.instance_id, target.instance.region)
    except (ProviderError, UserError) as error:
        trouble = trouble or error.message
    age_s = math.inf if target.row.age_s is None else target.row.age_s
    settled = age_s > min(provider.settle_s, GONE_WITHIN_S / 2)
    seen = Round(at, word, None if listed is None else alive, rows=len(listed or ()), settled=settled)
    target.proof = target.proof.after(seen, ordered=ordered)
    unconfirmed = trouble or "it was ordered to end, and its provider does not confirm it yet"
    target.problem = "" if target.proof.agreeing else unconfirmed


def _tidied(account: Account, rental_id: str) -> str:
    """Asks once for what was made beside the machine. What stays costs nothing."""
    try:
        return "; ".join(account.provider.tidy(rental_id))
    except (ProviderError, UserError) as error:
        return error.message


def leave_mark(home: Path, seen: Sight, reaped: Sequence[Reaped], environment: Mapping[str, str] | None = None) -> None:
    """Says that a pass was made: the mark file, and the ping if one is set and every account answered.

    `ok` is false when an account did not answer or a machine past its deadline is still there.
    """
    stuck = [each for each in reaped if not each.gone]
    ok = not seen.problems and not stuck
    words = f"{len(seen.rows)} machines, {len(reaped) - len(stuck)} ended, {len(stuck)} could not be ended"
    mark = {
        "time": seen.at,
        "ok": ok,
        "providers": sorted({account.provider.name for account in seen.accounts.values()}),
        "stuck": [each.row.instance_id for each in stuck],
        "result": "; ".join([words, *(f"{name}: {text}" for name, text in seen.problems.items())]),
    }
    with landing(mark_path(home)) as file:
        file.write(json.dumps(mark).encode() + b"\n")
    address = load_settings(home).watcher.ping_url
    if address and ok:
        # A dead man's alarm that cannot be reached goes off: that is its purpose.
        with suppress(UserError):
            ping(revealed(address, os.environ if environment is None else environment))
