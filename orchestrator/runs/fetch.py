"""Fetch from outside a run: copies checkpoints and logs here and verifies them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from orchestrator.core.checkpoints.store_index import StoredCheckpoint
from orchestrator.core.errors import LinkLost, RunLocked, StorageError, Unreachable, UserError, VerificationFailed
from orchestrator.core.events import Listener
from orchestrator.core.states import Outcome, State
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RENTAL_OPEN
from orchestrator.ledger.run_lock import RunLock
from orchestrator.remote.agent_client.client import Checkpoint
from orchestrator.remote.whole_files import require_space
from orchestrator.report.local_checkpoints import Checkpoint as LocalCheckpoint
from orchestrator.report.local_checkpoints import read_checkpoints
from orchestrator.stages.checkpoints import from_store, store_job
from orchestrator.stages.checkpoints.continue_from import whole
from orchestrator.stages.checkpoints.copies import link, pull
from orchestrator.stages.checkpoints.mirror import mirror_now
from orchestrator.stages.context import RunContext
from orchestrator.wiring import open_context
from trainer import run_files
from trainer.run_files import checkpoint_name

Found = TypeVar("Found", Checkpoint, StoredCheckpoint, LocalCheckpoint)


def fetch_run(
    home: Path, run_id: str, listener: Listener, *, to: Path | None = None, all_: bool = False, step: int | None = None
) -> dict[str, object]:
    """Copies checkpoints and logs here and verifies them: best and latest, all kept ones, or one step.

    Returns `{run, to, checkpoints: [{step, path, size_bytes, verified}]}`. Needs the machine only for what is not here.
    """
    with Ledger.open(home, time.time) as ledger:
        if ledger.run(run_id).outcome is Outcome.IMPORTED:
            raise UserError(f"{run_id} is imported: its checkpoint is here", f"gptctl status {run_id}")
        context = open_context(home, ledger, run_id, listener)
        context.stage = "fetch"
        folder = (to or context.mirror).expanduser().absolute() / run_files.CHECKPOINTS
        try:
            if not ledger.attempts(run_id):
                raise UserError(f"{run_id} never trained: nothing to fetch", f"gptctl status {run_id}")
            wanted = _brought(context, folder, all_=all_, step=step)
        finally:
            context.disconnect()
        checkpoints = [
            {
                "step": found.step,
                "path": str(folder / checkpoint_name(found.step)),
                "size_bytes": found.size_bytes,
                "verified": True,
            }
            for found in wanted
        ]
        return {"run": run_id, "to": str(folder.parent), "checkpoints": checkpoints}


def _brought(
    context: RunContext, folder: Path, *, all_: bool, step: int | None
) -> Sequence[Checkpoint | StoredCheckpoint | LocalCheckpoint]:
    """From the machine; from the store once that is left; where neither answers and the run has ended, what is here."""
    rental = context.rental
    left = rental.state != RENTAL_OPEN or rental.facts.life.gone_at is not None
    stored = left and store_job.wanted(context)
    if left and context.provider.paid and not stored:
        return _from_here(context, folder, all_=all_, step=step, why="its machine is gone")
    try:
        return (_from_store if stored else _from_machine)(context, folder, all_=all_, step=step)
    except (LinkLost, Unreachable, StorageError) as error:
        if context.run.state is not State.ENDED:
            raise
        return _from_here(context, folder, all_=all_, step=step, why=error.message)


def _from_here(
    context: RunContext, folder: Path, *, all_: bool, step: int | None, why: str
) -> Sequence[LocalCheckpoint]:
    """What this side has of a run that has ended, every byte compared with its manifest. Raises UserError where the
    checkpoint of its last step is not among it."""
    run, here = context.run, context.mirror / run_files.CHECKPOINTS
    found = [each for each in read_checkpoints(here) if _is_whole(context, each)]
    steps = f"here: {', '.join(f'step {each.step}' for each in found) or 'none'} ({here})"
    if not found:
        raise UserError(f"{run.id}: {why}; checkpoints {steps}", f"gptctl run {run.recipe} --host {run.host}")
    last = max((run.safe_step or 0), run.total_steps or 0 if run.outcome is Outcome.FINISHED else 0)
    if step is None and found[-1].step < last:
        raise UserError(
            f"{run.id}: {why}, and its last checkpoint, of step {last}, is not here; {steps}",
            f"gptctl run {run.recipe} --host {run.host} --resume-from {run.id}@{found[-1].step}",
        )
    context.say(f"{why}; {steps}")
    wanted = _wanted(found, run.id, all_=all_, step=step) or found[-1:]
    for each in wanted:
        if not (folder / each.path.name).exists():
            require_space(folder, each.size_bytes)
            shutil.copytree(each.path, folder / f".tmp-{each.path.name}", dirs_exist_ok=True)
            (folder / f".tmp-{each.path.name}").rename(folder / each.path.name)
        for name, is_it in ((run_files.LATEST, each.latest), (run_files.BEST, each.best)):
            if is_it and folder != here:
                link(folder / name, each.path.name)
    return wanted


def _is_whole(context: RunContext, found: LocalCheckpoint) -> bool:
    try:
        whole(found.path)
    except (OSError, VerificationFailed) as error:
        context.emit("warning", f"{found.path.name} here is damaged: {error}")
        return False
    return True


def _from_machine(context: RunContext, folder: Path, *, all_: bool, step: int | None) -> Sequence[Checkpoint]:
    found = _wanted(context.agent.manifest(context.run_id), context.run_id, all_=all_, step=step)
    _mirror_logs(context)
    context.mirror.mkdir(parents=True, exist_ok=True, mode=0o700)
    pull(context, found, folder)
    return found


def _from_store(context: RunContext, folder: Path, *, all_: bool, step: int | None) -> Sequence[StoredCheckpoint]:
    place = store_job.uri(context)
    index = store_job.read_index(context, place)
    found = _wanted(index.checkpoints, context.run_id, all_=all_, step=step)
    from_store.bring_logs(context, place, index.files)
    from_store.bring(context, place, found, folder)
    return found


def _wanted(found: Sequence[Found], run_id: str, *, all_: bool, step: int | None) -> list[Found]:
    """All, best and latest, or those of a step. Raises UserError naming the steps there are."""
    if step is not None:
        chosen = [each for each in found if each.step == step]
        if not chosen:
            there = ", ".join(str(each.step) for each in found) or "none"
            raise UserError(f"{run_id} has no checkpoint of step {step}; there are: {there}", "name one of these")
        return chosen
    return [each for each in found if all_ or each.best or each.latest]


def _mirror_logs(context: RunContext) -> None:
    """Brings the mirrored logs up to now, unless the gptctl that drives this run is doing that already."""
    try:
        with RunLock.acquire(context.home, context.run_id):
            mirror_now(context)
    except RunLocked:
        context.say("the logs are mirrored by the gptctl that follows this run")
