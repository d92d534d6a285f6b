"""What the stages of all runs add up to in dollars. Queries on the ledger's connection; decides nothing.

A rented machine costs whether or not anyone looks at it: until its provider has confirmed that it is gone, the time
since the last look counts to now, as the stage `away` of its newest run, and so does the rest of the minute that it has
begun: what is shown is never less than the provider's own books.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections import defaultdict
from dataclasses import dataclass, field, replace

from orchestrator.core.facts.rental_facts import RentalFacts
from orchestrator.core.machines import nodes_in
from orchestrator.core.money.billing import so_far
from orchestrator.core.money.counted_time import counted, read
from orchestrator.core.ports import UNPAID
from orchestrator.ledger import row_values
from orchestrator.ledger.bills.shared_bill import Window, shared
from orchestrator.ledger.records import AWAY, INTENT_OPEN, RENTAL_OPEN, StageInterval

AWAY_LEAST_S = 1.0
"""From one stage to the next a driver needs milliseconds."""

_RENTED = f"""rentals.provider NOT IN ({", ".join(f"'{name}'" for name in sorted(UNPAID))})"""
RENTED_SINCE = f"{_RENTED} AND (state = '{RENTAL_OPEN}' OR coalesce(released_at, created_at) >= ?)"

_SECONDS = """
    (SELECT count(*) FROM json_each(rentals.data, '$.given_back') WHERE json_extract(value, '$.gone_at') IS NULL)
"""
"""Second machines of a rental that nobody saw the end of."""

_MORE = """
    (SELECT count(*) FROM json_each(rentals.data, '$.more') WHERE json_extract(value, '$.gone_at') IS NULL
            AND json_extract(value, '$.instance_id') IS NOT NULL)
"""
"""The machines of its further nodes, likewise."""

_ORDERED = f"EXISTS (SELECT 1 FROM intents WHERE rental_id = rentals.id AND state = '{INTENT_OPEN}')"
_BILLING = f"""
    rentals.state = '{RENTAL_OPEN}' AND {_RENTED}
    AND (rentals.instance_id IS NOT NULL OR {_SECONDS} + {_MORE} > 0
         OR {_ORDERED})
"""

_RUNS = """
    SELECT id, machine, host_data,
           coalesce(max(0, step - coalesce(json_extract(plan, '$.from_step'), 0)) * json_extract(plan, '$.tokens')
                    / nullif(json_extract(plan, '$.steps'), 0), 0) AS tokens_trained, rental_id, seen_at,
           json_extract(options, '$.engine.gpu_hours') AS gpu_hours
    FROM runs {which} ORDER BY created_at DESC, rowid DESC
"""
"""The tokens as RunRecord.tokens_trained has them."""

_STAGES = """
    SELECT run_id, stage, max(0.0, coalesce(ended_at, last_at) - started_at) AS seconds,
           max(0.0, coalesce(ended_at, last_at) - started_at) * price_per_hour_usd / 3600 AS usd
    FROM stage_intervals {which} ORDER BY rowid
"""

_UNWATCHED = f"""
    SELECT coalesce((SELECT id FROM runs WHERE rental_id = rentals.id ORDER BY created_at DESC, rowid DESC LIMIT 1),
                    (SELECT run_id FROM stage_intervals WHERE rental_id = rentals.id ORDER BY id DESC LIMIT 1)
           ) AS run_id,
           id AS rental_id, machine, price_per_hour_usd, data,
           (SELECT min(created_at) FROM intents WHERE rental_id = rentals.id AND state = '{INTENT_OPEN}') AS ordered_at,
           coalesce((SELECT max(coalesce(ended_at, last_at)) FROM stage_intervals WHERE rental_id = rentals.id),
                    created_at) AS seen_at,
           coalesce((SELECT sum(max(0.0, coalesce(ended_at, last_at) - started_at) * price_per_hour_usd) / 3600
                     FROM stage_intervals WHERE rental_id = rentals.id), 0.0) AS seen_usd
    FROM rentals WHERE {_BILLING}
"""


OF_RUNS = "WHERE run_id IN (SELECT value FROM json_each(?))"


@dataclass(frozen=True)
class RunSpending:
    """A run as far as its cost goes; `by_stage` in USD, in the order in which its stages began."""

    id: str
    machine: str
    host_data: str
    """The host's entry as JSON, `{}` where there was none."""
    tokens_trained: int
    rental_id: str | None = None
    seen_at: float | None = None
    seconds: float = 0.0
    by_stage: dict[str, float] = field(default_factory=dict)
    gpu_hours: float | None = None
    """By an engine's books; None: as long as the stages lasted."""


def spent_by_run(connection: sqlite3.Connection, now: float, run_id: str | None = None) -> list[RunSpending]:
    """All runs, newest first, or the one. Adds up plain rows: of thousands of runs only these columns are read."""
    which, one = ("", ()) if run_id is None else ("WHERE run_id = ?", (run_id,))
    cursor = connection.cursor()
    cursor.row_factory = None  # plain tuples: a history has tens of thousands of stages
    seconds: dict[str, float] = defaultdict(float)
    by_stage: dict[str, dict[str, float]] = defaultdict(dict)
    away = ((each.run_id, each.stage, lasted_s := each.last_at - each.started_at,
             lasted_s * each.price_per_hour_usd / 3600) for each in unwatched(connection, now))  # fmt: skip
    for its_run, stage, lasted_s, usd in itertools.chain(cursor.execute(_STAGES.format(which=which), one), away):
        seconds[its_run] += lasted_s
        stages = by_stage[its_run]
        stages[stage] = stages[stage] + usd if stage in stages else usd
    # What was imported never cost anything.
    which = "WHERE outcome IS NOT 'imported'" if run_id is None else "WHERE id = ?"
    runs = cursor.execute(_RUNS.format(which=which), one)
    return [
        RunSpending(run, machine, host, tokens, rental, seen_at, seconds[run], by_stage[run], gpu_hours)
        for run, machine, host, tokens, rental, seen_at, gpu_hours in runs
    ]


def unwatched(connection: sqlite3.Connection, now: float) -> list[StageInterval]:
    """For each rental that may be billing now: the time since anyone last looked, up to `now` (UTC epoch seconds), and
    on to the end of what its provider may have billed by then. The run is empty where the rental serves none."""
    found = []
    for row in connection.execute(_UNWATCHED):
        until, price = _paid_until(row, now), row["price_per_hour_usd"]
        if until > row["seen_at"]:
            found.append(
                StageInterval(row["run_id"] or "", row["rental_id"], AWAY, row["seen_at"], until, until, price)
            )
    return found


def _paid_until(row: sqlite3.Row, now: float) -> float:
    """Until when the last stage must last, in UTC epoch seconds, for a rental's stages to add up to its bill so far."""
    facts = RentalFacts.from_json(json.loads(row["data"]))
    now = counted(facts.clock, read(now))
    ordered_at = facts.life.booting_at or facts.life.active_at or row["ordered_at"]
    life, price = replace(facts.life, booting_at=ordered_at), float(row["price_per_hour_usd"])
    seen_at = float(row["seen_at"])
    until = max(seen_at, min(now, life.gone_at or now))
    if not price:
        return until
    seen_usd = float(row["seen_usd"]) + (until - seen_at) / 3600 * price
    others = [*(each.life for each in facts.given_back), *(each.life for each in facts.more)]
    billed_usd = so_far([life, *others], now, price / nodes_in(row["machine"]))
    return until + max(0.0, billed_usd - seen_usd) / price * 3600


def billing_per_hour_usd(connection: sqlite3.Connection) -> float:
    """What all machines that are rented and not confirmed gone cost together; an order without an answer is one."""
    held = f"max(rentals.instance_id IS NOT NULL AND json_extract(rentals.data, '$.gone_at') IS NULL, {_ORDERED})"
    sql = f"SELECT machine, price_per_hour_usd, {held} + {_SECONDS} + {_MORE} AS alive FROM rentals WHERE {_BILLING}"
    rows = connection.execute(sql).fetchall()
    return sum(float(row["price_per_hour_usd"]) / nodes_in(row["machine"]) * int(row["alive"]) for row in rows)


def is_billing(connection: sqlite3.Connection, rental_id: str | None) -> bool:
    """Whether this rental's machine is rented and not confirmed gone."""
    sql = f"SELECT 1 FROM rentals WHERE id = ? AND {_BILLING}"
    return connection.execute(sql, (rental_id,)).fetchone() is not None


def spend_since(connection: sqlite3.Connection, since: float, now: float) -> float:
    """USD of all stages from `since` to `now`, what nobody watched included."""
    sql = (
        "SELECT coalesce(sum(max(0, coalesce(ended_at, last_at) - max(started_at, ?1)) * price_per_hour_usd), 0)"
        " / 3600.0 FROM stage_intervals WHERE coalesce(ended_at, last_at) > ?1"
    )
    open_usd = sum(
        max(0.0, each.last_at - max(each.started_at, since)) / 3600 * each.price_per_hour_usd
        for each in unwatched(connection, now)
    )
    return float(connection.execute(sql, (since,)).fetchone()[0]) + open_usd


def share(connection: sqlite3.Connection, rental_id: str) -> None:
    """Rewrites the closed intervals of a rental on which more than one run trained, so that no moment counts twice."""
    sql = (
        "SELECT run_id, max(ended_at) FROM attempts WHERE rental_id = ? GROUP BY run_id"
        " HAVING max(ended_at) > min(started_at)"
    )
    windows = [Window(*row) for row in connection.execute(sql, (rental_id,))]
    own = "FROM stage_intervals WHERE rental_id = ? AND ended_at IS NOT NULL"
    rows = connection.execute(f"SELECT * {own} ORDER BY id", (rental_id,)).fetchall()
    intervals = [row_values.decode(StageInterval, row) for row in rows]
    if len({each.run_id for each in intervals}) < 2 or not windows:
        return
    connection.execute(f"DELETE {own}", (rental_id,))
    for interval in shared(intervals, windows):
        connection.execute(*row_values.insert("stage_intervals", interval))


def settle_run(connection: sqlite3.Connection, run_id: str, cost_usd: float) -> None:
    """Makes the closed intervals of one run add up to what an engine's books say that it cost."""
    own = "WHERE run_id = ? AND ended_at IS NOT NULL"
    seconds = connection.execute(f"SELECT sum(ended_at - started_at) FROM stage_intervals {own}", (run_id,))
    price = cost_usd * 3600 / (seconds.fetchone()[0] or 1.0)
    connection.execute(f"UPDATE stage_intervals SET price_per_hour_usd = ? {own}", (price, run_id))


def settle(connection: sqlite3.Connection, rental_id: str, cost_usd: float) -> None:
    """Makes the closed intervals of a rental add up to its bill: their price becomes what their time cost. First shares
    them among the runs that trained there."""
    share(connection, rental_id)
    own = "WHERE rental_id = ? AND ended_at IS NOT NULL"
    seconds = connection.execute(f"SELECT sum(ended_at - started_at) FROM stage_intervals {own}", (rental_id,))
    price = cost_usd * 3600 / (seconds.fetchone()[0] or 1.0)
    connection.execute(f"UPDATE stage_intervals SET price_per_hour_usd = ? {own}", (price, rental_id))
