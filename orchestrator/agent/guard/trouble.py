"""Why a way to end this machine, or its check, failed. A value, not an exception: the guard continues.

Example: `Trouble("the API answered 401", refused=True).text`
"""

from __future__ import annotations


class Trouble:
    """In words, without the key; `refused` when it will not do later either: the guard is not armed then."""

    def __init__(self, text: str, refused: bool = False) -> None:
        self.text = text
        self.refused = refused
