"""`gptctl runs`: what every run is called and keeps on this computer; renames, forgets and prunes.

runs/housekeeping.py does it; here you are asked, and told what goes and what stays.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from orchestrator.cli.open_ledger import open_ledger
from orchestrator.cli.runs.typed_names import checked_text, labels_of
from orchestrator.cli.screen import screen
from orchestrator.cli.screen.tables import Column
from orchestrator.core.errors import GptctlError, UserError
from orchestrator.core.formats import DASH, dollars, duration, size
from orchestrator.core.parallel import in_turn
from orchestrator.core.states import Outcome
from orchestrator.core.suggest import one_of
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RunRecord
from orchestrator.runs import housekeeping
from orchestrator.runs.housekeeping import Rules

COLUMNS = (
    Column("RUN"), Column("NAME", leaves=2), Column("HOST", leaves=5), Column("STATE"),
    Column("AGE", right=True, leaves=3), Column("DISK", right=True), Column("CHECKPOINTS", right=True, leaves=1),
    Column("ELSEWHERE", leaves=4), Column("COST", right=True, leaves=3),
)  # fmt: skip
DAY_S = 86_400.0


@dataclass(frozen=True)
class Row:
    """One run, for people and for `--json`."""

    id: str
    name: str | None
    host: str
    state: str
    age_s: float
    """Since it was started."""
    disk_bytes: int
    checkpoint_bytes: int
    elsewhere: bool | None
    """Whether its store has every checkpoint that is here; None: none is here."""
    cost_usd: float


@dataclass(frozen=True)
class Typed:
    """The rules as you typed them."""

    older_than_days: float | None
    outcomes: list[str]
    except_newest: int
    labels: list[str]


def listed(*, as_json: bool) -> int:
    """Every run, newest first, and what the whole of GPTCTL_HOME takes."""
    with open_ledger() as ledger:
        now = time.time()
        costs = {each.id: sum(each.by_stage.values()) for each in ledger.spent_by_run()}
        rows = [_row(ledger, run, now, costs.get(run.id, 0.0)) for run in ledger.runs()]
        parts = _parts(ledger.home)
    if as_json:
        print(json.dumps({"runs": [asdict(row) for row in rows], "disk_bytes": parts}, indent=1))
        return 0
    screen.show_table(COLUMNS, [_cells(row) for row in rows])
    whole = ", ".join(f"{name} {size(taken)}" for name, taken in parts.items() if taken >= 1_000_000)
    screen.talk(f"{ledger.home} takes {size(sum(parts.values()))}{f': {whole}' if whole else ''}")
    if any(row.checkpoint_bytes for row in rows):
        screen.talk("Next: gptctl runs prune --older-than 30")
    return 0


def _row(ledger: Ledger, run: RunRecord, now: float, cost_usd: float) -> Row:
    kept = housekeeping.checkpoint_folders(ledger, run)
    return Row(
        run.id, run.name, run.host, (run.outcome or run.state).value, max(0.0, now - run.created_at),
        housekeeping.disk_bytes(*housekeeping.folders(ledger, run)), housekeeping.disk_bytes(*kept),
        not housekeeping.is_only_copy(ledger, run) if kept else None, cost_usd,
    )  # fmt: skip


def _cells(row: Row) -> list[str]:
    elsewhere = DASH if row.elsewhere is None else "yes" if row.elsewhere else "no"
    return [
        row.id, row.name or DASH, row.host, row.state, duration(row.age_s), size(row.disk_bytes),
        size(row.checkpoint_bytes), elsewhere, dollars(row.cost_usd),
    ]  # fmt: skip


def _parts(home: Path) -> dict[str, int]:
    """Bytes by the folder of GPTCTL_HOME, largest first; its own files are `ledger and settings`."""
    taken = {each.name: housekeeping.disk_bytes(each) for each in home.iterdir() if each.is_dir()}
    files = sum(each.lstat().st_size for each in home.iterdir() if each.is_file())
    return dict(sorted({**taken, "ledger and settings": files}.items(), key=lambda pair: -pair[1]))


def rename(wanted: str, name: str) -> int:
    """Another name, or none. Says so where another run has it already."""
    checked = checked_text("NAME", name) if name else None
    with open_ledger() as ledger:
        run = ledger.find_run(wanted)
        same = [other.id for other in ledger.runs() if checked and other.name == checked and other.id != run.id]
        ledger.update_run(run.id, name=checked)
    if same:
        screen.talk(f"{', '.join(same)} has that name too; it means the newest run")
    screen.talk(f"{run.id} is now {checked!r}" if checked else f"{run.id} has no name now")
    return 0


def forget_these(wanted: Sequence[str], *, only_copies: bool, yes: bool, as_json: bool) -> int:
    """Refuses all of them where one must stay: you named each."""
    with open_ledger() as ledger:
        runs = list({run.id: run for run in map(ledger.find_run, wanted)}.values())
        for run in runs:
            housekeeping.check_goes(ledger, run, only_copies=only_copies)
        return _go(ledger, runs, entirely=True, only_copies=only_copies, yes=yes, as_json=as_json)


def prune(typed: Typed, *, entirely: bool, only_copies: bool, yes: bool, as_json: bool) -> int:
    """What the rules mean goes; of that, what is needed or nowhere else stays and is named."""
    rules = _rules(typed)
    with open_ledger() as ledger:
        goes: list[RunRecord] = []
        for run in housekeeping.matching(ledger.runs(), rules, time.time()):
            places = housekeeping.folders(ledger, run) if entirely else housekeeping.checkpoint_folders(ledger, run)
            if not places and not entirely:
                continue
            try:
                housekeeping.check_goes(ledger, run, only_copies=only_copies)
                goes.append(run)
            except GptctlError as error:
                screen.talk(f"kept: {error.message}")
        return _go(ledger, goes, entirely=entirely, only_copies=only_copies, yes=yes, as_json=as_json)


def _rules(typed: Typed) -> Rules:
    known = [each.value for each in Outcome]
    for text in typed.outcomes:
        if text not in known:
            raise UserError(f"--outcome {text!r}: known are {one_of(known)}", "gptctl runs shows how each ended")
    rules = Rules(
        None if typed.older_than_days is None else typed.older_than_days * DAY_S,
        frozenset(map(Outcome, typed.outcomes)), typed.except_newest, labels_of(typed.labels),
    )  # fmt: skip
    if rules.empty:
        raise UserError("no rule says which runs are meant", "gptctl runs prune --older-than 30")
    return rules


def _go(
    ledger: Ledger, runs: Sequence[RunRecord], *, entirely: bool, only_copies: bool, yes: bool, as_json: bool
) -> int:
    of = housekeeping.folders if entirely else housekeeping.checkpoint_folders
    sizes = {run.id: housekeeping.disk_bytes(*of(ledger, run)) for run in runs}
    what = "forget" if entirely else "delete the checkpoints of"
    for run in runs:
        screen.talk(f"{what} {run.id}{f' ({run.name})' if run.name else ''}: {size(sizes[run.id])}")
    whole = size(sum(sizes.values()))
    if not runs:
        screen.talk("nothing to do")
    elif not (yes or screen.ask(f"{what.capitalize()} {len(runs)} runs, {whole}?", shlex.join(_command()))):
        screen.talk("nothing was deleted")
        return 0
    drop = partial(housekeeping.forget, now=time.time()) if entirely else housekeeping.drop_checkpoints
    freed = sum(in_turn(runs, lambda run: drop(ledger, run, only_copies=only_copies)))
    if as_json:
        print(json.dumps({"runs": [run.id for run in runs], "freed_bytes": freed}, indent=1))
    elif runs:
        screen.talk(f"freed {size(freed)}")
    return 0


def _command() -> list[str]:
    return ["gptctl", *sys.argv[1:]]
