"""A training that died and started again on its machine: said once for each time, in the ledger and so in the report.

The agent decides and does it (agent/job/restarts.py); nothing here starts a training.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.agent.contract.answers import Death
from orchestrator.stages.context import RunContext


def note(context: RunContext, deaths: Sequence[Death]) -> None:
    """Says what has not been said yet."""
    known = context.facts.deaths
    for death in deaths[known:]:
        again = death["pause_s"] is not None
        text = f"the training died at step {death['step']}: {death['reason']}"
        if again:
            text += "; it starts again from its newest checkpoint"
        context.emit("warning", text)
    if len(deaths) > known:
        context.set_run_facts(deaths=len(deaths))
