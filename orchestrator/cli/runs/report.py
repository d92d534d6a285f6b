"""`gptctl report`: writes the report of a run as it stands: Markdown on stdout, and an HTML page.

Reads the ledger and the mirror. Asks no machine and takes no lock.
"""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path

from orchestrator.cli.open_ledger import open_ledger
from orchestrator.cli.screen import screen
from orchestrator.cli.screen.foreign import clean
from orchestrator.cli.screen.output_files import charts_into, write_page
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.machines import machine_type
from orchestrator.core.money.cost import run_cost
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RunRecord
from orchestrator.report.lineage import ancestors
from orchestrator.report.metrics import read_training
from orchestrator.report.run_report import RunReport
from orchestrator.report.summary import REPORT_HTML, REPORT_PAGE, Records, run_charts, write_report


def report(
    run_id: str | None, *, html: Path | None, charts: Path | None, as_json: bool, open_page: bool = False
) -> int:
    """Prints the Markdown page, or report.json."""
    with open_ledger() as ledger:
        run = ledger.find_run(run_id)
        mirror = ledger.home / "runs" / run.id
        written = write(ledger, run, mirror)
    page = mirror / REPORT_HTML
    if html is not None:
        write_page(html, page.read_text(encoding="utf-8"))
        page = html
    drawn = charts_into(charts, run_charts(written, read_training(mirror)), run.id) if charts is not None else []
    if open_page and not webbrowser.open(page.absolute().as_uri()):
        screen.talk("no browser here", style="yellow")
    if as_json:
        print(json.dumps({**written.to_json(), "page": str(page), "charts": [str(path) for path in drawn]}, indent=1))
        return 0
    print(clean((mirror / REPORT_PAGE).read_text(encoding="utf-8")), end="")
    screen.talk(f"the page: {page}")
    if drawn:
        screen.talk(f"{len(drawn)} charts in {charts}")
    return 0


def write(ledger: Ledger, run: RunRecord, mirror: Path) -> RunReport:
    """Writes the report's files, like the stage of that name."""
    mirror.mkdir(parents=True, exist_ok=True, mode=0o700)
    intervals = ledger.intervals(run.id)
    host = HostSpec.from_resolved(run.host_data) if run.host_data else None
    cost = run_cost(intervals, machine=machine_type(run.machine), tokens=run.tokens_trained, host=host)
    records = Records(ledger.evaluations(run.id), ledger.events(run.id), ancestors(run, ledger.run))
    return write_report(run, intervals, cost, mirror, records)
