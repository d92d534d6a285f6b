"""A terminal whose locale is C gets ASCII alone. Python writes UTF-8 there, which such a terminal shows as rubbish.

A file or a pipe keeps UTF-8: what a model wrote must not lose its letters because a timer started gptctl.

Example::

    restrict(sys.stdout, os.environ)
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Mapping
from typing import TextIO

__all__ = ["restrict"]

ASCII_LOCALES = ("C", "POSIX")
SIGNS = {"·": "-", "\u2212": "-", "\u00d7": "x", "…": "...", "±": "+-", "✓": "+", "✗": "x", "●": "*"}
PLAIN = "gptctl.plain"


def restrict(stream: TextIO, environment: Mapping[str, str]) -> None:
    """Makes the stream ASCII if it is a terminal of such a locale; other letters become a question mark."""
    # LC_CTYPE says nothing: Python sets it to C.UTF-8 itself where LANG is C.
    named = environment.get("LC_ALL") or environment.get("LANG")
    if named in ASCII_LOCALES and stream.isatty() and isinstance(stream, io.TextIOWrapper):
        codecs.register_error(PLAIN, _plain)
        stream.reconfigure(encoding="ascii", errors=PLAIN)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(SIGNS.get(char, "?") for char in error.object[error.start : error.end]), error.end
