"""What an engine, such as Slurm, says of a run's job: the part of a look that knows hosts' settings.

Example: `heard(shell, run, 1.6)`       # None where it is silent or slow
"""

from __future__ import annotations

from contextlib import suppress

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import GptctlError
from orchestrator.core.facts.run_facts import EngineFacts
from orchestrator.core.ports import Shell
from orchestrator.ledger.records import RunRecord
from orchestrator.providers import load_engine
from orchestrator.stages.machine import engine_job


def heard(shell: Shell, run: RunRecord, left_s: float) -> EngineFacts | None:
    """Its answer within left_s; None where it is silent or slow: the agent's word must not wait for it."""
    host, known = HostSpec.from_resolved(run.host_data), run.facts.engine
    jobs = load_engine(host.provider)
    with suppress(GptctlError):
        engine = jobs.engine(host, shell, left_s, run.created_at) if jobs else None
        found = engine.look(known.jobs[-1]) if engine else None
        return engine_job.seen(known, found, engine.words(found)) if engine and found else None
    return None
