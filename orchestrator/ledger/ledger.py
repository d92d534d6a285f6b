"""The ledger: history and intent, in one SQLite file under GPTCTL_HOME. The world itself is always asked first.

A run's state goes only forward, its outcome is written together with `ending` and never changes (a new attempt begins
both again, see attempts.py), and every call is one transaction. Threads of one process take turns.

    with Ledger.open(home, time.time) as ledger:
        ledger.add_run(record)
        ledger.set_state(record.id, State.ACQUIRING)
        newest = ledger.find_run(None)
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.core.errors import UserError
from orchestrator.core.events import EPHEMERAL, Event
from orchestrator.core.facts.rental_facts import RentalFactChanges
from orchestrator.core.facts.run_facts import RunFactChanges
from orchestrator.core.money.billing import SettledBill
from orchestrator.core.states import Outcome, State, is_forward
from orchestrator.ledger import database, row_values
from orchestrator.ledger.bills import spending
from orchestrator.ledger.records import (
    AWAY,
    INTENT_OPEN,
    RENTAL_OPEN,
    Attempt,
    Evaluation,
    Intent,
    IntentAnswer,
    RateRecord,
    Rental,
    RunRecord,
    StageInterval,
)
from orchestrator.ledger.rows import Rows

_RUN_FROZEN = frozenset({"id", "created_at", "state", "outcome", "cause", "cause_code", "started_at", "ended_at"})
"""What update_run must not touch: identity, and what set_state alone writes."""

_SHOWN = "json_extract(options, '$.forgotten_at') IS NULL"
_NEWEST_FIRST = "ORDER BY created_at DESC, rowid DESC"


class Ledger:
    """An open ledger. Use as a context manager, or call close()."""

    def __init__(
        self, connection: sqlite3.Connection, home: Path, now: Callable[[], float], say: Callable[[str], None]
    ) -> None:
        self.home = home
        self._say = say
        self._rows = Rows(connection, home / database.FILE)
        self._now = now

    @classmethod
    def open(
        cls, home: Path, now: Callable[[], float], say: Callable[[str], None] = lambda _: None, examined: bool = False
    ) -> Ledger:
        """Opens or creates the ledger of this home folder. now: gives UTC epoch seconds. say: gets what a person should
        know. examined: this process has opened it before. Raises LedgerDamaged, or UserError for a disk that refuses.
        """
        return cls(database.open_database(home, examined=examined), home, now, say)

    @property
    def rows(self) -> Rows:
        """For the modules beside this one that keep tables of their own."""
        return self._rows

    def close(self) -> None:
        self._rows.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Rentals

    def add_rental(self, rental: Rental) -> None:
        self._rows.insert("rentals", rental)

    def rental(self, rental_id: str) -> Rental:
        """Raises UserError for an unknown id."""
        found = self._rows.select(Rental, "SELECT * FROM rentals WHERE id = ?", rental_id)
        if not found:
            raise UserError(f"the ledger knows no rental {rental_id}", "gptctl status lists runs and rentals")
        return found[0]

    def rentals(self, open_only: bool = False, ids: Sequence[str] | None = None) -> list[Rental]:
        """Newest first; `ids`: of these alone."""
        where = f"(state = '{RENTAL_OPEN}' OR NOT ?) AND (?2 IS NULL OR id IN (SELECT value FROM json_each(?2)))"
        given = open_only, None if ids is None else json.dumps(ids)
        return self._rows.select(Rental, f"SELECT * FROM rentals WHERE {where} {_NEWEST_FIRST}", *given)

    def rented_since(self, since: float) -> list[Rental]:
        """Rentals of machines with a bill that are open, or were at that moment or later; newest first."""
        return self._rows.select(Rental, f"SELECT * FROM rentals WHERE {spending.RENTED_SINCE} {_NEWEST_FIRST}", since)

    def update_rental(self, rental_id: str, *, facts: RentalFactChanges | None = None, **fields: object) -> None:
        """Writes plain fields and these facts in one transaction; facts that are not named stay."""
        if not self._rows.update(
            "rentals", Rental, {"id": rental_id}, fields, frozenset({"id", "created_at"}), facts=facts
        ):
            self.rental(rental_id)

    # Runs

    def add_run(self, run: RunRecord) -> None:
        self._rows.insert("runs", run)

    def run(self, run_id: str) -> RunRecord:
        """The run of exactly this id. Raises UserError for an unknown one."""
        found = self._rows.select(RunRecord, "SELECT * FROM runs WHERE id = ?", run_id)
        if not found:
            raise self._no_run(run_id)
        return found[0]

    def find_run(self, prefix: str | None = None) -> RunRecord:
        """The run a user means: None is the newest; else an id, a --name (of several the newest, which is said), or the
        beginning of one id.

        Raises UserError when nothing or more than one run matches.
        """
        if prefix is None:
            found = self.runs(limit=1)
        else:
            sql = f"SELECT * FROM runs WHERE (id = ?1 OR name = ?1 OR substr(id, 1, length(?1)) = ?1) AND {_SHOWN}"
            found = self._rows.select(RunRecord, f"{sql} {_NEWEST_FIRST}", prefix)
            named = [run for run in found if run.name == prefix]
            found = [run for run in found if run.id == prefix] or named[:1] or found
            if len(named) > 1 and found == named[:1]:
                self._say(f"{len(named)} runs are named {prefix!r}; this is the newest, {named[0].id}")
        if not found:
            raise self._no_run(prefix)
        if len(found) > 1:
            names = ", ".join(run.id for run in found[:8]) + (" ..." if len(found) > 8 else "")
            raise UserError(f"{prefix!r} matches {len(found)} runs: {names}", "type more of the id")
        return found[0]

    def runs(
        self, *, limit: int | None = None, unfinished_only: bool = False, ended_only: bool = False,
        rental_id: str | None = None, host: str | None = None, forgotten: bool = False,
    ) -> list[RunRecord]:  # fmt: skip
        """Newest first. `unfinished_only` leaves out ended runs, `ended_only` all others; `forgotten` adds those."""
        typed = {"rental_id = ?": rental_id, "host = ?": host}
        terms = {term: value for term, value in typed.items() if value is not None}
        # Words, not values: SQLite then sees which index has these runs alone.
        others = {_SHOWN: not forgotten, "state <> 'ended'": unfinished_only, "state = 'ended'": ended_only}
        where = " AND ".join(["1", *terms, *(term for term, wished in others.items() if wished)])
        sql = f"SELECT * FROM runs WHERE {where} {_NEWEST_FIRST} LIMIT ?"
        return self._rows.select(RunRecord, sql, *terms.values(), -1 if limit is None else limit)

    def count_runs(self) -> int:
        with self._rows.reading() as connection:
            return int(connection.execute(f"SELECT count(*) FROM runs WHERE {_SHOWN}").fetchone()[0])

    def update_run(self, run_id: str, *, facts: RunFactChanges | None = None, **fields: object) -> None:
        """As update_rental. State and outcome go through set_state (TypeError otherwise)."""
        if not self._rows.update("runs", RunRecord, {"id": run_id}, fields, _RUN_FROZEN, facts=facts):
            raise self._no_run(run_id)

    def set_state(
        self, run_id: str, state: State, *, outcome: Outcome | None = None, cause: str = "",
        cause_code: int | None = None,
    ) -> RunRecord:  # fmt: skip
        """Moves a run forward and returns it as it then is; the same state again changes nothing.

        `ending` takes the outcome in the same transaction; the first outcome stays for good. Raises ValueError for a
        step backward, an outcome before `ending`, or an `ending` without one.
        """
        with self._rows.writing() as connection:
            run = self.run(run_id)
            if not is_forward(run.state, state):
                raise ValueError(f"{run_id}: a run's state goes only forward, not {run.state} -> {state}")
            if run.state == state:
                return run
            ends = state in (State.ENDING, State.ENDED)
            if ends != bool(outcome or run.outcome):
                raise ValueError(f"{run_id}: {state} {'needs' if ends else 'takes no'} outcome")
            connection.execute(
                "UPDATE runs SET state = ?1, outcome = coalesce(outcome, ?2), cause = iif(outcome IS NULL, ?3, cause),"
                " cause_code = iif(outcome IS NULL, ?4, cause_code),"
                " started_at = iif(?1 = 'training', coalesce(started_at, ?5), started_at),"
                " ended_at = iif(?1 = 'ended', ?5, ended_at) WHERE id = ?6",
                (state.value, outcome and outcome.value, cause, cause_code, self._now(), run_id),
            )
            after = self.run(run_id)
            data = {"from": run.state.value, "to": state.value, "outcome": after.outcome and after.outcome.value}
            connection.execute(
                *row_values.insert_event(run_id, Event("state_changed", self._now(), after.stage, cause, data))
            )
            return after

    # Events

    def tell(self, run_id: str, event: Event) -> None:
        """Keeps an event; ephemeral kinds are dropped here, so callers need not look."""
        if event.kind not in EPHEMERAL:
            with self._rows.writing() as connection:
                connection.execute(*row_values.insert_event(run_id, event))

    def events(self, run_id: str) -> list[Event]:
        """In the order they were recorded."""
        with self._rows.reading() as connection:
            rows = connection.execute("SELECT * FROM events WHERE run_id = ? ORDER BY id", (run_id,))
            return [Event(row["kind"], row["time"], row["stage"], row["text"], json.loads(row["data"])) for row in rows]

    # Stages and what they cost

    def open_stage(self, run_id: str, rental_id: str | None, stage: str, price_per_hour_usd: float) -> int:
        """Begins an interval now and returns its id.

        Intervals of this run that a killed process left open are closed at the last moment it was heard of. A machine
        that trains or bills does so with or without a driver: the time between is kept as the stage `away`.
        """
        with self._rows.writing() as connection:
            connection.execute(
                "UPDATE stage_intervals SET ended_at = last_at WHERE run_id = ? AND ended_at IS NULL", (run_id,)
            )
            now = self._now()
            sql = "SELECT max(ended_at) FROM stage_intervals WHERE run_id = ?"
            left = connection.execute(sql, (run_id,)).fetchone()[0]
            went_on = self.run(run_id).state == State.TRAINING or spending.is_billing(connection, rental_id)
            if left is not None and now - left >= spending.AWAY_LEAST_S and went_on:
                away = StageInterval(run_id, rental_id, AWAY, left, now, now, price_per_hour_usd)
                connection.execute(*row_values.insert("stage_intervals", away))
            interval = StageInterval(run_id, rental_id, stage, now, None, now, price_per_hour_usd)
            return int(connection.execute(*row_values.insert("stage_intervals", interval)).lastrowid or 0)

    def end_away(self, run_id: str, at: float) -> None:
        """Clips what was kept as `away` to the moment the training really ended: for machines without a bill."""
        ends = "ended_at = max(started_at, min(ended_at, ?1)), last_at = max(started_at, min(last_at, ?1))"
        self._rows.execute(f"UPDATE stage_intervals SET {ends} WHERE run_id = ?2 AND stage = ?3", at, run_id, AWAY)

    def end_waiting(self, run_id: str, at: float) -> None:
        """Clips what was followed before the training began, which waited in the queue of a machine without a bill:
        that time was another run's."""
        until = "min(coalesce(ended_at, ?1), ?1)"
        begins = f"started_at = max(started_at, {until}), last_at = max(last_at, {until})"
        sql = f"UPDATE stage_intervals SET {begins} WHERE run_id = ?2 AND stage IN ('follow', ?3) AND started_at < ?1"
        self._rows.execute(sql, at, run_id, AWAY)

    def touch_stage(self, interval_id: int, at: float | None = None) -> None:
        """The driver is alive at this moment (now)."""
        sql = "UPDATE stage_intervals SET last_at = max(last_at, ?) WHERE id = ?"
        self._rows.execute(sql, self._now() if at is None else at, interval_id)

    def close_stage(self, interval_id: int, at: float | None = None) -> None:
        """Ends an open interval; a closed one stays as it is."""
        sql = "UPDATE stage_intervals SET ended_at = max(started_at, ?1), last_at = max(started_at, ?1) WHERE id = ?2"
        self._rows.execute(f"{sql} AND ended_at IS NULL", self._now() if at is None else at, interval_id)

    def settle(self, rental_id: str, bill: SettledBill) -> None:
        """Keeps the bill of a rental, and makes its closed intervals add up to it, shared by the runs that trained
        there."""
        with self._rows.writing() as connection:
            spending.settle(connection, rental_id, bill.cost.cost_usd)
        self.update_rental(rental_id, facts={"bill": bill})

    def intervals(self, run_id: str) -> list[StageInterval]:
        """In time order; of a machine that may be billing, what nobody watched is the last one, up to now."""
        sql = "SELECT * FROM stage_intervals WHERE run_id = ? ORDER BY started_at, id"
        return self._rows.select(StageInterval, sql, run_id) + [
            each for each in self._unwatched() if each.run_id == run_id
        ]

    def all_intervals(self, run_ids: Sequence[str] | None = None) -> dict[str, list[StageInterval]]:
        """By run, in one query; `run_ids`: of these alone."""
        where, ids = ("", ()) if run_ids is None else (spending.OF_RUNS, (json.dumps(run_ids),))
        sql = f"SELECT * FROM stage_intervals {where} ORDER BY started_at, id"
        grouped: dict[str, list[StageInterval]] = {}
        for interval in [*self._rows.select(StageInterval, sql, *ids), *self._unwatched()]:
            grouped.setdefault(interval.run_id, []).append(interval)
        return grouped

    def _unwatched(self) -> list[StageInterval]:
        with self._rows.reading() as connection:
            return spending.unwatched(connection, self._now())

    def spent_by_run(self, run_id: str | None = None) -> list[spending.RunSpending]:
        """What each run, or the one, spent by stage, newest first."""
        with self._rows.reading() as connection:
            return spending.spent_by_run(connection, self._now(), run_id)

    def spend_since(self, since: float) -> float:
        """USD of all stages from that moment to now: what a monthly ceiling compares with."""
        with self._rows.reading() as connection:
            return spending.spend_since(connection, since, self._now())

    def billing_per_hour_usd(self) -> float:
        """USD an hour of every machine that is rented and not confirmed gone."""
        with self._rows.reading() as connection:
            return spending.billing_per_hour_usd(connection)

    # Intents, attempts, rates, evaluations

    def add_intent(self, intent: Intent) -> None:
        """On disk when this returns: only then may the request be sent."""
        self._rows.insert("intents", intent)

    def close_intent(self, intent_id: str, state: str, answer: IntentAnswer | None = None) -> Intent:
        """Closes an intent as bought, refused, unseen or adopted. An `unseen` one may still become adopted."""
        fields = {"state": state, "closed_at": self._now(), "answer": answer or IntentAnswer()}
        if not self._rows.update("intents", Intent, {"id": intent_id}, fields, frozenset({"id", "rental_id"})):
            raise UserError(f"the ledger knows no intent {intent_id}")
        return self._rows.select(Intent, "SELECT * FROM intents WHERE id = ?", intent_id)[0]

    def intents(self, rental_id: str | None = None, open_only: bool = False) -> list[Intent]:
        """Oldest first."""
        sql = "SELECT * FROM intents WHERE (?1 IS NULL OR rental_id = ?1) AND (?2 = '' OR state = ?2) ORDER BY rowid"
        return self._rows.select(Intent, sql, rental_id, INTENT_OPEN if open_only else "")

    def add_attempt(self, attempt: Attempt) -> None:
        self._rows.insert("attempts", attempt)

    def attempts(self, run_id: str) -> list[Attempt]:
        return self._rows.select(Attempt, "SELECT * FROM attempts WHERE run_id = ? ORDER BY number", run_id)

    def update_attempt(self, run_id: str, number: int, **fields: object) -> None:
        key: dict[str, row_values.Value] = {"run_id": run_id, "number": number}
        self._rows.update("attempts", Attempt, key, fields, frozenset(key))

    def add_rate(self, rate: RateRecord) -> None:
        """Keeps a measured throughput; a later one of the same run replaces it."""
        self._rows.insert("rates", rate, "INSERT OR REPLACE")

    def rates(self) -> list[RateRecord]:
        """Newest first."""
        return self._rows.select(RateRecord, "SELECT * FROM rates ORDER BY measured_at DESC")

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Keeps what a checkpoint scored; measuring the same again replaces it."""
        self._rows.insert("evaluations", evaluation, "INSERT OR REPLACE")

    def evaluations(self, run_id: str | None = None, *, samples: bool = True) -> list[Evaluation]:
        """Of one run or of all, by step, kind and name; without `samples`, what was measured alone."""
        sql = "SELECT * FROM evaluations WHERE (?1 IS NULL OR run_id = ?1) AND (?2 OR kind <> 'sample')"
        return self._rows.select(Evaluation, f"{sql} ORDER BY run_id, step, kind, name", run_id, samples)

    def _no_run(self, wanted: str | None) -> UserError:
        if not self.runs(limit=1):
            return UserError("no runs yet", "gptctl run recipes/quickstart.toml --host local")
        return UserError(f"no run matches {wanted!r}", "gptctl status lists the runs; the beginning of an id is enough")
