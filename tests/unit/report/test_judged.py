"""A judge's scores belong to the bytes that were judged: in the comparison, the report and the card, never stale."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.core.facts.run_facts import DatasetFacts
from orchestrator.core.machines import machine_type
from orchestrator.core.money.cost import run_cost
from orchestrator.ledger import Evaluation, RunRecord
from orchestrator.report.card.card import Exported, Wish, model_card
from orchestrator.report.card.checkpoint_meta import CheckpointMeta
from orchestrator.report.comparison.comparison import Compared, compare
from orchestrator.report.comparison.page import compare_page
from orchestrator.report.comparison.result import Comparison
from orchestrator.report.judged import Judged, judged, of_these, scores_of
from orchestrator.report.local_checkpoints import read_checkpoints
from orchestrator.report.summary import Records, collect, write_report
from tests.unit.report.test_card import META
from tests.unit.report.test_comparison import a_compared
from tests.unit.report.test_report import STAGES, a_mirror, a_run

BEST = hashlib.sha256(b"best").hexdigest()


def scores(mean: float, manifest: str, **changes: Any) -> Judged:
    given = Judged("test.json", "ab" * 32, "llama3", 256, None, manifest, mean, 12.0, 100, 0, endpoint="http://a/v1")
    return dataclasses.replace(given, **changes)


def mirror_of(tmp_path: Path, name: str = "run") -> tuple[Path, dict[int, str]]:
    """a_mirror(), its best checkpoint of step 50 and its latest of step 100, with the sha256 of their manifests."""
    mirror = a_mirror(tmp_path / name)
    return mirror, {each.step: each.manifest_sha256 for each in read_checkpoints(mirror / "checkpoints")}


def beside(mirror: Path, *rows: Evaluation, name: str = "a", loss: float = 3.5) -> Compared:
    found = a_compared(name, loss)
    return dataclasses.replace(found, evaluations=rows, checkpoints=read_checkpoints(mirror / "checkpoints"))


def compared(*runs: Compared) -> Comparison:
    return compare(runs, runs[0].run.id)


def test_a_row_of_the_ledger_is_the_scores_again() -> None:
    given = scores(71.25, BEST, deviation=None, scored=1, prompt="Q: {instruction}", unscored=2)
    row = judged("r", 50, given, 1.0)
    assert scores_of(json.loads(json.dumps(row.result))) == given
    assert (row.kind, row.step, given.words()) == ("judge", 50, "71.2")
    assert row.name == given.settings != dataclasses.replace(given, test_sha256="cd" * 32).settings


def test_a_comparison_has_a_column_where_a_run_has_scores(tmp_path: Path) -> None:
    mirror, here = mirror_of(tmp_path)
    plain = compared(a_compared("a", 3.5), a_compared("b", 3.6))
    assert plain.judges == [] and not any("judge" in note for note in plain.notes)
    assert ">judged" not in compare_page(plain, [], "t")
    first = beside(mirror, judged("id-a", 50, scores(71.3, here[50]), 1.0))
    found = compared(first, a_compared("b", 3.6))
    (column,) = found.judges
    assert [column.cell(row.judged) for row in found.runs] == ["71.3 ± 2.4", "-"]
    assert any(f"without it: {found.runs[1].id}; gptctl judge" in note for note in found.notes)
    page = compare_page(found, [], "t")
    assert '<th class="n">judged</th>' in page and "71.3 ± 2.4" in page
    row = found.to_json()["runs"][0]  # type: ignore[index]
    assert row["judged"][0]["mean"] == 71.3 and json.dumps(found.to_json())


def test_other_tests_and_judges_have_columns_of_their_own(tmp_path: Path) -> None:
    mirror, here = mirror_of(tmp_path)
    given = [scores(10, here[50]), scores(20, here[50], judge="gpt-4o"), scores(30, here[50], test_sha256="ef" * 32)]
    found = compared(beside(mirror, *(judged("id-a", 50, each, 1.0) for each in given)))
    assert [each.label for each in found.judges] == ["JUDGED 1", "JUDGED 2", "JUDGED 3"]
    assert sorted(each.cell(found.runs[0].judged)[:2] for each in found.judges) == ["10", "20", "30"]


@pytest.mark.parametrize(
    ("step", "manifest", "shown"),
    [
        pytest.param(50, "here", True, id="its best checkpoint"),
        pytest.param(100, "here", False, id="a later one that is not its best"),
        pytest.param(40, "gone", False, id="the best of before: the run trained on"),
        pytest.param(50, "gone", False, id="the same step, trained again"),
    ],
)
def test_a_run_that_trained_on_is_not_shown_with_stale_scores(
    tmp_path: Path, step: int, manifest: str, shown: bool
) -> None:
    mirror, here = mirror_of(tmp_path)
    row = judged("id-a", step, scores(71.3, here[step] if manifest == "here" else BEST), 1.0)
    found = compared(beside(mirror, row))
    assert [each.mean for each in found.runs[0].judged] == ([71.3] if shown else [])
    assert any(f"step {step} was judged, which is not its best checkpoint" in note for note in found.notes) != shown


def test_without_checkpoints_here_the_step_decides() -> None:
    for step, shown in ((100, 1), (50, 0)):
        row = judged("id-a", step, scores(71.3, BEST), 1.0)
        assert len(compared(dataclasses.replace(a_compared("a", 3.5), evaluations=[row])).runs[0].judged) == shown


def reported(run: RunRecord, mirror: Path, rows: list[Evaluation]) -> tuple[str, str]:
    """report.md and report.html."""
    cost = run_cost(STAGES, machine=machine_type(run.machine), tokens=10_000)
    write_report(run, STAGES, cost, mirror, Records(rows))
    return (mirror / "report.md").read_text(), (mirror / "report.html").read_text()


def test_report_and_card_have_a_table_and_no_scores_of_other_bytes(tmp_path: Path) -> None:
    mirror, here = mirror_of(tmp_path)
    run = a_run()
    for manifest, shown in ((here[50], True), (BEST, False)):
        rows = [judged(run.id, 50, scores(71.3, manifest, test="a|b.json"), 1.0)]
        text, page = reported(run, mirror, rows)
        assert ("| 50 | a\\|b.json | llama3 | 71.3 | 12.0 | 100 | 0 |" in text) == shown
        assert ("<h2>Judged answers</h2>" in page) == shown and "<h2>Evaluations</h2>" not in page
        facts = json.loads((mirror / "report.json").read_text())["evaluations"]
        assert [each["mean"] for each in facts] == ([71.3] if shown else [])
        card, front = carded(run, mirror, rows, step=50)
        assert ("| a\\|b.json | llama3 | 71.3 | 12.0 | 100 |" in card) == shown
        judges = [
            each["metrics"][0] for each in front["model-index"][0]["results"] if each["dataset"]["type"] == "custom"
        ]
        assert [each["value"] for each in judges] == ([71.3] if shown else [])


def test_the_card_of_another_step_has_no_scores(tmp_path: Path) -> None:
    mirror, here = mirror_of(tmp_path)
    card, _ = carded(a_run(), mirror, [judged("r", 50, scores(71.3, here[50]), 1.0)], step=100)
    assert "llama3" not in card


def carded(run: RunRecord, mirror: Path, rows: list[Evaluation], *, step: int) -> tuple[str, dict[str, Any]]:
    cost = run_cost(STAGES, machine=machine_type(run.machine), tokens=10_000)
    report = collect(run, STAGES, cost, mirror, records=Records(rows))
    kept = of_these(rows, read_checkpoints(mirror / "checkpoints"))
    assert len(kept) == len(report.evaluations)
    exported = Exported(run, CheckpointMeta.from_json({**META, "step": step}), DatasetFacts(), report.evaluations)
    page = model_card(exported, report, Wish())
    return page, yaml.safe_load(page.split("---\n")[1])
