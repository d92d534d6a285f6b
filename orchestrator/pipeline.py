"""THE program: a run is eight stages in a row. Read this first.

Every stage looks at the world and does only what is missing, so a run can be killed anywhere and driven again, and a
stage that loses its link is done again. Trouble on our side (a closed laptop, Ctrl-C, a bug) changes no state: the next
driver continues. Only a verdict
leads to the ending: the agent says the training ended, the machine is unfit, the provider refused, a limit is reached,
or the user typed stop or release. The outcome is written before the first ending stage: from there no way leads back,
but for a run that goes on by itself after its machine was taken away: it walks the stages again, on another machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from orchestrator.core.engine import Phase
from orchestrator.core.errors import (
    AgentError,
    AmbiguousLaunch,
    BadCredentials,
    GptctlError,
    LedgerDamaged,
    LimitReached,
    LinkLost,
    MachineUnfit,
    NoAnswer,
    ProviderError,
    RunLocked,
    StillBilling,
    Unreachable,
    UserError,
)
from orchestrator.core.events import Listener
from orchestrator.core.states import EXIT_CODES, Outcome, State, is_forward, worst
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RENTAL_OPEN, RunRecord
from orchestrator.ledger.run_lock import RunLock, refuse_driven_elsewhere
from orchestrator.notify.run_events import with_notifications
from orchestrator.stages.acquire import acquire
from orchestrator.stages.context import RunContext
from orchestrator.stages.fetch import fetch
from orchestrator.stages.follow import follow
from orchestrator.stages.launch import launch
from orchestrator.stages.machine import queue_turn
from orchestrator.stages.outcome import lost_link, machine_gone, next_attempt
from orchestrator.stages.provision import provision
from orchestrator.stages.release import release
from orchestrator.stages.report import report
from orchestrator.stages.sync import sync
from orchestrator.wiring import open_context


class Stage(NamedTuple):
    """One step of a run. Ending stages are walked whatever the outcome."""

    name: str
    run: Callable[[RunContext], None]
    ending: bool = False


STAGES = (
    Stage("acquire", acquire),
    Stage("provision", provision),
    Stage("sync", sync),
    Stage("launch", launch),
    Stage("follow", follow),
    Stage("fetch", fetch, ending=True),
    Stage("report", report, ending=True),
    Stage("release", release, ending=True),
)

VERDICTS = (MachineUnfit, AgentError, ProviderError, UserError, LimitReached)
"""Errors that end a run which does not train yet; every other error leaves it to be resumed."""
NO_VERDICTS = (NoAnswer, AmbiguousLaunch, RunLocked, LedgerDamaged)
"""Of their kind, but trouble on our side: an API that is silent says nothing about the machine."""


def drive(home: Path, run_id: str, listener: Listener, *, until: str | None = None) -> int:
    """Walks the stages that are left and returns the exit code. `until` names the last stage to walk (`-d`: launch).

    Raises RunLocked when another process, or another host, drives this run, and the error that stopped this walk
    without a verdict.
    """
    with RunLock.acquire(home, run_id), Ledger.open(home, time.time) as ledger:
        refuse_driven_elsewhere(ledger.run(run_id))
        context = open_context(home, ledger, run_id, with_notifications(ledger, run_id, listener))
        try:
            walk(context, until)
            while context.run.state == State.PLANNED:  # a machine of it was taken away or lost, and it goes on
                context.disconnect()
                context = open_context(home, ledger, run_id, context.listener)
                walk(context, until)
        except KeyboardInterrupt:
            if context.run.state == State.ENDING and may_bill(context):
                raise StillBilling(*still_costs(context, "you left before the machine was given back")) from None
            detach(context)
        except GptctlError as error:
            if may_bill(context) and not isinstance(error, StillBilling):
                words = unreachable if isinstance(error, (Unreachable, LinkLost)) else still_costs
                raise StillBilling(*words(context, error.message)) from error
            raise
        finally:
            context.disconnect()
        return exit_code(context)


def walk(context: RunContext, until: str | None = None) -> None:
    """The stages in order; a verdict on the way leads straight to the ending ones."""
    for stage in STAGES:
        if context.run.state == State.ENDED:
            return
        if context.run.state == State.ENDING and not stage.ending:
            continue
        try:
            perform(context, stage)
        except VERDICTS as error:
            if stage.ending or not is_verdict(context, error):
                raise
            give_up(context, error)
        if context.run.state == State.PLANNED:
            return  # it lost a node, and goes on: the stages again, with those that it has now
        if stage.name == until and context.run.state == State.TRAINING:
            return detach(context)
    if not next_attempt.begin(context):
        context.ledger.set_state(context.run_id, State.ENDED)


def perform(context: RunContext, stage: Stage) -> None:
    """One stage, with its time on the bill and its beginning and end in the ledger."""
    context.stage = stage.name
    rental = context.rental
    context.interval = context.ledger.open_stage(
        context.run_id, rental.id, stage.name, queue_turn.price_per_hour_usd(context)
    )
    context.ledger.update_run(context.run_id, stage=stage.name)
    context.emit("stage_started")
    try:
        lost_link.outlast(context, stage.run)
    except GptctlError as error:
        context.emit("stage_failed", error.message)
        raise
    finally:
        context.ledger.close_stage(context.interval, context.now())
        for line in context.provider.take_warnings():
            context.emit("warning", line)
    context.emit("stage_finished")


def give_up(context: RunContext, error: GptctlError) -> None:
    """A verdict before the training: the run ends, with its cause."""
    outcome = Outcome.LIMIT if isinstance(error, LimitReached) else Outcome.NEVER_STARTED
    if outcome is Outcome.NEVER_STARTED and context.ledger.attempts(context.run_id):
        outcome = Outcome.PREEMPTED  # it trained before, elsewhere
    context.ledger.set_state(
        context.run_id, State.ENDING, outcome=outcome, cause=error.message, cause_code=error.exit_code
    )
    hint = f" Next: {error.hint}" if error.hint else ""
    context.emit("failed", error.message + hint, hint=error.hint)


def detach(context: RunContext) -> None:
    """The user leaves, the training continues."""
    training = context.run.state == State.TRAINING
    waits = context.facts.engine.phase == Phase.WAITING
    text = "the job waits in the queue and starts by itself" if waits else "the training continues"
    context.emit("detached", text if training else "nothing trains yet", training=training)


def is_verdict(context: RunContext, error: GptctlError) -> bool:
    """Whether this error ends a run: only before the training, and never while a launch may have bought something."""
    if is_forward(State.TRAINING, context.run.state) or isinstance(error, NO_VERDICTS):
        return False
    if isinstance(error, BadCredentials):  # without a key no machine can be given back
        return not may_bill(context)
    return True


def may_bill(context: RunContext) -> bool:
    """Whether a machine of this run may cost money now: one is held, or a launch has no answer yet."""
    rental = context.rental
    asked = bool(context.ledger.intents(rental.id, open_only=True))
    return context.provider.paid and rental.state == RENTAL_OPEN and (bool(rental.instance_ids) or asked)


def still_costs(context: RunContext, why: str) -> tuple[str, str]:
    """The message and hint of whatever leaves a machine behind."""
    rental = context.rental
    what = rental.held or "a machine whose launch has no answer yet"
    return (
        f"{why}. {what} may still be billing at ${rental.price_per_hour_usd:.2f}/h",
        f"gptctl resume {context.run_id}, or gptctl release {context.run_id}",
    )


def unreachable(context: RunContext, why: str) -> tuple[str, str]:
    """The message and hint for a paid machine that does not answer: its price, what would be lost, how to force it."""
    message, hint = still_costs(context, why)
    return f"{message}. If you end it now: {machine_gone.lost(context)}", f"{hint} --force, which ends it by its id"


def exit_code(context: RunContext) -> int:
    """What the process returns for a run as it stands: by outcome; 0 while it trains on without us, 7 while a machine
    waits for a training that never began, or for its end."""
    run = context.run
    if run.state not in (State.TRAINING, State.ENDED) and may_bill(context):
        return 7
    return outcome_code(run)


def outcome_code(run: RunRecord) -> int:
    """The exit code of an ended run."""
    return 0 if run.outcome is None else worst(run.cause_code or EXIT_CODES[run.outcome])
