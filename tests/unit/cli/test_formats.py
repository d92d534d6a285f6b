"""Numbers as people read them, and foreign text made safe."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.screen.formats import clean, count, duration, hours, money, number, percent, size


@pytest.mark.parametrize(
    ("foreign", "safe"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;owned title\x07text", "text"),
        ("\x1b]52;c;aGk=\x1b\\text", "text"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP1$r payload\x1b\\text", "text"),
        ("\x1b[2J\x1b[Hgone", "gone"),
        ("\x1bcreset", "reset"),
        ("\x9b31mC1", "C1"),
        ("back\x08space\rreturn\x07", "backspacereturn"),
        ("tab\tand\nnewline stay", "tab\tand\nnewline stay"),
        ("Füße und 漢字", "Füße und 漢字"),
    ],
)
def test_terminal_escapes_are_taken_out(foreign: str, safe: str) -> None:
    assert clean(foreign) == safe


@given(st.text())
def test_no_text_leaves_a_control_character(text: str) -> None:
    assert not any((ord(each) < 32 and each not in "\t\n") or 127 <= ord(each) < 160 for each in clean(text))


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126)))
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert clean(text) == text


def test_numbers_as_people_read_them() -> None:
    assert [money(value) for value in (None, 0, 0.0042, 0.5, 1234.5)] == ["-", "$0.00", "$0.0042", "$0.50", "$1,234.50"]
    assert [duration(value) for value in (None, 4.4, 200, 3725, 190_000)] == ["-", "4s", "3m 20s", "1h 02m", "2d 04h"]
    assert [size(value) for value in (None, 12, 2_500_000_000, 5e12)] == ["-", "12 B", "2.50 GB", "5.00 TB"]
    assert [count(value) for value in (None, 950, 25_900, 3.26e9, 999_999)] == ["-", "950", "25.9k", "3.26B", "1M"]
    assert (hours(1.5), percent(0.382), percent(0.0)) == ("1h 30m", "38.2%", "-")


def test_what_is_no_number_is_none() -> None:
    assert [number(value) for value in ("3", None, True, float("nan"), float("inf"))] == [None] * 5
    assert number(3) == 3.0
