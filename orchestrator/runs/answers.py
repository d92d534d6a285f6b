"""What a machine and the engine behind it say of a run, into the ledger: the part of a look that knows hosts' settings.

Loaded while the machines are asked, because it takes half a second of a slow computer. It must not reach a machine.

Example: `record(ledger, run, rental, status, None)`
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace

from orchestrator.agent.contract.answers import RunStatus
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import GptctlError
from orchestrator.core.facts.run_facts import EngineFacts
from orchestrator.core.ports import Shell
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Rental, RunRecord
from orchestrator.ledger.run_lock import holder
from orchestrator.providers import load_engine
from orchestrator.stages.machine import engine_job
from orchestrator.stages.machine.reported import news_of_guard, record_safe_step, record_store


def record(ledger: Ledger, run: RunRecord, rental: Rental, status: RunStatus, engine: EngineFacts | None) -> None:
    """Writes it down. The process that drives the run records its guard and its store."""
    record_safe_step(ledger, run, status)
    if run.facts.queue is not None and run.facts.queue.ahead != status["ahead"]:
        ledger.update_run(run.id, facts={"queue": replace(run.facts.queue, ahead=status["ahead"])})
    if holder(ledger.home, run.id) is not None:
        return
    if engine is not None:
        ledger.update_run(run.id, facts={"engine": engine})
    host = HostSpec.from_resolved(run.host_data)
    record_store(ledger, run, host, status)
    guard = news_of_guard(ledger.rental(rental.id), host, status["guard"], time.time())
    if guard is not None:
        ledger.update_rental(rental.id, facts={"guard": guard})


def engine_facts(shell: Shell, run: RunRecord, left_s: float) -> EngineFacts | None:
    """What an engine says of the run's job in time; None where it is silent or slow: the agent's word must not wait
    for it."""
    host, known = HostSpec.from_resolved(run.host_data), run.facts.engine
    jobs = load_engine(host.provider)
    with suppress(GptctlError):
        engine = jobs.engine(host, shell, left_s, run.created_at) if jobs else None
        found = engine.look(known.jobs[-1]) if engine else None
        return engine_job.seen(known, found, engine.words(found)) if engine and found else None
    return None
