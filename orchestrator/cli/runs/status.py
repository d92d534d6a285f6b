"""`gptctl status`: one row per run. Reads the ledger and asks the machines of unfinished runs; takes no lock."""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli.machines.left_over import exit_code, of_ledger
from orchestrator.cli.machines.left_over import rows as rows_left
from orchestrator.cli.machines.left_over import show as show_left_over
from orchestrator.cli.machines.totals import Totals, totals_of
from orchestrator.cli.open_ledger import open_ledger
from orchestrator.cli.runs.status_rows import COLUMNS, cells, rental_row, run_row
from orchestrator.core.errors import UserError
from orchestrator.core.formats import local_time
from orchestrator.core.states import State
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Evaluation, Rental, RunRecord

if TYPE_CHECKING:
    from orchestrator.fleet.left_over import LeftOver

LEFT_OVER_EVERY_S = 60.0
"""With --watch: between two looks at the accounts."""
ANSWER_WITHIN_S = 2.0
"""How long a machine may take to answer; after that it is `unknown`, not dead."""
WATCH_EVERY_S = 2.0
NEWEST_ENDED = 10
PLAIN = "GPTCTL_PLAIN"
"""As in cli/screen/screen.py, which `status --json` does not import."""


def status(wanted: str | None, *, watch: bool, everything: bool, as_json: bool, running: bool = False) -> int:
    """Prints the rows, newest run first. With `watch`, again and again until Ctrl-C. Exit 7 while a machine is alive
    that nothing needs."""
    with open_ledger() as ledger:
        if running and (everything or wanted is not None):
            raise UserError("--running shows the runs that have not ended", "omit --running, or RUN and --all")
        everything = everything or wanted is not None
        left, looked_at = of_ledger(ledger), time.monotonic()
        newest_ended = 0 if running else None if everything or as_json else NEWEST_ENDED
        if not watch:
            show(collect(ledger, wanted, newest_ended=newest_ended), left, totals_of(ledger), as_json=as_json)
            return exit_code(left)
        try:
            trends: dict[str, tuple[float, ...]] = {}
            told: dict[str, list[str]] = {}
            is_first = True
            while True:
                found = collect(ledger, wanted, newest_ended=newest_ended)
                if reads_aloud := not as_json and bool(os.environ.get(PLAIN)):
                    found["runs"] = changed(found["runs"], told)
                if found["runs"] or is_first or not reads_aloud:
                    show(found, left, totals_of(ledger), as_json=as_json, redraw=not as_json)
                is_first = False
                if not as_json:
                    _show_trends(ledger.home, found["runs"], trends)
                time.sleep(WATCH_EVERY_S)
                if time.monotonic() - looked_at > LEFT_OVER_EVERY_S:
                    left, looked_at = of_ledger(ledger), time.monotonic()
        except KeyboardInterrupt:
            return 0


def changed(rows: Sequence[dict[str, Any]], told: dict[str, list[str]]) -> list[dict[str, Any]]:
    """For a screen reader, which is told nothing twice: the rows that differ from what was `told`, which then has them.
    Ages, and when a machine was seen, change by themselves and do not count."""
    said = {
        row["id"]: [
            cell for column, cell in zip(COLUMNS, cells(row), strict=True) if column.name not in ("AGE", "SEEN", "ETA")
        ]
        for row in rows
    }
    news = [row for row in rows if told.get(row["id"]) != said[row["id"]]]
    told.update(said)
    return news


def _show_trends(home: Path, rows: Sequence[Mapping[str, Any]], trends: dict[str, tuple[float, ...]]) -> None:
    """The loss of every unfinished run as a line of bars: what is mirrored here, then what each look brings."""
    from orchestrator.cli.screen import screen
    from orchestrator.cli.screen.live_view import with_loss
    from orchestrator.report.metrics import read_training

    training = [row for row in rows if row["state"] != State.ENDED and row["loss"] is not None]
    for row in training:
        known = trends.get(row["id"])
        if known is None:
            known = tuple(point.value for point in read_training(home / "runs" / row["id"]).losses)
        trends[row["id"]] = with_loss(known, row["loss"]) if not known or known[-1] != row["loss"] else known
    screen.show_trends({row["id"]: trends[row["id"]] for row in training})


def collect(
    ledger: Ledger, wanted: str | None, *, newest_ended: int | None = None, answer_within_s: float = ANSWER_WITHIN_S
) -> dict[str, Any]:
    """`{"runs": [...], "rentals": [...]}` as documented, after asking the machines of unfinished runs. newest_ended:
    of the ended runs only so many, so that a long history costs nothing; and `hidden` counts the others."""
    runs = [ledger.find_run(wanted)] if wanted is not None else _runs(ledger, newest_ended)
    open_runs = [run for run in runs if run.state is not State.ENDED]
    if open_runs and answer_within_s > 0:
        # Only now: the connection libraries cost more time than a ledger of a thousand ended runs.
        from orchestrator.runs.refresh import look

        fresh = {run.id: run for run in look(ledger.home, open_runs, deadline_s=answer_within_s)}
        runs = [fresh.get(run.id, run) for run in runs]
    few = wanted is None and newest_ended is not None
    ids = [*dict.fromkeys(run.rental_id for run in runs if run.rental_id is not None)] if few else None
    rentals = {rental.id: rental for rental in ledger.rentals(ids=ids)}
    # A rental's row names all its runs, even if you asked for one of them.
    together = runs if wanted is None else ledger.runs(rental_id=runs[0].rental_id or "") or runs
    intervals = ledger.all_intervals([run.id for run in together] if few or wanted is not None else None)
    scores: dict[str, list[Evaluation]] = defaultdict(list)
    for each in () if few else ledger.evaluations(None if wanted is None else runs[0].id, samples=False):
        scores[each.run_id].append(each)
    now = time.time()
    served: dict[str | None, list[RunRecord]] = defaultdict(list)
    for run in together:
        served[run.rental_id].append(run)
    rows = [
        run_row(run, rentals.get(run.rental_id or ""), intervals.get(run.id, ()), now, scores.get(run.id, ()))
        for run in runs
    ]
    _add_watcher(ledger.home, rows, rentals, now)
    return {
        "runs": rows,
        "rentals": [
            rental_row(rental, served.get(rental.id, []), intervals)
            for rental in rentals.values()
            if wanted is None or rental.id in served
        ],
        **({"hidden": ledger.count_runs() - len(runs)} if few else {}),
    }


def _runs(ledger: Ledger, newest_ended: int | None) -> list[RunRecord]:
    """Newest first: all, or all that have not ended and the newest of those that have."""
    if newest_ended is None:
        return ledger.runs()
    found = ledger.runs(unfinished_only=True) + ledger.runs(ended_only=True, limit=newest_ended)
    return sorted(found, key=lambda run: run.created_at, reverse=True)


def _add_watcher(home: Path, rows: list[dict[str, Any]], rentals: Mapping[str, Rental], now: float) -> None:
    """Sets `watcher_seen_s` (None: no sign) of watched machines: they are guarded while their watcher is alive."""
    watched = [row for row in rows if row["guard"]["kind"] == "watcher" and row["state"] != State.ENDED]
    if not watched:
        return
    # Only now: reading the settings loads pydantic.
    from orchestrator.core.fleet.watcher_mark import watcher_alive

    for row in watched:
        age_s = watcher_alive(home, now, rentals[row["rental"]].provider)
        row["guard"] = {**row["guard"], "armed": row["guard"]["armed"] and age_s is not None, "watcher_seen_s": age_s}


def show(found: dict[str, Any], left: LeftOver | None, totals: Totals, *, as_json: bool, redraw: bool = False) -> None:
    """Prints what collect() found, and the machines that nothing needs."""
    if as_json:
        left_rows = [row.to_json() for row in rows_left(left)]
        # no indent: with one, Python leaves its fast encoder
        print(json.dumps({**found, "totals": totals.to_json(), "left_over": left_rows}), flush=True)
        return
    from orchestrator.cli.screen import screen

    rows = found["runs"]
    screen.show_table(COLUMNS, [cells(row) for row in rows], cards=True, redraw=redraw)
    if not rows:
        screen.talk("no runs yet. Next: gptctl run quickstart --host local")
    for row in rows:
        if row["guard"].get("watcher_seen_s", 0) is None:
            screen.talk(
                f"{row['id']}: no sign of its watcher for 15 minutes; see docs/concepts/guards.md", style="yellow"
            )
    for driver in dict.fromkeys(row["driven_by"] for row in rows if row["driven_by"]):
        theirs = ", ".join(row["id"] for row in rows if row["driven_by"] == driver)
        screen.talk(f"{theirs}: driven by {driver}, as handed over. Next: gptctl status --driver {driver}")
    for line in filter(None, [*map(_guard_line, rows), *map(_store_line, rows), *map(_waiting_line, rows)]):
        screen.talk(line, style="yellow")
    if found.get("hidden"):
        screen.talk(f"{found['hidden']} ended runs are hidden; --all shows them")
    if totals.words:
        screen.talk(totals.words)
    show_left_over(left)


def _store_line(row: dict[str, Any]) -> str:
    """What is wrong with the store of an unfinished run, and what is safe there; empty if all is well."""
    store = row["store"] or {}
    if row["state"] == State.ENDED or not store.get("problem"):
        return ""
    safe = f"step {store['safe_step']}" if store.get("safe_step") is not None else "nothing"
    return f"{row['id']}: checkpoint store: {store['problem']}; {safe} is safe there, and the machine keeps trying"


def _waiting_line(row: dict[str, Any]) -> str:
    """Of a run that no gptctl follows: why it goes no further, and the command that goes on; empty if it trains."""
    waits = row["needs_resume"] and not row["driven_by"]
    return f"{row['id']}: {row['needs_resume']}. Next: gptctl resume {row['id']}" if waits else ""


def _guard_line(row: dict[str, Any]) -> str:
    """What you should know about the guard on a machine; empty if all is well, or over."""
    guard = row["guard"]
    if row["state"] == State.ENDED or guard["kind"] not in ("key-on-box", "self"):
        return ""
    if not guard["armed"]:
        return f"{row['id']}: the guard on its machine is not armed: {guard.get('problem') or 'not installed yet'}"
    if guard.get("holding"):
        return f"{row['id']}: holding {guard['holding']} checkpoints, ends {local_time(guard.get('acts_at'))}"
    return ""
