"""Foreign text and foreign numbers made safe."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.screen.foreign import clean, finite

BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


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
        ("if \u202e} \u2066// admin\u2069\u200f\u061c", "if } // admin"),
        ("one\u2028two\ufeff\ud800", "onetwo"),
        ("Füße und 漢字", "Füße und 漢字"),
    ],
)
def test_terminal_escapes_are_taken_out(foreign: str, safe: str) -> None:
    assert clean(foreign) == safe


@given(st.text())
def test_no_text_leaves_a_control_character(text: str) -> None:
    assert not any((ord(each) < 32 and each not in "\t\n") or 127 <= ord(each) < 160 for each in clean(text))
    assert not any(unicodedata.bidirectional(each) in BIDI for each in clean(text))


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126)))
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert clean(text) == text


def test_what_is_no_number_is_none() -> None:
    assert [finite(value) for value in ("3", None, True, float("nan"), float("inf"))] == [None] * 5
    assert finite(3) == 3.0
