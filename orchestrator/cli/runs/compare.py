"""`gptctl compare`: several runs side by side, from the ledger and the mirrors alone.

report/comparison/comparison.py decides what compares with what, and when a difference is noise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from orchestrator.cli.machines.cost import cost_of
from orchestrator.cli.open_ledger import open_ledger
from orchestrator.cli.screen import screen
from orchestrator.cli.screen.output_files import charts_into, write_page
from orchestrator.cli.screen.tables import Column
from orchestrator.core.config.settings import load_settings
from orchestrator.core.errors import UserError
from orchestrator.core.formats import DASH, count, dollars, hours, loss
from orchestrator.core.states import Outcome
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RunRecord
from orchestrator.report.comparison.comparison import Compared, compare
from orchestrator.report.comparison.page import compare_charts, compare_page
from orchestrator.report.comparison.result import Anchor, ComparedRow, Comparison
from orchestrator.report.judged import JudgeColumn
from orchestrator.report.local_checkpoints import read_checkpoints
from orchestrator.report.metrics import read_training
from orchestrator.report.pages.markdown import spark
from orchestrator.report.summary import PARTS, stage_hours
from trainer.run_files import CHECKPOINTS

CURVE_WIDTH = 16
PUBLISHED = (
    Column("PUBLISHED"), Column("TEST", True), Column("VAL", True), Column("TRAIN", True), Column("HOURS", True, 2),
    Column("COST", True, 1), Column("TOKENS", True, 3),
)  # fmt: skip
TITLE = "Comparison of runs"


def compare_runs(
    names: Sequence[str], baseline: str | None, labels: Sequence[str], *, html: Path | None, charts: Path | None,
    as_json: bool,
) -> int:  # fmt: skip
    """Prints a table and what differs, or the comparison as JSON."""
    with open_ledger() as ledger:
        runs = find_runs(ledger, names, labels)
        baseline = baseline or load_settings(ledger.home).compare.baseline
        base = ledger.find_run(baseline) if baseline is not None else runs[0]
        if base.id not in {run.id for run in runs}:
            runs = [base, *runs]
        facts = [_compared(ledger, run) for run in runs]
        comparison = compare(facts, base.id, _others(ledger, runs))
    drawn = compare_charts(facts)
    if html is not None:
        write_page(html, compare_page(comparison, drawn, TITLE))
    written = charts_into(charts, drawn, TITLE) if charts is not None else []
    if as_json:
        print(json.dumps(comparison.to_json(), indent=1))
        return 0
    show(comparison)
    if html is not None:
        screen.talk(f"the page: {html}")
    if written:
        screen.talk(f"{len(written)} charts in {charts}")
    return 0


def find_runs(ledger: Ledger, names: Sequence[str], labels: Sequence[str]) -> list[RunRecord]:
    """The named runs, then those with all the labels, each once. Raises UserError if there are none."""
    runs = [ledger.find_run(name) for name in names]
    if labels:
        pairs = [_label(text) for text in labels]
        labelled = [run for run in ledger.runs() if all(run.labels.get(key) == value for key, value in pairs)]
        if not labelled:
            raise UserError(f"no run has the label {' and '.join(labels)}", "gptctl status --json shows the labels")
        runs += reversed(labelled)  # oldest first: the first is the baseline
    if not runs:
        raise UserError("name the runs to compare", "gptctl compare RUN RUN, or --label KEY=VALUE")
    return list({run.id: run for run in runs}.values())


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--label {text}: must be KEY=VALUE")
    return key, value


def _compared(ledger: Ledger, run: RunRecord) -> Compared:
    by_stage = stage_hours(ledger.intervals(run.id))
    return Compared(
        run,
        read_training(ledger.home / "runs" / run.id),
        ledger.evaluations(run.id),
        cost_of(ledger, run)["cost_usd"],
        sum(by_stage.values()),
        sum(by_stage.get(stage, 0.0) for stage in PARTS["train"]),
        read_checkpoints(ledger.home / "runs" / run.id / CHECKPOINTS),
    )


def _others(ledger: Ledger, runs: Sequence[RunRecord]) -> list[Compared]:
    """Finished runs of the same recipes that you did not name: they show what a seed alone changes."""
    asked, recipes = {run.id for run in runs}, {run.recipe for run in runs}
    others = [
        run
        for run in ledger.runs()
        if run.outcome is Outcome.FINISHED and run.recipe in recipes and run.id not in asked
    ]
    return [Compared(run, evaluations=ledger.evaluations(run.id)) for run in others]


def show(comparison: Comparison) -> None:
    """The ranking, then what differs."""
    equal, has_slices = comparison.equal_tokens, comparison.metric.kind == "slice"
    columns = [
        Column("#", True),
        Column("RUN"),
        Column("TEST" if has_slices else "VAL", True),
        Column("DELTA", True, 1),
        Column("95% INTERVAL", True, 5),
        Column("VERDICT", leaves=2),
        *([Column("VAL", True, 6)] if has_slices else []),
        *([Column(f"AT {count(equal.tokens)} TOKENS", True, 7)] if equal else []),
        *(Column(each.label, True) for each in comparison.judges),
        Column("TOKENS", True, 4),
        Column("TRAINING", True, 9),
        Column("COST", True, 3),
        Column("TOK/S", True, 8),
        Column("VALIDATION", leaves=10),
    ]
    rows = [_cells(row, has_slices, equal is not None, comparison.judges) for row in comparison.runs]
    screen.show_table(columns, rows)
    differing = (("RECIPE", comparison.config_differences), ("MACHINE", comparison.environment_differences))
    for what, differences in differing:
        if differences:
            print()
            labels = [row.label for row in comparison.runs]
            cells = [[each.key, *(_shown(each.values[row.id]) for row in comparison.runs)] for each in differences]
            screen.show_table([Column(name) for name in (f"{what} DIFFERS", *labels)], cells)
    if comparison.published:
        print()
        screen.show_table(PUBLISHED, [_published(each) for each in comparison.published])
        for said in dict.fromkeys(f"{each.by}, {each.source}" for each in comparison.published):
            screen.talk(f"published by {said}: figures of other code, without a rank")
    screen.talk(f"ranked by {comparison.metric.name}; baseline {comparison.baseline}")
    for note in comparison.notes:
        screen.talk(note)


def _published(each: Anchor) -> list[str]:
    of = f"{each.recipe}{f' on {each.machine}' if each.machine else ''}{f' ({each.note})' if each.note else ''}"
    losses = map(loss, (each.test_loss, each.val_loss, each.train_loss))
    return [of, *losses, hours(each.hours), dollars(each.cost_usd), count(each.tokens)]


def _cells(row: ComparedRow, has_slices: bool, has_equal_tokens: bool, judges: Sequence[JudgeColumn]) -> list[str]:
    delta = "" if row.delta is None or row.verdict == "baseline" else f"{row.delta:+.4f}"
    interval = f"{row.effect.low:+.3f} to {row.effect.high:+.3f}" if row.effect else ""
    return [
        str(row.rank or ""),
        row.id + (f" ({row.name})" if row.name else ""),
        loss(row.value),
        delta,
        interval,
        row.why or row.verdict or "",
        *([loss(row.val_loss)] if has_slices else []),
        *([loss(row.loss_at_equal_tokens)] if has_equal_tokens else []),
        *(each.cell(row.judged) for each in judges),
        count(row.tokens),
        hours(row.train_hours),
        dollars(row.cost_usd),
        count(row.tokens_per_second),
        spark(row.validations, CURVE_WIDTH),
    ]


def _shown(value: object) -> str:
    return DASH if value is None else str(value)
