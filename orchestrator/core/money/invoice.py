"""An invoice against our own books: which charge belongs to which rental, and where the two differ. Pure.

Each provider has its own column names, so a column is recognised by its name: an instance's id or name,
an amount, and (if there is one) a date. Everything is USD before tax.

Example::

    charges = read_charges(path.read_text())
    [row for row in compare(charges, entries) if not row.agrees]
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from orchestrator.core.errors import UserError
from orchestrator.core.estimate import Estimate
from orchestrator.core.fleet.machine_names import NAME
from orchestrator.core.suggest import one_of

HALF_A_CENT = 0.005 + 1e-9
DAY_S = 86_400.0
IDS = (r"instance[ _-]?id", r"resource[ _-]?id", r"\bid$", r"^instance$", r"^resource$", r"lrn|arn")
NAMES = (r"instance[ _-]?name", r"resource[ _-]?name", r"\bname$", r"description", r"^item$")
AMOUNTS = (r"^amount", r"^(total[ _-]?)?cost", r"^total$", r"^total", r"charge", r"usd|\$", r"^price$")
DATES = (r"^date", r"start", r"\bday$", r"period", r"from|time")
NO_AMOUNT = re.compile(r"unit|rate|per[ _-]?hour|hourly|quantity|hours", re.IGNORECASE)


@dataclass(frozen=True)
class Charge:
    """One line of an invoice. `at`: UTC epoch seconds of its date, None where it has none that can be read."""

    instance_id: str
    name: str
    amount_usd: float
    at: float | None = None


@dataclass(frozen=True)
class Entry:
    """One rental in our books, and what it cost."""

    rental: str
    instance_ids: tuple[str, ...]
    cost: Estimate
    began_at: float = 0.0
    ended_at: float | None = None
    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """A rental in both books, or in one of them (None: it is not in the other)."""

    rental: str | None
    instance_id: str
    runs: tuple[str, ...]
    ours: Estimate | None
    invoice_usd: float | None

    @property
    def difference_usd(self) -> float:
        """What the invoice has more than we have."""
        return (self.invoice_usd or 0.0) - (self.ours.cost_usd if self.ours else 0.0)

    @property
    def agrees(self) -> bool:
        """Whether the invoice agrees with our books, to the cent."""
        ours, invoice = self.ours or Estimate(0.0), self.invoice_usd or 0.0
        return ours.low - HALF_A_CENT <= invoice <= ours.high + HALF_A_CENT

    def to_json(self) -> dict[str, object]:
        """One element of `lines` in `gptctl cost --reconcile --json`."""
        found = {name: value for name, value in asdict(self).items() if name != "ours"}
        ours = self.ours or Estimate(0.0)
        found |= {"ours_usd": self.ours and ours.cost_usd, "less_usd": ours.less_usd, "more_usd": ours.more_usd}
        return {**found, "difference_usd": self.difference_usd, "agrees": self.agrees}


def read_charges(text: str, source: str = "invoice") -> list[Charge]:
    """The charges of a CSV file with a header line. Raises UserError naming the column that is missing or the line."""
    text = text.removeprefix("\ufeff").lstrip("\r\n")
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    rows = list(csv.DictReader(io.StringIO(text), delimiter=delimiter))
    names = [name for name in (rows[0] if rows else {}) if name]
    id_column, name_column = _column(names, IDS), _column(names, NAMES)
    amount = _column([name for name in names if not NO_AMOUNT.search(name)], AMOUNTS)
    if amount is None or (id_column is None and name_column is None):
        what = "amount" if amount is None else "instance id or name"
        found = one_of(names) if names else "none"
        raise UserError(f"{source}: no column for the {what}; columns: {found}", "export it as CSV with a header line")
    date = _column([name for name in names if name not in (id_column, name_column, amount)], DATES)
    return [
        Charge(
            (row.get(id_column or "") or "").strip(),
            (row.get(name_column or "") or "").strip(),
            _dollars(row.get(amount), f"{source}, line {number}"),
            _moment(row.get(date or "") or ""),
        )
        for number, row in enumerate(rows, start=2)
        if (row.get(amount) or "").strip()
    ]


def _column(names: Sequence[str], patterns: Sequence[str]) -> str | None:
    """The first name that fits the first pattern that any fits."""
    fits = (name for pattern in patterns for name in names if re.search(pattern, name.strip(), re.IGNORECASE))
    return next(fits, None)


def _dollars(text: str | None, where: str) -> float:
    """`$1,234.50`, `-0.30`, and `(0.30)`, which is how bookkeepers write it."""
    plain = re.sub(r"[$\s]|USD", "", text or "")
    # A comma parts thousands and nothing else: `1,50` may mean anything.
    found = re.fullmatch(r"([-(]?)((?:\d{1,9}|\d{1,3}(?:,\d{3}){1,2})(?:\.\d+)?)\)?", plain)
    if not found:
        raise UserError(f"{where}: {text!r} is not an amount in dollars", "use a point for decimals")
    return (-1.0 if found[1] else 1.0) * float(found[2].replace(",", ""))


def _moment(text: str) -> float | None:
    try:
        found = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def compare(charges: Sequence[Charge], entries: Sequence[Entry]) -> list[Line]:
    """One line per rental of the invoice's time, and one per machine of ours by its name that our books do not have.

    Charges for other people's machines are ignored.
    """
    sums: dict[str, float] = {}
    strangers: dict[str, float] = {}
    by_instance = {instance_id: entry.rental for entry in entries for instance_id in entry.instance_ids}
    rentals = {entry.rental: entry for entry in entries}
    for charge in charges:
        rental = _rental_of(charge, by_instance, rentals)
        if rental is not None:
            sums[rental] = sums.get(rental, 0.0) + charge.amount_usd
        elif NAME.search(charge.name):
            key = charge.instance_id or charge.name
            strangers[key] = strangers.get(key, 0.0) + charge.amount_usd
    billed = [entry for entry in entries if entry.rental in sums or (entry.cost.cost_usd and _within(entry, charges))]
    ours = [
        Line(entry.rental, ", ".join(entry.instance_ids), entry.runs, entry.cost, sums.get(entry.rental))
        for entry in billed
    ]
    return ours + [Line(None, key, (), None, amount) for key, amount in strangers.items()]


def _rental_of(charge: Charge, by_instance: Mapping[str, str], rentals: Mapping[str, Entry]) -> str | None:
    """By the instance's id, which may stand inside a longer one; else by the machine's name."""
    whole = next((rental for key, rental in by_instance.items() if key and key in charge.instance_id), None)
    if whole is not None:
        return whole
    named = NAME.search(charge.name)
    candidates = (named["rental"] if named else None, charge.name, charge.instance_id)
    return next((name for name in candidates if name in rentals), None)


def _within(entry: Entry, charges: Sequence[Charge]) -> bool:
    """Whether the invoice speaks of the days this rental was up; one without dates speaks of all."""
    days = [charge.at for charge in charges if charge.at is not None]
    if not days:
        return True
    return entry.began_at < max(days) + DAY_S and (entry.ended_at or entry.began_at) >= min(days)
