"""`gptctl schema`: what a command prints with --json, as a JSON Schema. The tests hold real outputs against it.

Example: `schema_of("status")["properties"]["runs"]`
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from orchestrator.cli.schemas import machines, models, results, runs
from orchestrator.core.errors import UserError
from orchestrator.core.suggest import did_you_mean

DRAFT = "https://json-schema.org/draft/2020-12/schema"
FAILURE = "failure"
"""What every command prints when it fails."""

OUTPUTS: Mapping[str, type] = {
    "recipes": runs.Recipes, "plan": runs.Plans, "run": runs.Ending, "resume": runs.Ending, "stop": runs.Ending,
    "release": runs.Ending, "fetch": runs.Fetch, "status": runs.Status, "queue": runs.Queue,
    "runs": runs.History, "runs list": runs.History, "runs forget": runs.Freed, "runs prune": runs.Freed,
    "cost": runs.Cost, "cost --reconcile": runs.Reconciled,
    "sweep plan": results.SweepPlan, "sweep run": results.SweepStatus, "sweep resume": results.SweepStatus,
    "sweep status": results.SweepStatus, "sweep add": results.SweepStatus, "sweep drop": results.SweepStatus,
    "sweep stop": results.SweepStatus, "sweep compare": results.Comparison,
    "compare": results.Comparison, "report": results.Report,
    "hosts": machines.Hosts, "offers": machines.Offers, "orphans": machines.Orphans,
    "orphans --install-timer": machines.Watcher, "check": machines.Check, "check --drill": machines.Drill,
    "sample": models.Samples, "attention": models.Attention, "import": models.Imported, "export": models.Exported,
    "eval": models.Evaluated, "judge": models.Judged,
    "data prepare": models.Prepared, "data merge": models.Prepared,
    "data inspect": models.Inspected, "data convert": models.Converted,
    "data verify": models.Verified, "data overlap": models.Overlap, "data push": models.Pushed,
    FAILURE: machines.Failure,
}  # fmt: skip
"""Command, and the option that gives it another result -> the type of its result."""


def schema(words: list[str]) -> int:
    """Prints the schema of one command, or of all by their names."""
    found: object = schema_of(" ".join(words)) if words else {name: schema_of(name) for name in OUTPUTS}
    print(json.dumps(found, indent=1))
    return 0


def schema_of(name: str) -> dict[str, Any]:
    """The schema. Raises UserError for a command without --json. Later versions may add keys, and remove none."""
    if name not in OUTPUTS:
        raise UserError(f"no command {name!r} prints JSON{did_you_mean(name, OUTPUTS)}", "gptctl schema lists them all")
    made = TypeAdapter(OUTPUTS[name]).json_schema(mode="serialization")
    title = "any command that fails" if name == FAILURE else f"gptctl {name} --json"
    return {"$schema": DRAFT, **made, "title": title}
