"""The HTML page in a real browser: nothing hostile runs, nothing is asked of a network, and its charts are drawn."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from pathlib import Path

import pytest

from orchestrator.core.events import Event
from orchestrator.core.machines import machine_type
from orchestrator.core.money.cost import run_cost
from orchestrator.ledger import Evaluation
from orchestrator.report.metrics import Training, read_training
from orchestrator.report.pages.curves import extremes, running_mean, training_charts
from orchestrator.report.pages.image_files import draw
from orchestrator.report.run_report import RunReport
from orchestrator.report.summary import Records, run_charts, write_report
from tests.support.files.browser import Browser
from tests.unit.report.test_report import STAGES, a_mirror, a_run, metric

HOSTILE = (
    """</script><script>document.title='owned'</script><img src=x onerror="document.title='owned'">\u202e\x1b[31m'"&"""
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunReport]:
    """The report of a run in which every foreign word is hostile, with what report.json says."""
    mirror = a_mirror(tmp_path_factory.mktemp("hostile") / "run")
    with (mirror / "events.jsonl").open("a") as events:
        events.write(json.dumps({"event": "sampled", "step": 100, "prompt": HOSTILE, "text": HOSTILE}) + "\n")
        events.write(json.dumps({"event": "started", "step": 0, "torch": HOSTILE, "device": HOSTILE}) + "\n")
    (mirror / "train.log").write_text(HOSTILE)
    run = a_run(name=HOSTILE, note=HOSTILE, labels={HOSTILE: HOSTILE}, cause=HOSTILE, host=HOSTILE)
    records = Records(
        [
            Evaluation(run.id, 100, "slice", HOSTILE, 1.0, 3.5, {"perplexity": 33.1, "bits_per_byte": None}),
            Evaluation(run.id, 100, "choices", HOSTILE, 1.0, None, {"accuracy": 0.25, "chance": 0.25}),
        ],
        [Event("warning", 1.0, "follow", HOSTILE)],
    )
    cost = run_cost(STAGES, machine=machine_type(run.machine), tokens=10_000)
    return mirror / "report.html", write_report(run, STAGES, cost, mirror, records)


def test_nothing_hostile_runs_and_nothing_is_asked_for(hostile: tuple[Path, RunReport], tmp_path: Path) -> None:
    page, _ = hostile
    with Browser() as browser:
        for width, dark in ((1280, False), (390, True)):
            shown = browser.open(page, width=width, dark=dark)
            assert shown.complaints == []
            assert shown.requests == [page.absolute().as_uri()]
            assert "owned" not in browser.evaluate("document.title").split("'")[0]
            assert browser.evaluate("document.images.length + document.querySelectorAll('script').length") == 4
            assert browser.evaluate("document.documentElement.scrollWidth") == width, "nothing sticks out"
            assert browser.evaluate("document.querySelectorAll('canvas').length") == 4
            assert HOSTILE.split("\u202e", maxsplit=1)[0] in browser.evaluate("document.body.textContent")
        dark_ink = browser.evaluate("getComputedStyle(document.body).color")
        # A script that is not one of the page's own is refused by its policy, as is a style attribute.
        marred = tmp_path / "marred.html"
        marred.write_text(page.read_text().replace("<main>", "<main style='color:red'><script>alert(1)</script>", 1))
        refused = " ".join(browser.open(marred, scripts=True).complaints)
        assert "script-src" in refused and "style-src" in refused
        browser.open(page, scripts=False)
        assert "▁" in browser.evaluate("document.body.innerText"), "without scripts there are rows of bars"
        assert browser.evaluate("getComputedStyle(document.body).color") != dark_ink


def test_the_policy_allows_exactly_the_pages_own_scripts(hostile: tuple[Path, RunReport]) -> None:
    html = hostile[0].read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None and policy[1].startswith("default-src &#39;none&#39;; script-src ")
    for text in re.findall(r"<script>(.*?)</script>", html, re.DOTALL) + re.findall(
        r"<style>(.*?)</style>", html, re.S
    ):
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy[1]
    assert not any(char in html for char in "\u202e\x1b")


def test_page_and_markdown_say_the_same(hostile: tuple[Path, RunReport]) -> None:
    page, report = hostile
    for text in (page.read_text(), page.with_suffix(".md").read_text()):
        for figure in ("4.2000", "3.5000", "33.10", "25.0%", f"{report.cost.cost_usd:.2f}", "10,000"):
            assert figure in text, figure


def test_a_long_curve_keeps_its_spikes_and_stays_small(tmp_path: Path) -> None:
    lines = [metric(step, loss=3 + 1 / step + (9.0 if step == 77_777 else 0), lr=1e-3) for step in range(1, 100_001)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    training = read_training(tmp_path)
    loss = training_charts(training)[0]
    assert len(loss.xs) <= 1602 and loss.xs[0] == 1 and loss.xs[-1] == 100_000
    assert loss.series[0].values[loss.xs.index(77_777)] == pytest.approx(12, rel=1e-3)
    assert loss.series[1].label == "mean of 1001 lines"
    assert len(json.dumps([chart.to_json() for chart in training_charts(training)])) < 300_000


RECORD = """
window.texts = [];
const plain = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function(text, x, y) {
  const place = this.canvas.closest("figure").querySelector(".plot").id;
  if (this.textAlign === "right") window.texts.push([place, text]);
  return plain.apply(this, arguments);
};
"""
UNITS = {"k": 1e3, "M": 1e6, "B": 1e9}


def tick(text: str) -> float:
    return float(text.rstrip("kMB").replace(",", "")) * UNITS.get(text[-1], 1)


def drawn_with_a_span_of(span: float, folder: Path, browser: Browser) -> list[tuple[str, list[str]]]:
    """The labels at the left of each chart."""
    run, low = a_run(), {"loss": 0.0, "lr": span / 4, "grad_norm": span * 3, "memory_gib": 0.7 * span}
    lines = [
        metric(step, **{key: value + span * (step % 11) / 10 for key, value in low.items()}) for step in range(1, 12)
    ]
    (folder / "metrics.jsonl").write_text("".join(lines))
    write_report(run, STAGES, run_cost(STAGES, machine=machine_type(run.machine), tokens=0), folder)
    assert browser.open(folder / "report.html").complaints == []
    texts = browser.evaluate("window.texts")
    return [(f"{span} {key}", [text for where, text in texts if where == f"plot-{key}"]) for key in low]


@pytest.mark.nightly
def test_ticks_are_as_far_apart_as_they_say(tmp_path: Path) -> None:
    with Browser() as browser:
        browser.before_each(RECORD)
        for span in (0.7, 2.0, 0.09, 1.1e-4, 1.3e-6, 12_000.0, 70_000.0, 1.1e6):
            for which, texts in drawn_with_a_span_of(span, tmp_path, browser):
                steps = [after - before for before, after in itertools.pairwise(map(tick, texts))]
                assert steps and max(steps) - min(steps) < 1e-6 * max(steps) + 1e-12, (which, texts)


def test_thinning_and_smoothing_by_hand() -> None:
    assert extremes([1.0, None, 2.0]) == [0, 1, 2]
    assert extremes([0, 5, 1, 1, None, None, 2, 9, 3, 3], pixels=2) == [0, 7, 8, 9]
    assert running_mean([1.0, None, 3.0, 5.0], 3) == [1.0, 2.0, 4.0, 4.0]
    assert running_mean([1.0, None, 3.0, 5.0], 3, at=[0, 3]) == [1.0, 4.0]
    assert running_mean([None, None], 1) == [None, None]


def test_a_run_without_metrics_has_a_page(tmp_path: Path) -> None:
    run = a_run(plan=None, recipe_data={}, total_steps=0, state="planned", outcome=None, started_at=None)
    report = write_report(run, [], run_cost([], machine=machine_type(run.machine), tokens=0), tmp_path)
    assert run_charts(report, Training()) == []
    text = (tmp_path / "report.html").read_text()
    assert "No metrics:" in text and "No stage has started" in text and "not ended" in text


def test_charts_as_files(hostile: tuple[Path, RunReport], tmp_path: Path) -> None:
    page, report = hostile
    written = draw(run_charts(report, read_training(page.parent)), tmp_path / "charts", HOSTILE + "$x_$")
    assert {path.name for path in written} >= {"loss.png", "loss.svg", "tokens_per_second.svg", "cost.png"}
    assert all(path.stat().st_size > 5_000 for path in written)
    svg = (tmp_path / "charts" / "loss.svg").read_text()
    assert "validation loss" in svg and "<script" not in svg
