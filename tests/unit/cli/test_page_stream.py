"""What an open page is told: everything once, then only what changed, and of a growing run its new lines alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.runs.status import changed, collect
from orchestrator.cli.ui import page_contents as sights
from orchestrator.cli.ui.page_contents import PageContents
from orchestrator.cli.ui.stream import Told, tail
from orchestrator.core.states import Outcome, State
from orchestrator.ledger import database
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RunRecord
from orchestrator.report.metrics import Growing, Tail, read_training
from trainer.run_files import METRICS

MOST_STATEMENTS = 20


def fill(home: Path, ended: int) -> None:
    over = RunRecord(
        "", "quickstart", "local", "2xCPU", 0.0, state=State.ENDED, outcome=Outcome.FINISHED, note="Warm-up"
    )
    with Ledger.open(home, time.time) as ledger, ledger.rows.reading() as connection:
        connection.execute("PRAGMA synchronous = OFF")  # a test's ledger need not survive a power cut
        for number in range(ended):
            ledger.add_run(replace(over, id=f"run-{number}", created_at=float(number)))
        ledger.add_run(RunRecord("live", "quickstart", "local", "2xCPU", time.time(), name="<b>the long one</b>"))


def told_after(home: Path, change: Callable[[Ledger], object]) -> dict[str, Any]:
    """What a page that knows everything is told after the change."""
    sight, told = PageContents(home), Told()
    sight.refresh()
    told.state(sight.state)
    with Ledger.open(home, time.time) as ledger:
        change(ledger)
    sight.refresh()
    return told.state(sight.state)


def test_a_page_is_told_what_changed_and_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path, 35)
    news = told_after(tmp_path, lambda ledger: ledger.update_run("live", step=7))
    assert [*news["runs"]] == ["live"] and news["runs"]["live"]["step"] == 7
    assert {key for key, value in news.items() if value} == {"runs"}
    assert len(json.dumps(news)) < 2_000
    news = told_after(tmp_path, lambda ledger: ledger.set_state("live", State.ENDED, outcome=Outcome.STOPPED))
    assert [*news["runs"]] == ["live"] and news["runs"]["live"]["outcome"] == "stopped"
    added = RunRecord("new", "quickstart", "local", "2xCPU", time.time())
    news = told_after(tmp_path, lambda ledger: ledger.add_run(added))
    assert [*news["runs"]] == ["new"] and news["runs_order"][0] == "new"


@pytest.mark.parametrize("ended", [1, 60])
def test_a_look_costs_as_many_questions_to_the_ledger_however_long_the_history(
    tmp_path: Path, ended: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, ended)
    asked: list[str] = []
    connect = database._connect

    def counted(*what: Any, **how: Any) -> Any:
        connection = connect(*what, **how)
        connection.set_trace_callback(asked.append)
        return connection

    sight = PageContents(tmp_path)
    sight.refresh()
    monkeypatch.setattr(database, "_connect", counted)
    sight.refresh()
    assert len(asked) <= MOST_STATEMENTS and not [each for each in asked if "quick_check" in each]


def test_the_runs_that_have_not_ended_are_found_without_reading_the_others(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    questions: list[str] = []
    with Ledger.open(tmp_path, time.time) as ledger, ledger.rows.reading() as connection:
        connection.set_trace_callback(questions.append)
        ledger.runs(unfinished_only=True)
        ledger.count_runs()
        ledger.spend_since(5.0)
        connection.set_trace_callback(None)
        plans = [row[3] for each in questions for row in connection.execute(f"EXPLAIN QUERY PLAN {each}")]
    for index in ("runs_unfinished", "runs_shown", "stage_intervals_by_end"):
        assert any(index in plan for plan in plans), (index, plans)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("LONG one", ["live"]), ("run-1", ["run-1"]), ("warm-UP", ["run-1", "run-0"]), ("%", []), ("'; --", []),
     ("", ["live", "run-1", "run-0"])],
)  # fmt: skip
def test_a_search_finds_words_in_any_case_and_nothing_is_a_pattern(
    tmp_path: Path, wanted: str, found: list[str]
) -> None:
    fill(tmp_path, 2)
    assert [row["id"] for row in PageContents(tmp_path).find(wanted)] == found


def test_no_machine_is_asked_before_the_first_page_shows_the_ledger(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    sight = PageContents(tmp_path)
    assert sight.state == {} and sight.number == 0
    sight.refresh()
    assert sight.number == 1 and [row["id"] for row in sight.state["runs"]] == ["live", "run-0"]


def chart(xs: list[int], *values: list[float | None], label: str = "loss") -> dict[str, Any]:
    series = [{"label": f"{label} {at}", "kind": "line", "values": each} for at, each in enumerate(values)]
    return {"key": "loss", "title": "Loss", "xs": xs, "series": series}


def grown(before: dict[str, Any], news: dict[str, Any]) -> dict[str, Any]:
    """As the page does it."""
    start = news["from"]
    series = [
        {**each, "values": [*each["values"][:start], *more]}
        for each, more in zip(before["series"], news["series"], strict=True)
    ]
    return {**before, "xs": [*before["xs"][:start], *news["xs"]], "series": series}


numbers = st.lists(st.one_of(st.none(), st.integers(0, 3)), max_size=8)


@given(numbers, numbers)
def test_a_page_that_gets_the_tail_has_the_whole_curve(old: list[float | None], new: list[float | None]) -> None:
    before, after = (chart([*range(len(each))], each, each) for each in (old, new))
    assert grown(before, tail(before, after)) == after


def test_of_a_curve_that_grew_by_a_point_only_that_is_sent() -> None:
    told, run = Told(), {"id": "live", "log": "a"}
    assert told.run({**run, "charts": [chart([1, 2], [5.0, 4.0])]})["charts"]
    longer = told.run({**run, "log": "b", "charts": [chart([1, 2, 3], [5.0, 4.0, 3.0])]})
    assert longer == {"log": "b", "tails": [{"from": 2, "xs": [3], "series": [[3.0]]}]}
    assert told.run({**run, "log": "b", "charts": [chart([1, 2, 3], [5.0, 4.0, 3.0])]}) == {}
    assert "charts" in told.run({**run, "charts": [chart([1, 2, 3], [5.0, 4.0, 3.0], [1.0, 1.0, 1.0])]})


def line(step: int, loss: float) -> str:
    return json.dumps({"step": step, "loss": loss, "tokens": step}) + "\n"


def test_a_growing_file_is_read_where_it_grew_and_again_when_it_is_another(tmp_path: Path) -> None:
    path, growing = tmp_path / METRICS, Growing(tmp_path)
    assert growing.training().steps == ()
    path.write_text(line(1, 5.0) + line(2, 4.0)[:9])
    assert growing.training().steps == (1,)
    path.write_text(line(1, 5.0) + line(2, 4.0) + line(1, 4.5))
    assert growing.training().losses == read_training(tmp_path).losses == ((1, 4.5), (2, 4.0))
    (tmp_path / "other").write_text(line(9, 1.0))
    (tmp_path / "other").replace(path)
    assert growing.training().steps == (9,)
    path.write_text("")
    assert growing.training().steps == ()


def test_only_new_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text(line(1, 5.0))
    lines = Tail(path)
    assert len([*lines.lines()]) == 1 and [*lines.lines()] == []
    with path.open("a") as file:
        file.write("not json\n" + line(2, 4.0) + '{"step": 3}')
    assert [row["step"] for row in lines.lines()] == [2, 3] and [*lines.lines()] == []


def test_a_screen_reader_is_told_of_a_run_when_it_has_changed(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    told: dict[str, list[str]] = {}

    def news() -> list[str]:
        with Ledger.open(tmp_path, time.time) as ledger:
            return [row["id"] for row in changed(collect(ledger, None, answer_within_s=0.0)["runs"], told)]

    assert news() == ["live", "run-0"] and news() == []
    with Ledger.open(tmp_path, time.time) as ledger:
        ledger.update_run("live", step=5, total_steps=80)
    assert news() == ["live"] and news() == []


def test_few_runs_are_kept_open(tmp_path: Path) -> None:
    fill(tmp_path, 6)
    sight = PageContents(tmp_path)
    for number in range(6):
        sight.run(f"run-{number}")
    assert len(sight._open) == sights.MOST_OPEN and "run-5" in sight._open
