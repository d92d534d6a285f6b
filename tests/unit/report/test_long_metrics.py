"""A file of very many lines: the same figures as a short one, held as machine numbers."""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path

import pytest

from orchestrator.report import metrics
from orchestrator.report.metrics import middle, read_training
from orchestrator.report.pages.curves import training_charts
from trainer.run_files import METRICS


def write(folder: Path) -> None:
    noise = random.Random(3)
    steps = [*range(1, 900), *range(400, 2400)]  # resumed at step 400
    with (folder / METRICS).open("w") as file:
        for number, step in enumerate(steps):
            loss = None if step % 97 == 0 else 5 + noise.random()
            line = {"step": step, "loss": loss, "lr": 1e-3, "tokens": step * 8, "tokens_per_second": noise.random() + 9}
            file.write(json.dumps({**line, "mfu": 0.4, "memory_gib": 1.5 + number % 7, "time": number}) + "\n")


def test_a_long_file_is_read_as_a_short_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    short = read_training(tmp_path)
    monkeypatch.setattr(metrics, "MANY_LINES", 100)
    monkeypatch.setattr(metrics, "MOST_POINTS", 200)
    long = read_training(tmp_path)
    assert [*long.steps] == [*short.steps] == [*range(1, 2400)]
    assert {key: [*column] for key, column in long.columns.items()} == {k: [*c] for k, c in short.columns.items()}
    for figure in ("step", "tokens", "tokens_per_second", "mfu", "memory_gib", "first_loss", "last_loss"):
        assert getattr(long, figure) == pytest.approx(getattr(short, figure)), figure
    assert len(long.losses) <= 202 < len(short.losses)
    assert [(chart.xs, chart.series) for chart in training_charts(long)] == [
        (chart.xs, chart.series) for chart in training_charts(short)
    ]


@pytest.mark.parametrize("size", [1, 2, 5, 1000, 5001, 20_000])
@pytest.mark.parametrize("kind", ["noise", "constant", "rising", "two values"])
def test_the_middle_is_the_median(size: int, kind: str) -> None:
    noise = random.Random(size)
    make = {
        "noise": lambda at: noise.gauss(5, 2), "constant": lambda at: 4.0, "rising": float,
        "two values": lambda at: float(at % 2),
    }  # fmt: skip
    values = [make[kind](at) for at in range(size)]
    assert middle(values) == statistics.median(values)
