"""What compares with what, when a difference is noise, and what is said where nothing compares."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger import Evaluation
from orchestrator.report.comparison.comparison import Compared, compare, differences, interpolated
from orchestrator.report.comparison.page import compare_charts, compare_page
from orchestrator.report.comparison.result import ComparedRow, Comparison, Difference
from orchestrator.report.comparison.seed_noise import PUBLISHED, pooled
from orchestrator.report.metrics import Point, Started, Training
from orchestrator.report.pages.curves import clock
from tests.support.files.browser import Browser
from tests.unit.report.test_report import a_run

HOSTILE = "</script><script>document.title='owned'</script>"


def a_compared(
    name: str, val_loss: float, *, test: float | None = None, torch: str = "2.13.0", recipe: Any = None, **run: Any
) -> Compared:
    """A finished run with two validations, perhaps a test slice, and changes to its recipe by table."""
    record = a_run(**run)
    data = {**record.recipe_data}
    for table, changes in (recipe or {}).items():
        data[table] = {**(data.get(table) or {}), **changes}
    kept = {**vars(record), "id": f"id-{name}", "name": name, "recipe_data": data}
    training = Training(
        validations=(Point(50, val_loss + 0.5), Point(100, val_loss)), step=100, started=Started(torch=torch),
        steps=(50, 100), columns={"loss": (4.0, 3.5), "tokens": (5e6, 1e7), "time": (0.0, 3600.0)},
    )  # fmt: skip
    measured = {"tokens": 1000, "tokens_sha256": "ab"}
    slices = [Evaluation(f"id-{name}", 100, "slice", "0+1000", 1.0, test, measured)] if test is not None else []
    return Compared(type(record)(**kept), training, slices)


def row_of(found: Comparison, name: str) -> ComparedRow:
    return next(row for row in found.runs if row.name == name)


def test_the_deviation_is_the_published_one_until_seeds_were_measured() -> None:
    assert pooled([]).value == pooled([[3.5], [3.6]]).value == PUBLISHED == 0.0155
    two = pooled([[1.0, 3.0], [5.0, 6.0, 7.0], [9.0]])
    assert (two.source, two.runs) == ("own", 5)
    assert two.value == pytest.approx(math.sqrt((2 + 2) / 3))
    assert pooled([[2.0, 2.0]]).source == "published", "no deviation is divided by zero"


@pytest.mark.parametrize(
    ("loss", "verdict"), [(3.53, "within noise"), (3.47, "within noise"), (3.54, "worse"), (3.46, "better")]
)
def test_below_two_deviations_is_noise(loss: float, verdict: str) -> None:
    found = compare([a_compared("base", 3.5), a_compared("b", loss)], "id-base")
    assert row_of(found, "b").verdict == verdict
    assert row_of(found, "b").deviations == pytest.approx((loss - 3.5) / 0.0155)


def test_the_test_slice_ranks_where_all_have_it_and_validation_where_not() -> None:
    runs = [a_compared("base", 3.5, test=3.6), a_compared("b", 3.6, test=3.4)]
    found = compare(runs, "id-base")
    assert [row.name for row in found.runs] == ["b", "base"]
    assert found.metric.name == "loss on test slice 0+1000"
    found = compare([*runs, a_compared("c", 3.7)], "id-base")
    assert [row.name for row in found.runs] == ["base", "b", "c"]
    assert any("id-c has no test loss" in note for note in found.notes)


def test_own_seeds_are_used_and_only_differences_are_listed() -> None:
    other = a_compared("other", 3.7, recipe={"train": {"seed": 99}})
    wide = a_compared("wide", 3.4, torch="2.9.1", recipe={"model": {"n_embd": 1024}, "train": {"precision": "fp32"}})
    found = compare([a_compared("base", 3.5), wide], "id-base", [other])
    assert found.seed_deviation.value == pytest.approx(math.sqrt(0.02))
    assert row_of(found, "wide").verdict == "within noise"
    assert {row.key for row in found.config_differences} == {"model.n_embd", "train.precision"}
    assert {row.key for row in found.environment_differences} == {"torch", "precision"}


def test_published_figures_stand_beside_the_runs_of_their_recipe_and_have_no_rank() -> None:
    anchor = {
        "by": "A",
        "source": "https://a.example",
        "machine": "1x3090",
        "test_loss": 3.5,
        "hours": 40.0,
        "later": 1,
    }
    runs = [a_compared("base", 3.5), a_compared("b", 3.4)]
    for each in runs:
        each.run.recipe_data["published"] = [anchor]
    found = compare(runs, "id-base")
    assert [(each.by, each.test_loss, each.hours) for each in found.published] == [("A", 3.5, 40.0)]
    assert not found.config_differences
    assert found.to_json()["published"]
    page = compare_page(found, compare_charts(runs), "Two runs")
    assert "https://a.example" in page
    assert "Published for these recipes" in page


def test_what_does_not_compare_has_no_rank_and_says_why() -> None:
    runs = [
        a_compared("base", 3.5),
        a_compared("bytes", 1.2, recipe={"data": {"tokenizer": "bytes"}}),
        a_compared("going", 3.4, outcome=None),
    ]
    found = compare(runs, "id-base")
    assert row_of(found, "base").rank == 1
    assert row_of(found, "bytes").rank is row_of(found, "going").rank is None
    assert "tokenizer bytes, not gpt2" in (row_of(found, "bytes").why or "")
    assert (row_of(found, "going").why or "").startswith("not finished: ")
    assert "one run only" in compare(runs[:1], "id-base").notes[0]
    assert (
        "None" not in compare_page(found, compare_charts(runs), "Three runs").split("<footer>")[0].split("</style>")[1]
    )


def test_time_is_shown_in_a_unit_that_suits_and_no_mean_is_named_that_is_none() -> None:
    assert [clock(hours)[0] for hours in (0.0, 0.04, 0.5, 1.99, 2.0, 13.0)] == [
        "seconds",
        *["minutes"] * 3,
        *["hours"] * 2,
    ]
    charts = {chart.key: chart for chart in compare_charts([a_compared("base", 3.5)])}
    assert (charts["time"].x, charts["time"].xs) == ("minutes of training", [0.0, 60.0])
    assert charts["training"].unit == "nats per token"


def test_between_two_validations_lies_a_straight_line() -> None:
    curve = [(0.0, 4.0), (10.0, 2.0)]
    assert [interpolated(curve, x) for x in (-1.0, 0.0, 5.0, 10.0, 11.0)] == [None, 4.0, 3.0, 2.0, 2.0]
    assert differences({"a": {"x": 1, "y": 2}, "b": {"x": 1}}) == [Difference("y", {"a": 2, "b": None})]


def test_the_page_fits_a_telephone_and_runs_nothing_hostile(tmp_path: Path) -> None:
    runs = [
        a_compared("base", 3.5), a_compared(HOSTILE, 3.4, note=HOSTILE, labels={HOSTILE: HOSTILE}, torch=HOSTILE)
    ]  # fmt: skip
    page = tmp_path / "compare.html"
    page.write_text(compare_page(compare(runs, "id-base"), compare_charts(runs), HOSTILE))
    with Browser() as browser:
        for width, dark in ((1400, False), (390, True)):
            shown = browser.open(page, width=width, dark=dark)
            assert (shown.complaints, shown.requests) == ([], [page.absolute().as_uri()])
            assert browser.evaluate("document.documentElement.scrollWidth") == width, "nothing sticks out"
            assert browser.evaluate("document.querySelectorAll('canvas').length") == 3
            assert HOSTILE in browser.evaluate("document.body.textContent")
            assert browser.evaluate("document.title") != "owned"
