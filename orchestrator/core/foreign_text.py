"""Text of a machine, a store or a file made safe to print: the one place that knows what is taken out.

Errors, events, tables and every line of the screen pass through `clean`. Pure.

Example: `clean("\\x1b[31mred")` gives 'red'
"""

from __future__ import annotations

import re

_ESCAPES = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\|$)"  # OSC: titles, links, clipboard writes
    r"|\x1b[P^_X][^\x1b]*(?:\x1b\\|$)"  # DCS, PM, APC, SOS
    r"|[\x1b\x9b]\[?[0-?]*[ -/]*[@-~]"  # CSI and two-character escapes
)
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that turn the direction of writing: Trojan source
    "\u2028\u2029\ufeff"  # line separators that splitlines() knows and a terminal does not, byte order mark
    "\ud800-\udfff]"  # lone surrogates: nothing prints them
)


def clean(text: str) -> str:
    """The text without terminal escapes, control characters and bidi marks; tabs and newlines stay."""
    if text.isascii() and text.isprintable():  # almost all there is
        return text
    return _CONTROLS.sub("", _ESCAPES.sub("", text))
