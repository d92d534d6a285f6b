"""What ended runs keep on this computer, and how they give it back: their disk, their names, their place in the lists.

What a run cost stays in the ledger for good. A checkpoint that is nowhere else goes only when you say so.

Example::

    for each in matching(ledger.runs(), Rules(older_than_s=30 * 86400), now=time.time()):
        drop_checkpoints(ledger, each, only_copies=False)
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.core.errors import UserError
from orchestrator.core.states import Outcome, State
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RENTAL_OPEN, RunRecord
from orchestrator.ledger.run_lock import RunLock
from orchestrator.report.local_checkpoints import read_checkpoints
from orchestrator.wiring import LOCAL
from trainer.run_files import CHECKPOINTS


@dataclass(frozen=True)
class Rules:
    """Which ended runs are meant: those that every rule agrees to."""

    older_than_s: float | None = None
    """Since the run ended."""
    outcomes: frozenset[Outcome] = frozenset()
    except_newest: int = 0
    """Of all ended runs, so many of the newest stay."""
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        return self == Rules()


def matching(runs: Sequence[RunRecord], rules: Rules, now: float) -> list[RunRecord]:
    """Of these runs, newest first, the ended ones that the rules mean. An empty rule means all."""
    ended = [run for run in runs if run.state is State.ENDED][rules.except_newest :]
    return [
        run
        for run in ended
        if (rules.older_than_s is None or now - (run.ended_at or now) >= rules.older_than_s)
        and (not rules.outcomes or run.outcome in rules.outcomes)
        and all(run.labels.get(key) == value for key, value in rules.labels.items())
    ]


def folders(ledger: Ledger, run: RunRecord) -> list[Path]:
    """Everything on this computer that is this run's alone. Of host `local` the machine's side too."""
    found = [ledger.home / "runs" / run.id]
    if run.rental_id is not None:
        rental = ledger.rental(run.rental_id)
        if rental.provider == LOCAL and rental.folder:
            found += [Path(rental.folder) / part / run.id for part in ("runs", "jobs")]
    return [folder for folder in found if folder.is_dir() and not folder.is_symlink()]


def disk_bytes(*places: Path) -> int:
    """What these folders take; a file with several names counts once, and what is gone meanwhile not at all."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for place in places:
        for folder, _, names in os.walk(place, onerror=None):
            for name in names:
                try:
                    found = os.lstat(os.path.join(folder, name))
                except OSError:
                    continue
                if (found.st_dev, found.st_ino) not in seen:
                    seen.add((found.st_dev, found.st_ino))
                    total += found.st_size
    return total


def checkpoint_folders(ledger: Ledger, run: RunRecord) -> list[Path]:
    """The folders of checkpoints that are here."""
    return [folder / CHECKPOINTS for folder in folders(ledger, run) if (folder / CHECKPOINTS).is_dir()]


def is_only_copy(ledger: Ledger, run: RunRecord) -> bool:
    """Whether a checkpoint is here that its store is not known to have."""
    steps = [
        each.step for folder in checkpoint_folders(ledger, run) for each in read_checkpoints(folder) if each.complete
    ]
    stored = run.facts.store.safe_step if run.facts.store else None
    return bool(steps) and (stored is None or stored < max(steps))


def _refuse_needed(ledger: Ledger, run: RunRecord) -> None:
    """Raises UserError for a run that has not ended, whose machine is held, or that an unfinished run begins from."""
    if run.state is not State.ENDED:
        raise UserError(f"{run.id} has not ended ({run.state})", f"gptctl stop {run.id}")
    if run.rental_id is not None and ledger.rental(run.rental_id).state == RENTAL_OPEN:
        raise UserError(f"{run.id}: its machine {run.rental_id} is still held", f"gptctl release {run.id}")
    for other in ledger.runs(unfinished_only=True):
        if other.facts.origin is not None and other.facts.origin.run == run.id:
            raise UserError(f"{other.id} begins from {run.id} and has not ended", f"gptctl stop {other.id}")


def drop_checkpoints(ledger: Ledger, run: RunRecord, *, only_copies: bool) -> int:
    """Removes the run's checkpoints from this computer; log, metrics, report and cost stay. Returns the bytes.

    Raises UserError where it is needed, and unless `only_copies` where a checkpoint is nowhere else.
    """
    with RunLock.acquire(ledger.home, run.id):
        check_goes(ledger, run, only_copies=only_copies)
        return _remove(checkpoint_folders(ledger, run))


def forget(ledger: Ledger, run: RunRecord, now: float, *, only_copies: bool) -> int:
    """Removes the run's files and takes it out of every list; `gptctl cost` keeps what it cost. Returns the bytes.

    The files first: a forget that is killed can be repeated.
    """
    with RunLock.acquire(ledger.home, run.id):
        check_goes(ledger, run, only_copies=only_copies)
        freed = _remove(folders(ledger, run))
        ledger.update_run(run.id, name=None, facts={"forgotten_at": now})
        return freed


def check_goes(ledger: Ledger, run: RunRecord, *, only_copies: bool) -> None:
    """Raises UserError where it is needed, and unless `only_copies` where a checkpoint is nowhere else."""
    _refuse_needed(ledger, run)
    if not only_copies and is_only_copy(ledger, run):
        raise UserError(
            f"{run.id}: its checkpoints are on this computer only",
            f"gptctl export {run.id} --push OWNER/NAME, or --only-copies to delete them for good",
        )


def _remove(places: Sequence[Path]) -> int:
    freed = disk_bytes(*places)
    for place in places:
        try:
            shutil.rmtree(place)
        except OSError as error:
            raise UserError(f"cannot remove {place}: {error.strerror}", "mend its mode, then repeat") from error
    return freed
