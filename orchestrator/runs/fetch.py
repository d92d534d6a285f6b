"""Fetch from outside a run: copies checkpoints and logs here and verifies them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from orchestrator.core.checkpoints.store_index import StoredCheckpoint
from orchestrator.core.errors import RunLocked, UserError
from orchestrator.core.events import Listener
from orchestrator.core.states import Outcome
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RENTAL_OPEN
from orchestrator.ledger.run_lock import RunLock
from orchestrator.remote.agent_client.client import Checkpoint
from orchestrator.stages.checkpoints import from_store, store_job
from orchestrator.stages.checkpoints.copies import pull
from orchestrator.stages.checkpoints.mirror import mirror_now
from orchestrator.stages.context import RunContext
from orchestrator.wiring import open_context
from trainer import contract
from trainer.contract import checkpoint_name

Found = TypeVar("Found", Checkpoint, StoredCheckpoint)


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
        folder = (to or context.mirror).expanduser().absolute() / contract.CHECKPOINTS
        try:
            if not ledger.attempts(run_id):
                raise UserError(f"{run_id} never trained: nothing to fetch", f"gptctl status {run_id}")
            wanted: Sequence[Checkpoint | StoredCheckpoint] = (
                _from_store(context, folder, all_=all_, step=step)
                if _is_gone(context)
                else _from_machine(context, folder, all_=all_, step=step)
            )
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


def _is_gone(context: RunContext) -> bool:
    """Whether the machine is gone and a store has the checkpoints."""
    rental = context.rental
    return store_job.wanted(context) and (rental.state != RENTAL_OPEN or rental.facts.life.gone_at is not None)


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
