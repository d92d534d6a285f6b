"""`gptctl cost --reconcile FILE.csv`: compares the ledger with an invoice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from orchestrator.cli.open_ledger import open_ledger
from orchestrator.cli.screen import screen
from orchestrator.cli.screen.tables import Column
from orchestrator.core.errors import UserError
from orchestrator.core.estimate import Estimate
from orchestrator.core.formats import DASH, dollars, dollars_between
from orchestrator.core.money.billing import SettledBill
from orchestrator.core.money.cost import spent
from orchestrator.core.money.invoice import Charge, Entry, Line, compare, read_charges
from orchestrator.core.ports import UNPAID
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Rental

COLUMNS = (
    Column("RENTAL"),
    Column("INSTANCE", leaves=1),
    Column("OURS", right=True),
    Column("INVOICE", right=True),
    Column("DIFFERENCE", right=True),
    Column("NOTE", leaves=2, prose=True),
)
MOST_BYTES = 16 << 20


def reconcile(file: Path, *, as_json: bool) -> int:
    """Prints one row per rental that either side has, a total, and what the invoice has for other machines."""
    charges = _charges(file)
    with open_ledger() as ledger:
        lines = compare(charges, _entries(ledger))
    ours = sum(line.ours.cost_usd for line in lines if line.ours)
    matched = sum(line.invoice_usd or 0.0 for line in lines)
    total = sum(charge.amount_usd for charge in charges)
    if as_json:
        sums = {"ours_usd": ours, "invoice_usd": matched, "other_usd": total - matched}
        differing = sum(not line.agrees for line in lines)
        print(json.dumps({"lines": [line.to_json() for line in lines], **sums, "differing": differing}, indent=1))
        return 0
    total_row = ["total", "", dollars(ours), dollars(matched), dollars(matched - ours), ""]
    screen.show_table(COLUMNS, [*map(_cells, lines), total_row])
    if abs(total - matched) > 0.005:
        screen.talk(f"{dollars(total - matched)} of the invoice is for machines that gptctl did not rent")
    return 0


def _charges(file: Path) -> Sequence[Charge]:
    try:
        if file.stat().st_size > MOST_BYTES:
            raise UserError(f"{file} is larger than {MOST_BYTES >> 20} MiB, so it is not an invoice", "check the path")
        return read_charges(file.read_text(encoding="utf-8"), str(file))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}", "check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text", "export it as CSV (UTF-8)") from error


def _entries(ledger: Ledger) -> list[Entry]:
    intervals = ledger.all_intervals()
    of_rental: dict[str, list[str]] = {}
    for run in ledger.runs(forgotten=True):
        of_rental.setdefault(run.rental_id or "", []).append(run.id)
    return [
        _entry(
            rental,
            of_rental.get(rental.id, []),
            sum(spent(intervals.get(run_id, ())) for run_id in of_rental.get(rental.id, [])),
        )
        for rental in ledger.rentals()
        if rental.provider not in UNPAID
    ]


def _entry(rental: Rental, runs: Sequence[str], staged_usd: float) -> Entry:
    """The bill, if there is one; else the time in the rental's stages."""
    bill = rental.facts.bill or SettledBill(Estimate(staged_usd, less_usd=staged_usd))
    given_back = [each.instance_id for each in rental.facts.given_back]
    ids = tuple(each for each in (*rental.instance_ids, *given_back) if each)
    return Entry(rental.id, ids, bill.cost, rental.created_at, rental.released_at, tuple(runs))


def _cells(line: Line) -> list[str]:
    if line.rental is None:
        note = "has our name but is not in this ledger"
    elif line.invoice_usd is None:
        note = "not on the invoice"
    else:
        note = "agrees" if line.agrees else "differs"
    return [
        line.rental or DASH,
        line.instance_id or DASH,
        dollars_between(line.ours.low, line.ours.cost_usd, line.ours.high) if line.ours else DASH,
        dollars(line.invoice_usd),
        dollars(line.difference_usd),
        note,
    ]
