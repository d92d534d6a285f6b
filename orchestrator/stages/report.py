"""Report: report.json, .md and .html, and cost.json, beside the checkpoints; from ledger and mirrored files only."""

from __future__ import annotations

from orchestrator.stages.context import RunContext
from orchestrator.stages.outcome import run_report


def report(context: RunContext) -> None:
    """Writes the files from scratch; twice gives the same files. `release` writes them again with the bill."""
    run_report.write(context)
