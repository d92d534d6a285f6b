"""What a user does to a run besides driving it: stop, release, fetch, look. None of these starts a training.

stop and look need no lock; who holds the run's lock walks its stages, so stop and release drive the ending only
when no other process does. `release --force` ends the machine beside that process, which may hang.
"""

from __future__ import annotations

import time
from pathlib import Path

from orchestrator.core.errors import RemoteError, RunLocked, StillBilling
from orchestrator.core.events import Listener
from orchestrator.core.states import Outcome, State
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.run_lock import holder, refuse_driven_elsewhere
from orchestrator.pipeline import drive, may_bill, outcome_code, unreachable
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine.give_back import give_back
from orchestrator.stages.machine.jobs import stop_training
from orchestrator.wiring import open_context


def stop_run(home: Path, run_id: str, listener: Listener) -> int:
    """Ends the training with a checkpoint, then the run, by the outcome `stopped`. Repeatable.

    A paid machine that is given up (`release --force`) is not asked to stop: it ends with its training. Raises
    StillBilling when a paid machine does not answer.
    """
    with Ledger.open(home, time.time) as ledger:
        refuse_driven_elsewhere(ledger.run(run_id))
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
    given_up = context.run.facts.abandon and context.provider.paid
    if context.run.state == State.TRAINING and not given_up:
        context.say("stopping: the training writes a checkpoint first")
        try:
            stop_training(context)
        except RemoteError as error:
            if not may_bill(context):
                raise
            raise StillBilling(*unreachable(context, error.message)) from error
    elif context.run.state != State.ENDING:
        context.ledger.set_state(context.run_id, State.ENDING, outcome=Outcome.STOPPED, cause="stopped by the user")


def drive_unless_driven(home: Path, run_id: str, listener: Listener) -> int:
    """Walks the ending, or leaves it to the gptctl that drives this run already; see _beside for --force."""
    driver = holder(home, run_id)
    if driver is None:
        try:
            return drive(home, run_id, listener)
        except RunLocked:
            driver = holder(home, run_id)
    with Ledger.open(home, time.time) as ledger:
        context = open_context(home, ledger, run_id, listener)
        try:
            return _beside(context, f"pid {driver.pid} on {driver.host}" if driver else "another process")
        finally:
            context.disconnect()


def _beside(context: RunContext, driver: str) -> int:
    """What is left to do beside the gptctl that drives this run: with --force, end its machine by its id."""
    forced = context.run.facts.abandon and may_bill(context)
    if not forced:
        again = f"; if it hangs: gptctl release {context.run_id} --force" if context.provider.paid else ""
        context.say(f"the gptctl that follows this run ({driver}) does the rest{again}")
        return 0
    if context.rental.instance_id is None:
        raise StillBilling(
            f"the gptctl that drives this run ({driver}) waits for a launch, which may have bought a machine",
            f"end that process, then gptctl release {context.run_id} --force",
        )
    context.say(f"ending {', '.join(context.instance_ids)} beside the gptctl that drives this run ({driver})")
    give_back(context)
    context.say(f"that gptctl settles the bill; if it hangs, end it, then: gptctl resume {context.run_id}")
    return 0
