"""What compares with what, when a difference is noise, and what is said where nothing compares."""

from __future__ import annotations

import dataclasses
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ledger import Evaluation
from orchestrator.report.comparison.comparison import Compared, compare, differences, interpolated
from orchestrator.report.comparison.page import compare_charts, compare_page
from orchestrator.report.comparison.result import ComparedRow, Comparison, Difference
from orchestrator.report.comparison.seed_noise import PUBLISHED, effect_of, pooled, student_95
from orchestrator.report.metrics import Point, Started, Training
from orchestrator.report.pages.curves import clock
from tests.support.files.browser import Browser
from tests.unit.report.test_report import a_run

SEEN = """[...document.querySelectorAll('PLACE')].filter(each => each.offsetHeight).map(each => {
  const box = each.getBoundingClientRect(); return [box.left, box.right, each.textContent]; })"""
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
    assert pooled([]).value == pooled([[3.5], [3.6]]).value == PUBLISHED
    assert pytest.approx(statistics.stdev([3.691526, 3.673453, 3.653593]), abs=1e-4) == PUBLISHED
    two = pooled([[1.0, 3.0], [5.0, 6.0, 7.0], [9.0]])
    assert (two.source, two.runs, two.freedom) == ("own", 5, 3)
    assert two.value == pytest.approx(math.sqrt((2 + 2) / 3))
    assert pooled([[2.0, 2.0]]).source == "published", "no deviation is divided by zero"
    assert "too few seeds" in two.words()
    assert "too few" not in pooled([[1.0, 1.1, 1.2, 1.3, 1.4]]).words()


@given(st.integers(1, 200))
def test_a_quantile_falls_towards_the_normal_one(freedom: int) -> None:
    assert student_95(freedom) > student_95(freedom + 1) > 1.959


def test_a_mean_is_less_noisy_than_a_run_and_pairs_less_than_means() -> None:
    noise = pooled([[3.0, 3.02, 3.04, 3.06, 3.08], [2.0, 2.02, 2.04, 2.06, 2.08]])
    one, four = effect_of({1: 3.5}, {2: 3.6}, noise), effect_of(dict.fromkeys(range(4), 3.5), {9: 3.6}, noise)
    assert one.high - one.low > four.high - four.low
    noisy = {1: 3.50, 2: 3.60, 3: 3.70}
    paired = effect_of({seed: loss - 0.05 + seed / 1000 for seed, loss in noisy.items()}, noisy, noise)
    assert (paired.pairs, paired.freedom, paired.verdict) == (3, 2, "better")
    unpaired = effect_of({seed + 9: loss - 0.05 for seed, loss in noisy.items()}, noisy, pooled([[*noisy.values()]]))
    assert (unpaired.pairs, unpaired.verdict) == (0, "too few seeds")


@pytest.mark.parametrize(
    ("loss", "verdict"), [(3.53, "too few seeds"), (3.40, "too few seeds"), (3.62, "worse"), (3.38, "better")]
)
def test_one_run_against_one_needs_a_large_difference(loss: float, verdict: str) -> None:
    other = a_compared("b", loss, recipe={"train": {"weight_decay": 0.3}})
    row = row_of(compare([a_compared("base", 3.5), other], "id-base"), "b")
    assert row.verdict == verdict
    assert row.effect is not None
    reach = 4.303 * PUBLISHED * math.sqrt(2)
    assert (row.effect.low, row.effect.high) == pytest.approx((loss - 3.5 - reach, loss - 3.5 + reach))


def test_with_enough_seeds_what_is_left_is_noise_or_a_finding() -> None:
    change = {"train": {"weight_decay": 0.3}}
    seeds = [a_compared(f"s{n}", 3.5 + n / 100, recipe={"train": {"seed": n}}) for n in range(1, 6)]
    same = [a_compared(f"t{n}", 3.5 + n / 100 + 0.001 * (n - 3), recipe={"train": {"seed": n, "weight_decay": 0.3}})
            for n in range(1, 6)]  # fmt: skip
    found = compare([a_compared("base", 3.5), a_compared("b", 3.501, recipe=change)], "id-base", [*seeds, *same])
    row = row_of(found, "b")
    assert row.effect is not None
    assert (row.effect.pairs, row.verdict) == (6, "within noise")
    better = [replace_loss(each, -0.05) for each in same]
    found = compare([a_compared("base", 3.5), a_compared("b", 3.451, recipe=change)], "id-base", [*seeds, *better])
    assert row_of(found, "b").verdict == "better"


def replace_loss(each: Compared, by: float) -> Compared:
    last = each.training.last_val_loss
    assert last is not None
    return dataclasses.replace(each, training=dataclasses.replace(each.training, validations=(Point(100, last + by),)))


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
    assert row_of(found, "wide").verdict == "too few seeds"
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
            verdicts = browser.evaluate(SEEN.replace("PLACE", ".name small.narrow" if width < 600 else "td.verdict"))
            assert len(verdicts) == 2 and all(0 <= left < right <= width for left, right, _ in verdicts), verdicts
            assert verdicts[0][2].endswith("too few seeds") and verdicts[1][2] == "baseline", verdicts
            assert browser.evaluate("document.title") != "owned"
