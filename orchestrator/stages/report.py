"""Report: report.json, report.md and cost.json beside the checkpoints, from the ledger and the mirrored files only."""

from __future__ import annotations

from orchestrator.core.cost import run_cost
from orchestrator.report.summary import write_report
from orchestrator.stages.context import RunContext


def report(context: RunContext) -> None:
    """Writes the files anew; running it twice gives the same files."""
    context.mirror.mkdir(parents=True, exist_ok=True, mode=0o700)
    run, intervals = context.run, context.ledger.intervals(context.run_id)
    tokens = run.step * context.plan.tokens // context.plan.steps
    cost = run_cost(intervals, machine=context.machine, tokens=tokens, host=context.host)
    write_report(run, intervals, cost, context.mirror)
