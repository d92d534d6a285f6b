"""Numbers as people read them: one way for the terminal, the reports and the model card."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from orchestrator.core import formats


@pytest.mark.parametrize(
    ("form", "figures"),
    [
        (formats.number, {None: "-", 0: "0", 33_165: "33,165", -1_000: "-1,000"}),
        (formats.loss, {None: "-", 2.34567: "2.3457", 10.8: "10.8000"}),
        (formats.figure, {None: "-", 0.0: "0.00", 0.288: "0.288", 0.000362: "0.000362", 12.345: "12.35"}),
        (formats.count, {None: "-", 0: "0", 950: "950", 999.6: "1k", 25_912: "25.9k", 999_999: "1M", 3.26e9: "3.26B"}),
        (
            formats.dollars,
            {None: "-", 0: "$0.00", 0.000123: "$0.00012", 0.0042: "$0.0042", 0.0623: "$0.062", 0.1: "$0.10"},
        ),
        (formats.dollars, {1234.5: "$1,234.50", -0.5: "-$0.50", 1.5e-7: "$0.00000015"}),
        (formats.duration, {None: "-", 0: "0s", -3: "0s", 0.26: "0.3s", 4.4: "4s", 59.6: "1m 00s", 200: "3m 20s"}),
        (formats.duration, {3725: "1h 02m", 190_000: "2d 04h"}),
        (formats.hours, {None: "-", 0.001: "4s", 0.25: "15m 00s", 1.5: "1h 30m"}),
        (
            formats.size,
            {None: "-", 12: "12 B", 1_500: "1.50 kB", 999_999: "1.00 MB", 3.21e9: "3.21 GB", 5e12: "5.00 TB"},
        ),
        (formats.percent, {None: "-", 0.0: "0.0%", 0.382: "38.2%"}),
        (formats.utc_time, {None: "-", 0: "1970-01-01 00:00:00 UTC"}),
    ],
)
def test_a_figure_is_written_one_way(form: Callable[[float | None], str], figures: dict[float | None, str]) -> None:
    assert {value: form(value) for value in figures} == figures


def test_decimals_are_fixed_where_they_are_asked_for() -> None:
    assert formats.number(math.pi, 2) == "3.14"


def test_the_local_time_names_its_zone() -> None:
    assert len(formats.local_time(0).split()) >= 3 and formats.local_time(None) == "-"
