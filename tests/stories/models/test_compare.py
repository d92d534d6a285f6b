"""A baseline and one intervention, trained here, side by side: as a table, as JSON, as a page and as charts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Gptctl
from tests.support.files.browser import Browser

pytestmark = pytest.mark.usefixtures("known_machine")

INTERVENTION = """
extends = "{baseline}"
name = "tiny_high_rate"
[train]
learning_rate = 1.5e-2
"""
STEPS = 40
SLICE = "1024+4096"
PUBLISHED_DEVIATION = 0.0190


def trained(gptctl: Gptctl, recipe: str, *more: str) -> str:
    """The id of a finished run of it, measured on the slice."""
    slices = f"eval.slices=[[{SLICE.replace('+', ',')}]]"
    done = gptctl("run", recipe, "--host", "local", "--yes", "--set", slices, "--label", "sweep=rate", "--json", *more)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["runs"][0]["id"])


def measured(folder: Path) -> tuple[float, float]:
    """Loss on the slice and last validation, as the trainer wrote them."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    (slice_loss,) = (event["loss"] for event in events if event["event"] == "evaluated")
    return slice_loss, [event["val_loss"] for event in events if event["event"] == "validated"][-1]


@pytest.mark.nightly
def test_a_baseline_and_an_intervention_side_by_side(
    gptctl: Gptctl, gptctl_home: Path, tmp_path: Path, tiny: Callable[..., str]
) -> None:
    base = trained(gptctl, tiny(STEPS), "--name", "baseline")
    intervention = tmp_path / "high_rate.toml"
    intervention.write_text(INTERVENTION.format(baseline=tiny(STEPS)))
    high = trained(gptctl, str(intervention))

    losses = {run: measured(gptctl_home / "runs" / run) for run in (base, high)}
    check_json(gptctl, base, high, losses)
    done = gptctl("compare", high, "--baseline", "baseline", "--html", "c.html", "--charts", "blog/charts")
    assert done.returncode == 0, done.stderr
    check_table(done, base, high)
    check_page(tmp_path / "c.html", high)
    check_charts(tmp_path / "blog" / "charts", high)
    check_refusals(gptctl, tmp_path)


def check_json(gptctl: Gptctl, base: str, high: str, losses: dict[str, tuple[float, float]]) -> None:
    """Every figure follows from what the two trainings wrote."""
    done = gptctl("compare", "--label", "sweep=rate", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    assert (found["baseline"], found["metric"]["kind"]) == (base, "slice"), "the oldest of a label is the baseline"
    rows = {row["id"]: row for row in found["runs"]}
    assert [row["rank"] for row in found["runs"]] == [1, 2]
    assert [row["value"] for row in found["runs"]] == sorted(loss for loss, _ in losses.values())
    assert {run: (row["value"], row["val_loss"]) for run, row in rows.items()} == losses
    delta = losses[high][0] - losses[base][0]
    assert rows[high]["delta"] == pytest.approx(delta)
    effect = rows[high]["effect"]
    assert effect["high"] - effect["low"] == pytest.approx(2 * 4.303 * PUBLISHED_DEVIATION * 2**0.5)
    noise = effect["low"] <= 0 <= effect["high"]
    assert rows[high]["verdict"] == ("too few seeds" if noise else "better" if delta < 0 else "worse")
    assert rows[base]["verdict"] == "baseline"
    assert found["equal_tokens"]["tokens"] == rows[base]["tokens"] == STEPS * 256
    assert found["equal_tokens"]["losses"] == {run: loss for run, (_, loss) in losses.items()}
    (difference,) = found["config_differences"]
    assert difference == {"key": "train.learning_rate", "values": {base: "0.005", high: "0.015"}}
    assert found["environment_differences"] == []


def check_table(done: subprocess.CompletedProcess[str], base: str, high: str) -> None:
    """The ranking on stdout, what it means on stderr."""
    header, *rows = done.stdout.splitlines()
    assert header.split()[:6] == ["#", "RUN", "TEST", "DELTA", "95%", "INTERVAL"]
    assert {rows[0].split()[1], rows[1].split()[1]} == {base, high}
    assert any(row.split() == ["train.learning_rate", *order(rows, high)] for row in rows)
    assert f"ranked by loss on test slice {SLICE}; baseline {base}" in done.stderr
    assert "0.0190 from seed to seed (published" in done.stderr


def order(rows: list[str], high: str) -> list[str]:
    """The learning rates as the columns of differences stand: best run first."""
    return ["0.015", "0.005"] if high in rows[0] else ["0.005", "0.015"]


def check_page(page: Path, high: str) -> None:
    """In a browser: drawn, whole, and readable at the width of a small laptop."""
    with Browser() as browser:
        for width, dark in ((1280, False), (400, True)):
            shown = browser.open(page, width=width, dark=dark)
            assert (shown.complaints, shown.requests) == ([], [page.as_uri()])
            assert browser.evaluate("document.querySelectorAll('canvas').length") == 3
            assert browser.evaluate("document.documentElement.scrollWidth") == width
            if width == 1280:
                hidden = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
                assert browser.evaluate(hidden) == 0, "every column can be seen"
        said = browser.evaluate("document.body.innerText")
    assert (high in said and "against the baseline (" in said) or "Best: baseline" in said
    assert "baseline baseline" not in said and "None" not in said
    assert "seconds of training" in page.read_text(), "a short run is not shown in thousandths of an hour"


def check_charts(folder: Path, high: str) -> None:
    """A picture of each chart in both kinds, for everybody to read."""
    names = {path.name for path in folder.iterdir()}
    assert names == {f"{chart}.{kind}" for chart in ("validation", "training", "time") for kind in ("png", "svg")}
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir())
    assert (folder / "validation.png").read_bytes().startswith(b"\x89PNG")
    for chart in ("validation", "training", "time"):
        text = (folder / f"{chart}.svg").read_text()
        assert high in text and "baseline" in text


def check_refusals(gptctl: Gptctl, folder: Path) -> None:
    """Each is exit 2 and says what to type instead."""
    for arguments, message in {
        ("--label", "sweep=depth"): "no run has the label sweep=depth",
        ("baseline", "--html", "absent/c.html"): "must be a file in an existing folder",
        ("baseline", "--charts", "c.html"): "--charts c.html: File exists",
    }.items():
        done = gptctl("compare", *arguments)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
        assert "Traceback" not in done.stderr
    assert (folder / "c.html").read_text().startswith("<!doctype html>")
