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
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.core.config.settings import load_settings, revealed
from orchestrator.core.errors import ProviderError, UserError
from orchestrator.core.fleet.orphans import ENDED, Orphan, deadline, past_in_both, survey
from orchestrator.core.fleet.watcher_mark import mark_path
from orchestrator.core.ports import Instance
from orchestrator.fleet.accounts import Account
from orchestrator.notify.send import ping
from orchestrator.remote.whole_files import landing

GONE_WITHIN_S = 120.0
"""How long a machine that was ordered to end may stay in the lists before this pass gives up."""
LOOK_EVERY_S = 2.0


@dataclass(frozen=True)
class Sight:
    """What one round of lists showed. `problems`: one line per account that did not answer."""

    at: float
    rows: list[Orphan]
    instances: Mapping[tuple[str, str], Instance]
    accounts: Mapping[str, Account]
    problems: Mapping[str, str] = field(default_factory=dict)


def look(accounts: Iterable[Account], known: Mapping[str, float], now: Callable[[], float] = time.time) -> Sight:
    """One list call per account. An account that does not answer is a problem, and no reason to skip the others.

    known: when each rental of this ledger was made.
    """
    instances: dict[tuple[str, str], Instance] = {}
    owners: dict[str, Account] = {}
    problems: dict[str, str] = {}
    for account in accounts:
        owners[account.name] = account
        try:
            found = [each for each in account.provider.machines() if each.rental_id]
        except (ProviderError, UserError) as error:
            problems[account.name] = error.message
            continue
        instances |= {(account.name, each.instance_id): each for each in found}
    at = now()
    return Sight(at, survey(instances.values(), known, at), instances, owners, problems)


def due(first: Sight, second: Sight) -> list[Orphan]:
    """What may be ended without asking by id."""
    return past_in_both(first.rows, second.rows)


@dataclass(frozen=True)
class Reaped:
    """What became of a machine that was ordered to end: `gone` once two lists in a row showed no trace of it."""

    row: Orphan
    gone: bool
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
    """Ends these machines and lists until each is gone, twice; what is not gone within within_s is reported as there.

    Ending is repeatable: a machine that stays gets the order again, unless its deadline was moved; one that was
    named by_id has no deadline to respect.
    """
    wanted = {(row.provider, row.instance_id): row for row in rows}
    targets = {key: each for key, each in seen.instances.items() if (each.provider, each.instance_id) in wanted}
    problems = {key: _end(seen.accounts[key[0]], each) for key, each in targets.items()}
    missed, until = dict.fromkeys(targets, 0), clock() + within_s
    while targets and any(count < 2 for count in missed.values()) and clock() < until:
        sleep(LOOK_EVERY_S)
        for name in {key[0] for key, count in missed.items() if count < 2}:
            _count_missing(seen, name, missed, problems, by_id=by_id)
    for key, each in targets.items():
        if missed[key] >= 2 and each.rental_id:
            problems[key] = _tidied(seen.accounts[key[0]], each.rental_id) or problems[key]
    return [
        Reaped(wanted[each.provider, each.instance_id], missed[key] >= 2, problems[key])
        for key, each in targets.items()
    ]


def _end(account: Account, instance: Instance) -> str:
    """Asks once. Returns what went wrong, in words; whether it is gone, only lists tell."""
    try:
        account.provider.release(instance)
    except (ProviderError, UserError) as error:
        return error.message
    return ""


def _tidied(account: Account, rental_id: str) -> str:
    """Asks once for what was made beside the machine. What stays costs nothing."""
    try:
        return "; ".join(account.provider.tidy(rental_id))
    except (ProviderError, UserError) as error:
        return error.message


def _count_missing(
    seen: Sight, name: str, missed: dict[tuple[str, str], int], problems: dict[tuple[str, str], str], *, by_id: bool
) -> None:
    """One more list of this account: what it does not show is missing once more; what is alive gets the order again."""
    ours = [key for key, times in missed.items() if key[0] == name and times < 2]
    try:
        there = {each.instance_id: each for each in seen.accounts[name].provider.machines()}
    except (ProviderError, UserError) as error:
        problems.update(dict.fromkeys(ours, error.message))
        return
    for key in ours:
        found = there.get(key[1])
        missed[key] = missed[key] + 1 if found is None or found.status in ("terminated", "preempted") else 0
        if found is None or found.status in ENDED:
            continue
        if by_id or deadline(found) == deadline(seen.instances[key]):
            problems[key] = _end(seen.accounts[name], found) or "it was ordered to end, and is still listed as running"
        else:
            problems[key] = "its deadline was moved meanwhile: left alone"


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
