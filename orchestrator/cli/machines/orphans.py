"""`gptctl orphans`: lists every machine with our tag in every account, and ends those that were left behind."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.cli.machines.left_over import show_warnings
from orchestrator.cli.open_ledger import open_home
from orchestrator.cli.screen import screen
from orchestrator.cli.screen.tables import Column
from orchestrator.core.config.inventory import load_inventory
from orchestrator.core.errors import LedgerDamaged, UserError
from orchestrator.core.fleet.orphans import KnownRental, Orphan, named
from orchestrator.core.fleet.watcher_mark import last_mark
from orchestrator.core.formats import dollars, duration, local_time
from orchestrator.core.states import State, worst
from orchestrator.fleet.accounts import Account, accounts_of
from orchestrator.fleet.known_rentals import known_rentals
from orchestrator.fleet.left_over import lives
from orchestrator.fleet.relapses import close, reopen, uncounted
from orchestrator.fleet.watcher import Reaped, Sight, due, leave_mark, look, reap
from orchestrator.ledger.ledger import Ledger
from orchestrator.notify.send import notify, notify_without_run

COLUMNS = (
    Column("INSTANCE"),
    Column("RENTAL", leaves=2),
    Column("MACHINE", leaves=4),
    Column("STATUS"),
    Column("AGE", right=True, leaves=5),
    Column("$/H", right=True),
    Column("AT MOST", right=True, leaves=1),
    Column("ENDS", leaves=3),
    Column("KNOWN", leaves=6),
)
BETWEEN_LISTS_S = 1.0
STILL_BILLING = 7
NO_ANSWER = 3


@dataclass(frozen=True)
class Wish:
    """What you typed after `gptctl orphans`."""

    machine: str | None
    reap: bool
    adopt: bool
    install_timer: bool
    inventory: Path | None


def orphans(wish: Wish, *, yes: bool, as_json: bool) -> int:
    """Lists, and reaps or adopts. Exit 7 while a machine past its deadline is up, 3 if an account does not answer."""
    if sum((wish.reap, wish.adopt, wish.install_timer)) > 1 or (wish.machine and not (wish.reap or wish.adopt)):
        raise UserError("orphans takes one of --reap [ID], --adopt [ID] and --install-timer", "gptctl orphans --help")
    if wish.install_timer:
        from orchestrator.cli.machines.watcher import install

        return install(wish.inventory, yes=yes, as_json=as_json)
    home = open_home()
    accounts = accounts_of(load_inventory(wish.inventory, home))
    known = _known(home)
    seen = look(accounts, known)
    _count_again(home, seen)
    reaped: list[Reaped] = []
    if wish.reap:
        seen, reaped = _reap(home, accounts, known, seen, wish.machine, yes=yes)
        _count_no_more(home, seen, reaped)
    if wish.adopt:
        seen = _adopt(home, seen, wish.machine)
    return _show(seen, reaped, as_json=as_json)


def _known(home: Path) -> dict[str, KnownRental]:
    """The rentals of this ledger. A damaged ledger must not keep a forgotten machine alive."""
    try:
        with Ledger.open(home, time.time) as ledger:
            return known_rentals(ledger)
    except LedgerDamaged as error:
        screen.talk(f"{error.message}; continuing without it", style="yellow")
        return {}


def _count_again(home: Path, seen: Sight) -> None:
    """What lives although its rental was released costs from now on in this ledger, too; one list alone may lag."""
    if any(row.known and row.alive for row in seen.rows):
        with Ledger.open(home, time.time) as ledger:
            back = [row for row in uncounted(ledger, seen.rows) if lives(seen.account_of(row), row)]
            reopen(ledger, back, time.time())


def _count_no_more(home: Path, seen: Sight, reaped: Sequence[Reaped]) -> None:
    gone = [each.row for each in reaped if each.gone and each.row.known]
    if gone:
        with Ledger.open(home, time.time) as ledger:
            for row in gone:
                close(ledger, seen.account_of(row).provider, row, time.time())


def _reap(
    home: Path,
    accounts: Sequence[Account],
    known: Mapping[str, KnownRental],
    seen: Sight,
    wanted: str | None,
    *,
    yes: bool,
) -> tuple[Sight, list[Reaped]]:
    if wanted is not None:
        rows = named(seen.rows, wanted)
        agreed = yes or screen.ask(_question(home, rows), f"gptctl orphans --reap {wanted}")
        return seen, reap(seen, rows, by_id=True) if agreed else []
    time.sleep(BETWEEN_LISTS_S)
    first, seen = seen, look(accounts, known)
    rows = due(first, seen)
    reaped: list[Reaped] = []
    if rows and (yes or _is_agreed_on_terminal(rows)):
        reaped = reap(seen, rows)
    _notify_reaped(home, reaped)
    leave_mark(home, seen, reaped)
    return seen, reaped


def _adopt(home: Path, seen: Sight, wanted: str | None) -> Sight:
    from orchestrator.fleet.adopt import adopt

    with Ledger.open(home, time.time) as ledger:
        for each in adopt(ledger, seen, named(seen.rows, wanted)):
            following = f". Next: gptctl release {each.run}" if each.run else ""
            screen.talk(f"{each.rental}: {each.what}{following}")
        known = {rental.id for rental in ledger.rentals()}
    return replace(seen, rows=[replace(row, known=row.rental in known) for row in seen.rows])


def _is_agreed_on_terminal(rows: Sequence[Orphan]) -> bool:
    """Without a terminal nobody has to agree: you agreed to these deadlines when you rented the machines."""
    if not screen.on_terminal():
        return True
    names = ", ".join(f"{row.instance_id} ({row.machine}, {dollars(row.price_per_hour_usd)}/h)" for row in rows)
    return screen.ask(f"End {names}, past their deadline? What is on them is LOST.", "gptctl orphans --reap")


def _question(home: Path, rows: Sequence[Orphan]) -> str:
    """States price, age and, if this ledger knows one, the unfinished run."""
    runs = [_runs(home, row) for row in rows]
    parts = [
        f"{row.instance_id} ({row.machine}, {dollars(row.price_per_hour_usd)}/h, up {duration(row.age_s)}"
        + (f", run {', '.join(own)} is on it)" if own else ")")
        for row, own in zip(rows, runs, strict=True)
    ]
    rescue = "".join(f" To prevent: gptctl fetch {run}" for own in runs for run in own)
    return f"End {', '.join(parts)}? What is on it is LOST.{rescue}"


def _runs(home: Path, row: Orphan) -> list[str]:
    """The unfinished runs on it that this ledger knows."""
    if not row.known:
        return []
    with Ledger.open(home, time.time) as ledger:
        return [run.id for run in ledger.runs(rental_id=row.rental) if run.state is not State.ENDED]


def _notify_reaped(home: Path, reaped: Sequence[Reaped]) -> None:
    """Notifies of machines that ended and, once and not at every pass, of those that would not end."""
    mark = last_mark(home)
    for each in reaped:
        name = f"{each.row.instance_id} ({each.row.machine}, {dollars(each.row.price_per_hour_usd)}/h)"
        event, text = "reaped", f"{name} was past its deadline; gptctl ended it"
        if not each.gone:
            event, text = "still-billing", f"{name} is past its deadline and did not end: {each.problem}"
        if each.gone or mark is None or each.row.instance_id not in mark.stuck:
            _notify_of(home, each.row, event, text)


def _notify_of(home: Path, row: Orphan, event: str, text: str) -> None:
    """By its runs, where this ledger knows them."""
    if row.known:
        with Ledger.open(home, time.time) as ledger:
            runs = ledger.runs(rental_id=row.rental)
            for run in runs:
                notify(ledger, run.id, event, text, listener=lambda warning: screen.talk(warning.text))
        if runs:
            return
    for problem in notify_without_run(home, event, row.rental, text):
        screen.talk(f"notifying of {event}: {problem}", style="yellow")


def _show(seen: Sight, reaped: Sequence[Reaped], *, as_json: bool) -> int:
    gone = {(each.row.provider, each.row.instance_id) for each in reaped if each.gone}
    rows = [row for row in seen.rows if (row.provider, row.instance_id) not in gone]
    if as_json:
        print(json.dumps(_json(seen, rows, reaped), indent=1))
    else:
        _print_rows(seen, rows, reaped)
    stuck = any(not each.gone for each in reaped) or any(row.past or row.over for row in rows)
    return worst(STILL_BILLING if stuck else 0, NO_ANSWER if seen.problems else 0)


def _json(seen: Sight, rows: Sequence[Orphan], reaped: Sequence[Reaped]) -> dict[str, Any]:
    ended = [{**each.row.to_json(), "gone": each.gone, "problem": each.problem} for each in reaped]
    found = {"machines": [row.to_json() for row in rows], "reaped": ended, "problems": dict(seen.problems)}
    return {**found, "warnings": list(seen.warnings)}


def _print_rows(seen: Sight, rows: Sequence[Orphan], reaped: Sequence[Reaped]) -> None:
    if rows:
        screen.show_table(COLUMNS, [_cells(row) for row in rows])
    for row in rows:
        if why := _why(row):
            screen.talk(f"{row.instance_id}: {why}. To end it:", style="bold red", commands=[_reap_command(row)])
    for each in reaped:
        if each.gone:
            print(f"destroyed {each.row.instance_id} ({each.row.rental})", flush=True)
        else:
            screen.talk(
                f"{each.row.instance_id} is still there, at {dollars(each.row.price_per_hour_usd)}/h: {each.problem}. "
                "To try again:",
                style="bold red",
                commands=[_reap_command(each.row)],
            )
    show_warnings(seen.warnings)
    for name, text in seen.problems.items():
        screen.talk(f"{name} did not answer: {text}", style="yellow")
    if not seen.accounts:
        screen.talk("no cloud account: the inventory has no paid host, and no API key is set")
    elif not rows and not reaped and not seen.problems:
        screen.talk(f"no gptctl machine in {', '.join(seen.accounts)}")


def _cells(row: Orphan) -> list[str]:
    return [
        row.instance_id,
        row.rental,
        row.machine,
        row.status,
        duration(row.age_s),
        dollars(row.price_per_hour_usd),
        dollars(row.cost_usd),
        local_time(row.ends_at) if row.ends_at is not None else "never",
        "yes" if row.known else "no",
    ]


def _reap_command(row: Orphan) -> str:
    return f"gptctl orphans --reap {row.instance_id}"


def _why(row: Orphan) -> str:
    """What is wrong with a machine; empty if nothing is."""
    return "past its deadline" if row.past else "its run has ended" if row.over else ""
