"""`gptctl import`: a model of another program as a checkpoint here, which eval, sample, export and compare take."""

from __future__ import annotations

import json

from orchestrator.cli.data.prepare import show_download
from orchestrator.cli.open_ledger import open_ledger
from orchestrator.cli.screen import screen
from orchestrator.cli.screen.foreign import clean
from orchestrator.runs.origin.imports import ImportRequest
from orchestrator.runs.origin.imports import import_model as bring_in


def import_model(request: ImportRequest, *, as_json: bool) -> int:
    """Prints the id and what was read, or `{"run", "layout", "model", "parameters", "sha256", ...}`."""
    with open_ledger() as ledger:
        with screen.show_progress() as show:
            run, said = bring_in(ledger, request, screen.talk, lambda moved: show(show_download(moved)))
        folder = ledger.home / "runs" / run.id
    if as_json:
        print(json.dumps({"run": run.id, "folder": str(folder), **{key: said[key] for key in sorted(said)}}, indent=1))
        return 0
    screen.talk(f"{said['layout']}: {said['parameters']:,} parameters, tokenizer {clean(str(said['tokenizer']))}")
    if said["dropped"]:
        screen.talk(f"left out: {len(said['dropped'])} causal masks, which are not weights")
    for remark in said["remarks"]:
        screen.talk(f"warning: {clean(str(remark))}", style="yellow")
    if said["tokenizer"] == "none":
        screen.talk("nothing says which tokenizer it has: import it again with --tokenizer NAME to sample from it")
    screen.talk(f"next: gptctl sample {run.id} --prompt TEXT, or gptctl eval {run.id} --data FILE")
    print(run.id)
    return 0
