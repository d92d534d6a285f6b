"""Says which machines are alive although their rental was released or their run has ended, on every command that lists.

Example: `code = show(of_ledger(ledger))`         # 7 while there is one
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.core.errors import LedgerDamaged, StillBilling
from orchestrator.core.fleet.orphans import LEFT_OVER_S, UNHEARD, Orphan
from orchestrator.core.formats import dollars
from orchestrator.ledger.ledger import Ledger

if TYPE_CHECKING:
    from orchestrator.fleet.left_over import LeftOver


def of_ledger(ledger: Ledger) -> LeftOver | None:
    """Asks the accounts. None for a ledger that rented no machine lately."""
    if not ledger.rented_since(time.time() - LEFT_OVER_S):
        return None
    # Only now: providers cost more time than the rows of `status`.
    from orchestrator.fleet.left_over import left_over

    return left_over(ledger, time.time())


def of_home(home: Path) -> LeftOver | None:
    """The same; a damaged ledger says nothing."""
    try:
        with Ledger.open(home, time.time) as ledger:
            return of_ledger(ledger)
    except LedgerDamaged:
        return None


def show(found: LeftOver | None, warnings: Iterable[str] = ()) -> int:
    """Prints a line per machine, odd row and silent account; `warnings`: odd rows of other lists. The exit code."""
    from orchestrator.cli.screen import screen

    show_warnings([*(found.warnings if found else ()), *warnings])
    for name, text in (found.problems if found else {}).items():
        screen.talk(f"{name} did not answer, and a machine there may be alive: {text}", style="yellow")
    for row in rows(found):
        lives = "may be alive" if row.status == UNHEARD else "is alive"
        screen.talk(
            f"{row.instance_id} ({row.machine}, {dollars(row.price_per_hour_usd)}/h) {lives}, and nothing needs it: "
            f"rental {row.rental} was released or its run has ended. To end it:",
            style="bold red",
            commands=[f"gptctl orphans --reap {row.instance_id}"],
        )
    return exit_code(found)


def show_warnings(lines: Iterable[str]) -> None:
    """Rows of providers' lists that could not be read, each line once."""
    from orchestrator.cli.screen import screen

    for line in dict.fromkeys(lines):
        screen.talk(f"warning: {line}", style="yellow")


def rows(found: LeftOver | None) -> tuple[Orphan, ...]:
    """The machines."""
    return found.rows if found else ()


def exit_code(found: LeftOver | None) -> int:
    """7 while a machine is left over, or may be."""
    return StillBilling.exit_code if found and (found.rows or found.problems) else 0
