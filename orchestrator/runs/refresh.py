"""Asks the machines of unfinished runs how they are, all at once, and writes their answers into the ledger.

A machine that does not answer in time is `unknown`, never dead; the run's state stays."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from orchestrator.agent.contract.answers import RunStatus
from orchestrator.agent.contract.names import JobName
from orchestrator.core.errors import GptctlError
from orchestrator.core.facts.run_facts import EngineFacts
from orchestrator.core.parallel import answers_within
from orchestrator.core.ports import Shell
from orchestrator.core.states import Seen, State
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Rental, RunProgress, RunRecord
from orchestrator.ledger.run_lock import holder
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.shell.opened import open_shell
from orchestrator.stages.machine.reported import news_of_guard, record_safe_step, record_store
from trainer.run_files import metric_line

ASKS_SHARE = 0.8
"""Of the time for an answer: a busy engine is left unheard rather than the machine."""


def look(home: Path, runs: Sequence[RunRecord], deadline_s: float = 2.0) -> list[RunRecord]:
    """Asks the machines of unfinished runs, all at once, and returns the runs as the ledger then has them.

    A machine that does not answer in time is `unknown`, never dead; the run's state stays.
    """
    with Ledger.open(home, time.time) as ledger:
        rentals = {run.id: ledger.rental(run.rental_id) for run in runs if _worth_asking(run) and run.rental_id}
        asked = [run for run in runs if run.id in rentals and rentals[run.id].facts.reached]
        calls = {run.id: partial(_fetch_status, home, run, rentals[run.id], deadline_s) for run in asked}
        answers = answers_within(deadline_s, calls)
        for run in asked:
            _record(ledger, run, rentals[run.id], answers.get(run.id))
        return [ledger.run(run.id) if run in asked else run for run in runs]


HEAD_SILENT_S = 60.0
MOST_SAID = 300


class Answer(NamedTuple):
    """What the machine, and the engine behind it, say of a run."""

    status: RunStatus
    engine: EngineFacts | None


def _record(ledger: Ledger, run: RunRecord, rental: Rental, answer: Answer | None) -> None:
    """Writes what the machine answered. The process that drives the run records its guard and its store."""
    status = answer.status if answer else None
    ledger.update_run(run.id, **_progress(status, rental))
    waits = "" if holder(ledger.home, run.id) is not None else needs_resume(run, status, time.time())
    if waits != run.facts.needs_resume:
        ledger.update_run(run.id, facts={"needs_resume": waits})
    if status is None:
        return
    record_safe_step(ledger, run, status)
    if run.facts.queue is not None and run.facts.queue.ahead != status["ahead"]:
        ledger.update_run(run.id, facts={"queue": replace(run.facts.queue, ahead=status["ahead"])})
    if holder(ledger.home, run.id) is not None:
        return
    if answer is not None and answer.engine is not None:
        ledger.update_run(run.id, facts={"engine": answer.engine})
    store, guard = run.host_data.get("checkpoint_store"), run.host_data.get("guard")
    record_store(ledger, run, str(store) if store else None, status)
    news = news_of_guard(ledger.rental(rental.id), str(guard or "none"), status["guard"], time.time())
    if news is not None:
        ledger.update_rental(rental.id, facts={"guard": news})


def needs_resume(run: RunRecord, status: RunStatus | None, now: float) -> str:
    """Why a run that no gptctl follows goes no further: its training is over there; or the head of several nodes is
    silent, and may be lost to the others. status None: its machine did not answer."""
    if run.state is not State.TRAINING:
        return ""
    nodes, policy = run.host_data.get("nodes"), run.host_data.get("on_node_lost", "end")
    goes_on = isinstance(nodes, (list, tuple)) and len(nodes) > 1 and policy != "end"
    if status is None:
        is_silent = goes_on and now - (run.seen_at or run.created_at) > HEAD_SILENT_S
        return "the head of its nodes does not answer; it goes on if the others lost it, too" if is_silent else ""
    train = status["jobs"].get(JobName.TRAIN)
    if train is None or train["exit"] is None:
        return ""
    outcome, reason = train["exit"]["outcome"], train["exit"]["reason"][:MOST_SAID]
    lost = goes_on and train["exit"].get("lost")
    then = f'; it goes on, as on_node_lost = "{policy}" says' if lost else ""
    return f"its training has ended there ({outcome}{f': {reason}' if reason and outcome != 'finished' else ''}){then}"


def _worth_asking(run: RunRecord) -> bool:
    return run.state in (State.PREPARING, State.TRAINING, State.ENDING)


def _fetch_status(home: Path, run: RunRecord, rental: Rental, deadline_s: float) -> Answer | None:
    """The agent's view of the run; None for silence and any failure."""
    until = time.monotonic() + ASKS_SHARE * deadline_s
    with suppress(GptctlError):
        shell = open_shell(home, rental.address, accept_new=run.facts.accept_new_host_key, deadline_s=deadline_s)
        try:
            status = Agent(shell, rental.folder).status(run.id, deadline_s=deadline_s)["runs"][run.id]
            return Answer(status, _engine_facts(shell, run, until - time.monotonic()))
        finally:
            shell.close()
    return None


def _engine_facts(shell: Shell, run: RunRecord, left_s: float) -> EngineFacts | None:
    """What an engine says of the run's job in time; None where none runs it, or it is silent or slow."""
    if not run.facts.engine.jobs or left_s <= 0:
        return None
    # Only now: few runs have an engine, and the settings of its host take half a second of a slow computer to load.
    from orchestrator.runs import engine_view

    return engine_view.heard(shell, run, left_s)


def _progress(status: RunStatus | None, rental: Rental) -> RunProgress:
    """The fields of a run's row that one answer changes."""
    if status is None:
        return {"seen": Seen.UNKNOWN}
    via = "local" if rental.address.host is None else "ssh"
    row: RunProgress = {"seen": Seen.LIVE, "seen_at": time.time(), "seen_via": via}
    line = metric_line(status["metrics"])
    if line is not None:
        row |= {"step": line.step, "tokens_per_second": line.tokens_per_second}
        row |= {"loss": line.loss} if line.loss is not None else {}
        row |= {"mfu": line.mfu} if line.mfu is not None else {}
    return row
