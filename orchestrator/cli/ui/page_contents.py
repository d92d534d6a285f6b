"""What the live page shows, read from the ledger and the mirrors; machines are asked as `gptctl status` asks them.

Example::

    sight = PageContents(home)
    sight.refresh()
    sight.state["runs"], sight.run("quickstart-1130-k3f9qa")["charts"]
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.cli.machines.left_over import of_ledger
from orchestrator.cli.machines.left_over import rows as left_rows
from orchestrator.cli.machines.totals import totals_of
from orchestrator.cli.runs.status import ANSWER_WITHIN_S, collect
from orchestrator.cli.runs.status_rows import run_row
from orchestrator.cli.screen.foreign import clean
from orchestrator.cli.ui.forecast import forecast
from orchestrator.cli.ui.sweep_panels import Arm, panels
from orchestrator.core.config.gptctl_home import CONFIG_FILE
from orchestrator.ledger import database, sweeps
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RunRecord
from orchestrator.ledger.search import matching
from orchestrator.ledger.sweeps import Sweep
from orchestrator.report.metrics import Growing, read_validations
from orchestrator.report.pages.chart import Chart
from orchestrator.report.pages.curves import training_charts
from orchestrator.runs.sweep_revival import current
from orchestrator.runs.sweeps import spent_usd
from trainer.run_files import BEST, CHECKPOINTS, EVENTS, LATEST, LOG, METRICS

NEWEST_ENDED = 30
"""Ended runs on the page; its search finds the others, and `gptctl status --all` has every one."""
MOST_FOUND = 100
LOG_BYTES = 8_000
MOST_EVENTS = 20
LEFT_OVER_EVERY_S = 60.0
NEWEST_SWEEPS = 3
AGES = ("seen_s", "age_s")
"""Which only the clock changes."""
MOST_OPEN = 4
"""Runs whose curves are kept in memory: a page that shows one reads its new lines alone."""


class PageContents:
    """The newest state, and its number, which changes when anything on the page does. Several threads may ask."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.state: dict[str, Any] = {}
        """Empty until the first look."""
        self.number = 0
        self.pages = 0
        """That are open: nobody's machines are asked for nobody."""
        self._curves: dict[str, tuple[object, list[tuple[int, float]]]] = {}
        self._open: dict[str, Growing] = {}
        self._reading = threading.Lock()
        self._sound = False
        self._left: list[dict[str, Any]] = []
        self._left_at = -LEFT_OVER_EVERY_S

    def _ledger(self) -> Ledger:
        """Examined at the first look alone: that reads all of it."""
        ledger = Ledger.open(self.home, time.time, examined=self._sound)
        self._sound = True
        return ledger

    def ask(self) -> None:
        """Asks the machines of unfinished runs, as `gptctl status` does, and now and then the accounts: the ledger has
        the answers then. A machine that is silent takes its two seconds, and the page does not wait for it."""
        # Only now: the connection libraries cost more time than the first page.
        from orchestrator.runs.refresh import look

        with self._ledger() as ledger:
            if unfinished := ledger.runs(unfinished_only=True):
                look(self.home, unfinished, deadline_s=ANSWER_WITHIN_S)
            if time.monotonic() - self._left_at > LEFT_OVER_EVERY_S:
                self._left = [row.to_json() for row in left_rows(of_ledger(ledger))]
                self._left_at = time.monotonic()

    def refresh(self) -> None:
        """Reads the ledger again; asks nobody."""
        with self._ledger() as ledger:
            found = collect(ledger, None, newest_ended=NEWEST_ENDED, answer_within_s=0.0)
            totals = totals_of(ledger)
            swept = [self._sweep(ledger, each) for each in sweeps.listed(ledger.rows)[:NEWEST_SWEEPS]]
        state = {
            **found, "runs": [_with_moment(row) for row in found["runs"]], "totals": totals.to_json(),
            "totals_words": totals.words, "left_over": self._left, "sweeps": swept,
            "forecast": forecast(totals, found["runs"], time.time()).to_json(),
        }  # fmt: skip
        if not self.state or _without_ages(state) != _without_ages(self.state):
            self.number += 1
        self.state = state

    def find(self, wanted: str) -> list[dict[str, Any]]:
        """The rows of the runs that match, newest first, at most MOST_FOUND."""
        with self._ledger() as ledger:
            runs = matching(ledger.rows, wanted, MOST_FOUND)
            rentals = {each.id: each for each in ledger.rentals(ids=[run.rental_id for run in runs if run.rental_id])}
            intervals = ledger.all_intervals([run.id for run in runs])
        now = time.time()
        rows = (run_row(run, rentals.get(run.rental_id or ""), intervals.get(run.id, ()), now) for run in runs)
        return [_with_moment(row) for row in rows]

    def _sweep(self, ledger: Ledger, sweep: Sweep) -> dict[str, Any]:
        """A sweep's panels, and its money against its ceiling."""
        runs = current(sweeps.runs_of(ledger.rows, sweep.id))
        arms = [
            Arm(
                run.labels.get("arm", run.recipe), int(run.labels.get("seed", 0)), run.id,
                _state_word(run), run.step, run.total_steps, self._curve(run.id),
            )
            for run in runs
        ]  # fmt: skip
        money = {"spent_usd": spent_usd(ledger, sweep), "ceiling_usd": sweep.terms.ceiling_usd}
        return {"id": sweep.id, "name": sweep.name, **money, **panels(arms, sweep.terms.baseline)}

    def _curve(self, run_id: str) -> list[tuple[int, float]]:
        """The validations of a run's mirror, read again when it has changed."""
        mirror = self.home / "runs" / run_id
        mark = _stamp(mirror / EVENTS)
        if run_id not in self._curves or self._curves[run_id][0] != mark:
            self._curves[run_id] = (mark, [(point.step, point.value) for point in read_validations(mirror)])
        return self._curves[run_id][1]

    def run(self, run_id: str) -> dict[str, Any]:
        """One run with its curves, events, checkpoints and the end of its log. Raises UserError for an unknown one."""
        with self._ledger() as ledger:
            found = ledger.run(run_id)
            row = collect(ledger, run_id, answer_within_s=0.0)
            events = ledger.events(run_id)
        mirror = self.home / "runs" / found.id
        return {
            **_with_moment(row["runs"][0]),
            "title": found.name or found.id,
            "charts": [chart.to_json() for chart in self._charts(found.id)],
            "events": [
                {"time": event.time, "stage": event.stage or "", "text": clean(event.text)}
                for event in reversed([event for event in events if event.text][-MOST_EVENTS:])
            ],
            "checkpoints": _checkpoints(mirror / CHECKPOINTS, found.safe_step),
            "log": _end_of(mirror / LOG),
        }

    def _charts(self, run_id: str) -> list[Chart]:
        with self._reading:
            growing = self._open.pop(run_id, None) or Growing(self.home / "runs" / run_id)
            self._open = {**dict([*self._open.items()][-MOST_OPEN + 1 :]), run_id: growing}
            return training_charts(growing.training())

    def mark_of(self, run_id: str) -> tuple[tuple[int, int], ...]:
        """Changes when a file of the run's mirror does: sizes and times."""
        mirror = self.home / "runs" / run_id
        return tuple(_stamp(mirror / name) for name in (METRICS, EVENTS, LOG))

    def mark(self) -> tuple[tuple[int, int], ...]:
        """Changes when the ledger does."""
        return tuple(_stamp(self.home / name) for name in (database.FILE, f"{database.FILE}-wal", CONFIG_FILE))


def _state_word(run: RunRecord) -> str:
    if run.outcome:
        return run.outcome.value
    return "queued" if run.facts.queue and run.facts.queue.ahead is not None and not run.step else run.state.value


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_size)


def _with_moment(row: Mapping[str, Any]) -> dict[str, Any]:
    """With the moment at which its machine was seen, so that a page counts on by itself."""
    seen_at = None if row["seen_s"] is None else round(time.time() - row["seen_s"])
    return {key: value for key, value in row.items() if key not in AGES} | {"seen_at": seen_at}


def _without_ages(state: Mapping[str, Any]) -> str:
    """The state without what only the clock changes."""
    return json.dumps({**state, "forecast": None}, sort_keys=True)


def _checkpoints(folder: Path, safe_step: int | None) -> list[dict[str, Any]]:
    """Newest first: those that are here, and the newest that is safe elsewhere."""
    names = {name: (folder / name).resolve().name for name in (BEST, LATEST) if (folder / name).is_dir()}
    here = sorted(path for path in folder.glob("step-*") if path.is_dir() and not path.is_symlink())
    rows = [
        {"step": int(path.name.removeprefix("step-")), "is": [at for at, name in names.items() if name == path.name]}
        for path in here
        if path.name.removeprefix("step-").isdigit()
    ]
    found: list[dict[str, Any]] = [{**row, "where": "here"} for row in reversed(rows)]
    if safe_step is not None and safe_step not in {row["step"] for row in rows}:
        found.insert(0, {"step": safe_step, "is": [], "where": "in the store"})
    return found


def _end_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_BYTES))
            text = file.read(LOG_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines: Sequence[str] = text.splitlines()[-200:]
    return "\n".join(map(clean, lines))
