"""What a user does to a run besides driving it: stop, release, fetch, look. None of these starts a training.

stop and look need no lock; whoever holds the run's lock walks its stages, so stop and release drive the ending only
when nobody else does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.core.checkpoints.store_index import StoredCheckpoint, run_uri, told_by
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import GptctlError, RunLocked, UserError
from orchestrator.core.events import Event
from orchestrator.core.ports import Address
from orchestrator.core.states import Outcome, Seen, State
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RENTAL_OPEN, Rental, RunRecord
from orchestrator.ledger.run_lock import RunLock, holder
from orchestrator.pipeline import STAGES, drive, outcome_code, perform
from orchestrator.remote.agent_client.client import Agent, Checkpoint
from orchestrator.stages.checkpoints import from_store, store_job
from orchestrator.stages.checkpoints.copies import pull
from orchestrator.stages.context import RunContext
from orchestrator.stages.follow import mirror_now
from orchestrator.stages.machine import box_guard
from orchestrator.wiring import open_context, open_shell
from trainer import contract
from trainer.contract import checkpoint_name

Listener = Callable[[Event], None]
Found = TypeVar("Found", Checkpoint, StoredCheckpoint)
GRACE_S = 300.0


def stop_run(home: Path, run_id: str, listener: Listener) -> int:
    """Ends the training with a checkpoint, then the run, by the outcome `stopped`. Stopping twice is fine."""
    with Ledger.open(home, time.time) as ledger:
        context = open_context(home, ledger, run_id, listener)
        try:
            if context.run.state == State.ENDED:
                context.say(f"{run_id} has ended already: {context.run.outcome}")
                return outcome_code(context.run)
            _stop(context)
        finally:
            context.disconnect()
    return drive_unless_driven(home, run_id, listener)


def _stop(context: RunContext) -> None:
    if context.run.state == State.TRAINING:
        context.say("stopping: the training writes a checkpoint first")
        context.agent.stop(context.run_id, grace_s=GRACE_S)
    elif context.run.state != State.ENDING:
        context.ledger.set_state(context.run_id, State.ENDING, outcome=Outcome.STOPPED, cause="stopped by the user")


def drive_unless_driven(home: Path, run_id: str, listener: Listener) -> int:
    """Walks the ending, or leaves it to the gptctl that drives this run already."""
    driver = holder(home, run_id)
    if driver is None:
        try:
            return drive(home, run_id, listener)
        except RunLocked:
            driver = holder(home, run_id)
    pid = f"pid {driver.pid} on {driver.host}" if driver else "another process"
    listener(Event("said", time.time(), text=f"the gptctl that follows this run ({pid}) does the rest"))
    return 0


def release_run(home: Path, run_id: str, listener: Listener, *, force: bool = False) -> int:
    """Ends the run if it has not ended, fetches what is kept, and gives the machine back. With force nothing is
    fetched: what is not here yet is lost with the machine."""
    with Ledger.open(home, time.time) as ledger:
        run = ledger.run(run_id)
        ledger.update_run(run_id, keep=False, options={**run.options, "abandon": force or run.options.get("abandon")})
        ended = run.state == State.ENDED
    return _release_ended(home, run_id, listener) if ended else stop_run(home, run_id, listener)


def _release_ended(home: Path, run_id: str, listener: Listener) -> int:
    """A rental that a kept run left open."""
    with RunLock.acquire(home, run_id), Ledger.open(home, time.time) as ledger:
        context = open_context(home, ledger, run_id, listener)
        try:
            if context.rental.state == RENTAL_OPEN:
                perform(context, STAGES[-1])
            else:
                context.say(f"{context.rental.id} was released already")
            return 0
        finally:
            context.disconnect()


def fetch_run(
    home: Path, run_id: str, listener: Listener, *, to: Path | None = None, all_: bool = False, step: int | None = None
) -> dict[str, Any]:
    """Copies checkpoints and logs here and verifies them: best and latest, all kept ones, or one step.

    Returns `{run, to, checkpoints: [{step, path, size_bytes, verified}]}`. Needs the machine only for what is not here.
    """
    with Ledger.open(home, time.time) as ledger:
        context = open_context(home, ledger, run_id, listener)
        context.stage = "fetch"
        folder = (to or context.mirror).expanduser().absolute() / contract.CHECKPOINTS
        try:
            if not ledger.attempts(run_id):
                raise UserError(f"{run_id} never trained: there is nothing to fetch", f"gptctl status {run_id}")
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
    """Whether there is no machine to ask any more, and a store instead."""
    rental = context.rental
    return store_job.wanted(context) and (rental.state != RENTAL_OPEN or bool(rental.data.get("gone_at")))


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


def look(home: Path, runs: Sequence[RunRecord], deadline_s: float = 2.0) -> list[RunRecord]:
    """Asks the machines of unfinished runs, all at once, and returns the runs as the ledger then has them.

    A machine that does not answer in time is `unknown`, never dead; the run's state stays.
    """
    with Ledger.open(home, time.time) as ledger:
        rentals = {run.id: ledger.rental(run.rental_id) for run in runs if _worth_asking(run) and run.rental_id}
        asked = [run for run in runs if run.id in rentals and rentals[run.id].data.get("reached")]
        answers: dict[str, dict[str, Any]] = {}
        threads = [
            # Daemons: one that hangs on a dead link must not keep the command from ending.
            threading.Thread(target=_ask, args=(home, run, rentals[run.id], deadline_s, answers), daemon=True)
            for run in asked
        ]
        deadline = time.monotonic() + deadline_s
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for run in asked:
            ledger.update_run(run.id, **_seen(answers.get(run.id), rentals[run.id]))
            _note_store(ledger, run, answers.get(run.id) or {})
            _note_guard(ledger, run, answers.get(run.id) or {})
        return [ledger.run(run.id) if run in asked else run for run in runs]


def _note_guard(ledger: Ledger, run: RunRecord, answer: dict[str, Any]) -> None:
    """What the machine says of its guard; whoever drives the run writes that down by itself."""
    rental = ledger.rental(run.rental_id or "")
    known, state = rental.data.get("guard") or {}, answer.get("guard") or {}
    if {known.get("kind"), state.get("kind")} & {*box_guard.KINDS} and state and holder(ledger.home, run.id) is None:
        ledger.update_rental(rental.id, data={**rental.data, "guard": box_guard.told_by(known, state, time.time())})


def _note_store(ledger: Ledger, run: RunRecord, answer: dict[str, Any]) -> None:
    """What the machine says of the store; the newest step that is safe anywhere else counts."""
    safe = max(map(int, answer.get("safe") or []), default=0)
    if safe > (ledger.run(run.id).safe_step or 0):
        ledger.update_run(run.id, safe_step=safe)
    uri = HostSpec.from_resolved(run.host_data).checkpoint_store
    if uri is not None and answer.get("store") and holder(ledger.home, run.id) is None:
        told = told_by(run_uri(uri, run.id), answer["store"])
        ledger.update_run(run.id, options={**ledger.run(run.id).options, "store": told})


def _worth_asking(run: RunRecord) -> bool:
    return run.state in (State.PREPARING, State.TRAINING, State.ENDING)


def _ask(home: Path, run: RunRecord, rental: Rental, deadline_s: float, answers: dict[str, dict[str, Any]]) -> None:
    """Puts the agent's view of the run into `answers`; silence or any failure leaves it out."""
    accept = bool(run.options.get("accept_new_host_key"))
    with suppress(GptctlError):
        shell = open_shell(home, Address(**rental.address), accept_new=accept, deadline_s=deadline_s)
        try:
            answer = Agent(shell, rental.folder).status(run.id, deadline_s=deadline_s)
            answers[run.id] = dict(answer["runs"].get(run.id, {}))
        finally:
            shell.close()


def _seen(answer: dict[str, Any] | None, rental: Rental) -> dict[str, Any]:
    """The fields of a run's row that one answer changes."""
    if answer is None:
        return {"seen": Seen.UNKNOWN}
    via = "local" if rental.address.get("host") is None else "ssh"
    metrics = answer.get("metrics") or {}
    known = {
        name: metrics[name] for name in ("step", "loss", "tokens_per_second", "mfu") if metrics.get(name) is not None
    }
    return {"seen": Seen.LIVE, "seen_at": time.time(), "seen_via": via, **known}
