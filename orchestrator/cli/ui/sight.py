"""What the live page shows, read from the ledger and the mirrors; machines are asked as `gptctl status` asks them.

Example::

    sight = Sight(home)
    sight.refresh(True)
    sight.state["runs"], sight.run("quickstart-1130-k3f9qa")["charts"]
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.cli.machines.left_over import of_ledger
from orchestrator.cli.machines.left_over import rows as left_rows
from orchestrator.cli.machines.totals import totals_of
from orchestrator.cli.runs.status import ANSWER_WITHIN_S, collect
from orchestrator.cli.screen.foreign import clean
from orchestrator.cli.ui.forecast import forecast
from orchestrator.cli.ui.sweep_panels import Arm, panels
from orchestrator.core.config.gptctl_home import CONFIG_FILE
from orchestrator.core.formats import utc_time
from orchestrator.ledger import database, sweeps
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.sweeps import Sweep
from orchestrator.report.metrics import read_training
from orchestrator.report.pages.curves import training_charts
from orchestrator.runs.sweeps import current, spent_usd
from trainer.contract import BEST, CHECKPOINTS, EVENTS, LATEST, LOG, METRICS

NEWEST_ENDED = 200
"""Ended runs on the page; `gptctl status --all` has every one."""
LOG_BYTES = 16_000
MOST_EVENTS = 100
LEFT_OVER_EVERY_S = 60.0
NEWEST_SWEEPS = 3


class Sight:
    """The newest state, and its number, which changes when anything on the page does."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.state: dict[str, Any] = {"runs": [], "rentals": [], "totals": {}, "totals_words": "", "left_over": []}
        self.number = 0
        self._curves: dict[str, tuple[object, list[tuple[int, float]]]] = {}
        self._left: list[dict[str, Any]] = []
        self._left_at = -LEFT_OVER_EVERY_S

    def refresh(self, ask: bool) -> None:
        """Reads the ledger again; with `ask`, asks the machines of unfinished runs first."""
        with Ledger.open(self.home, time.time) as ledger:
            found = collect(ledger, None, newest_ended=NEWEST_ENDED, answer_within_s=ANSWER_WITHIN_S if ask else 0.0)
            totals = totals_of(ledger)
            swept = [self._sweep(ledger, each) for each in sweeps.listed(ledger.rows)[:NEWEST_SWEEPS]]
            if ask and time.monotonic() - self._left_at > LEFT_OVER_EVERY_S:
                self._left = [row.to_json() for row in left_rows(of_ledger(ledger))]
                self._left_at = time.monotonic()
        state = {
            **found, "totals": totals.to_json(), "totals_words": totals.words, "left_over": self._left,
            "forecast": forecast(totals, found["runs"], time.time()).to_json(), "sweeps": swept,
        }  # fmt: skip
        if _without_ages(state) != _without_ages(self.state):
            self.number += 1
        self.state = state

    def _sweep(self, ledger: Ledger, sweep: Sweep) -> dict[str, Any]:
        """A sweep's panels, and its money against its ceiling."""
        runs = current(sweeps.runs_of(ledger.rows, sweep.id))
        arms = [
            Arm(
                run.labels.get("arm", run.recipe), int(run.labels.get("seed", 0)), run.id,
                run.outcome.value if run.outcome else run.state.value, run.step, run.total_steps, self._curve(run.id),
            )
            for run in runs
        ]  # fmt: skip
        money = {"spent_usd": spent_usd(ledger, sweep), "ceiling_usd": sweep.terms.ceiling_usd}
        return {"id": sweep.id, "name": sweep.name, **money, **panels(arms, sweep.terms.baseline)}

    def _curve(self, run_id: str) -> list[tuple[int, float]]:
        """The validations of a run's mirror, read again when it has changed."""
        mark = self.mark_of(run_id)
        if run_id not in self._curves or self._curves[run_id][0] != mark:
            found = read_training(self.home / "runs" / run_id).validations
            self._curves[run_id] = (mark, [(point.step, point.value) for point in found])
        return self._curves[run_id][1]

    def run(self, run_id: str) -> dict[str, Any]:
        """One run with its curves, events, checkpoints and the end of its log. Raises UserError for an unknown one."""
        with Ledger.open(self.home, time.time) as ledger:
            found = ledger.run(run_id)
            row = collect(ledger, run_id, answer_within_s=0.0)
            events = ledger.events(run_id)[-MOST_EVENTS:]
        mirror = self.home / "runs" / found.id
        return {
            **row["runs"][0],
            "rental_row": row["rentals"][0] if row["rentals"] else None,
            "title": found.name or found.id,
            "charts": [chart.to_json() for chart in training_charts(read_training(mirror))],
            "events": [
                {
                    "time": utc_time(event.time),
                    "kind": event.kind,
                    "stage": event.stage or "",
                    "text": clean(event.text),
                }
                for event in reversed(events)
                if event.text
            ],
            "checkpoints": _checkpoints(mirror / CHECKPOINTS, found.safe_step),
            "log": _end_of(mirror / LOG),
        }

    def mark_of(self, run_id: str) -> tuple[tuple[int, int], ...]:
        """Changes when a file of the run's mirror does: sizes and times."""
        mirror = self.home / "runs" / run_id
        return tuple(_stamp(mirror / name) for name in (METRICS, EVENTS, LOG))

    def mark(self) -> tuple[tuple[int, int], ...]:
        """Changes when the ledger does."""
        return tuple(_stamp(self.home / name) for name in (database.FILE, f"{database.FILE}-wal", CONFIG_FILE))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_size)


def _without_ages(state: Mapping[str, Any]) -> str:
    """The state without what only the clock changes."""
    rows = [{key: value for key, value in row.items() if key not in ("seen_s", "age_s")} for row in state["runs"]]
    return json.dumps({**state, "runs": rows, "forecast": None}, sort_keys=True)


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
