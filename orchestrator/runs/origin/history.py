"""The origin of a new run, as its record keeps it: from the checkpoint's own meta.json, else from the ledger."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from orchestrator.core.errors import UserError
from orchestrator.core.facts import origin as facts
from orchestrator.core.facts.origin import SourceTokens
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RunRecord
from orchestrator.report.data_source import data_read, source_name
from orchestrator.runs.origin.resume_from import Origin
from trainer.run_files import MODEL_FILE

UNKNOWN = "unknown data"


def origin_facts(ledger: Ledger, found: Origin, how: str) -> facts.Origin:
    """Where the weights come from, with all that they have seen. `how`: RESUMED or STARTED."""
    run = made_by(ledger, found.place)
    above = found.lineage.origin if found.lineage else run.facts.origin if run else None
    model = found.files.get(MODEL_FILE)
    return facts.Origin(
        how,
        found.place,
        found.step,
        model.sha256 if model else "",
        run=run.id if run else None,
        base_model=above.base_model if above else None,
        seen=_seen(found, run),
    )


def made_by(ledger: Ledger, place: str) -> RunRecord | None:
    """The run in this ledger whose id is a part of the checkpoint's path or URI."""
    for part in reversed(Path(place.partition("://")[2] or place).parts):
        with suppress(UserError):
            return ledger.run(part)
    return None


def data_before(found: Origin, run: RunRecord | None) -> dict[str, object]:
    """What decided which tokens the checkpoint saw; empty where nothing says it, and for an import."""
    if found.lineage is not None and found.lineage.data:
        return dict(found.lineage.data)
    trained = run is not None and not (run.facts.origin and run.facts.origin.imported)
    return data_read(run.recipe_data) if run is not None and trained else {}


def _seen(found: Origin, run: RunRecord | None) -> tuple[SourceTokens, ...]:
    if found.lineage is not None:
        return found.lineage.seen
    if run is not None and run.facts.origin is not None and run.facts.origin.imported:
        return run.facts.origin.seen
    if run is not None and run.plan is not None and run.plan.steps:
        own = max(0, found.step - run.plan.from_step) * run.plan.tokens // run.plan.steps
        before = run.facts.origin.seen if run.facts.origin else ()
        return facts.added(before, [SourceTokens(source_name(run.recipe_data), own)])
    return (SourceTokens(UNKNOWN, found.tokens),) if found.tokens else ()
