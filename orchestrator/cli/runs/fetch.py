"""`gptctl fetch`: brings checkpoints, logs and the cost summary here, verified."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from orchestrator.cli.failures import run_folder
from orchestrator.cli.machines.cost import cost_of
from orchestrator.cli.open_ledger import open_ledger
from orchestrator.cli.screen import screen
from orchestrator.core.errors import UserError
from orchestrator.core.formats import dollars, duration, size
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RENTAL_OPEN, RunRecord
from orchestrator.runs.fetch import fetch_run
from trainer.run_files import CHECKPOINTS, EVENTS, EXIT, LOG, METRICS

COMPANIONS = (METRICS, EVENTS, LOG, EXIT, "cost.json", "report.json", "report.md")
"""Files that go beside the checkpoints, if they exist."""
MARK = ".gptctl-run"
"""In a folder of --to: the run it holds, so that two runs never mix."""


def fetch(wanted: str | None, *, to: Path | None, everything: bool, step: int | None, as_json: bool) -> int:
    """Best and latest by default. Prints one line per checkpoint, or the documented JSON."""
    with open_ledger() as ledger:
        run = ledger.find_run(wanted)
        run_folder.set(ledger.home / "runs" / run.id)
        if to is not None:
            _claim(to, run.id)
        started = time.monotonic()
        with screen.show_events(f"fetching {run.id} from {run.host}") as tell:
            done = fetch_run(ledger.home, run.id, tell, to=to, all_=everything, step=step)
        took_s = time.monotonic() - started
        if to is not None:
            _copy_companions(ledger.home / "runs" / run.id, to)
        _show({**done, "cost": cost_of(ledger, run)}, _wait(ledger, run, done, took_s), as_json=as_json)
        return 0


def _claim(to: Path, run_id: str) -> None:
    """Marks the folder as this run's. Raises UserError for a file, or a folder of another run."""
    mark = to / MARK
    try:
        to.mkdir(parents=True, exist_ok=True)
        holds = mark.read_text(encoding="utf-8").strip() if mark.is_file() else None
        if holds is None and (to / CHECKPOINTS).exists():
            raise UserError(
                f"fetch: {to} has a `{CHECKPOINTS}` that gptctl did not put there", "choose another --to DIR"
            )
        if holds not in (None, run_id):
            raise UserError(f"fetch: {to} holds run {holds}", "choose another --to DIR")
        mark.write_text(f"{run_id}\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"fetch: cannot write to {to}: {error.strerror}", "choose another --to DIR") from error


def _copy_companions(mirror: Path, to: Path) -> None:
    for name in COMPANIONS:
        if (mirror / name).is_file():
            shutil.copyfile(mirror / name, to / name)


def _wait(ledger: Ledger, run: RunRecord, done: dict[str, Any], took_s: float) -> str:
    """`12.30 MB in 4s; the machine cost $0.01 meanwhile`."""
    rental = ledger.rental(run.rental_id) if run.rental_id else None
    price = rental.price_per_hour_usd if rental and rental.state == RENTAL_OPEN else 0.0
    total = sum(each["size_bytes"] for each in done["checkpoints"])
    meanwhile = f"; the machine cost {dollars(price * took_s / 3600)} meanwhile" if price else ""
    return f"{size(total)} verified in {duration(took_s)}{meanwhile}"


def _show(done: dict[str, Any], wait: str, *, as_json: bool) -> None:
    screen.talk(wait)
    if as_json:
        print(json.dumps(done, indent=1), flush=True)
        return
    for each in done["checkpoints"]:
        print(f"step {each['step']}  {size(each['size_bytes'])}  {each['path']}")
    print(f"cost {dollars(done['cost']['cost_usd'])}  {done['to']}", flush=True)
